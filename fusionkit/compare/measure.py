"""What training a system costs on this machine: FLOPs, memory and time of a step."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fusionkit.compare.memory import PeakMemory
from fusionkit.config.schema import CacheConfig, Experiment
from fusionkit.errors import ConfigError
from fusionkit.training.assemble import dry_build
from fusionkit.training.callbacks import quiet
from fusionkit.training.optimizer import make_optimizer
from fusionkit.training.precision import hold_frozen, precision_of
from fusionkit.training.run import ReadData, make_loaders, prepare, read_data
from fusionkit.training.task import FusionTask

WARM_UP = 2  # steps: the optimizer's state is made in the first, caches are filled
_SECONDS, _FEWEST, _MOST = 3.0, 3, 50  # of timed steps, where nobody says how many


@dataclass(frozen=True, slots=True)
class Cost:
    """What :class:`Bench` found.

    Attributes:
        machine: Model of the GPU, or of the CPU and how many of its cores.
        precision: Lightning's name of it.
        batch_size: Samples of the measured batch.
        steps: Timed steps.
        step_seconds: Median time of forward, loss, backward, clipping and update; the batch is
            there already.
        peak_bytes: Most memory during those steps, see :class:`PeakMemory`; None if unknown.
        forward_flops: Of one sample's forward pass in evaluation; a multiply-add is two. None
            until they are counted.
        step_flops: Of one sample's forward and backward pass in training.
    """

    machine: str
    precision: str
    batch_size: int
    steps: int
    step_seconds: float
    peak_bytes: int | None
    forward_flops: float | None = None
    step_flops: float | None = None


class Bench:
    """The real model and one real batch, on the device and in the precision of training.

    Memory is counted from here on: make it in a process that does nothing else.

    Args:
        experiment: What would be trained; on one device.

    Raises:
        FusionkitError: Data or weights cannot be read, or the experiment cannot be built.
    """

    def __init__(self, experiment: Experiment) -> None:
        # One batch is read, and readers in other processes would only disturb.
        experiment = replace(
            experiment,
            loader=replace(experiment.loader, workers=0),
            cache=CacheConfig(),  # cost is what a system computes, not what was kept of it
        )
        data: ReadData = {}
        dataset, splits = read_data(experiment, data)
        dry_build(experiment)  # imports what it needs: that is no memory of the model
        self._fabric = _fabric(experiment)
        self._memory = PeakMemory(self._fabric.device)
        *_, model, fields = prepare(experiment, data)
        train = {"train": splits["train"]}
        loader = make_loaders(experiment, dataset, train, model, fields)["train"]
        self._batch: Any = self._fabric.to_device(next(iter(loader)))
        task = FusionTask(
            model,
            dataset.task,
            dataset.outputs,
            experiment.optimizer,
            frozen={},
            compiled=experiment.trainer.compile,
        )
        self._precision = precision_of(experiment.trainer.precision, experiment.trainer.accelerator)
        hold_frozen(model, self._precision)
        self._model = model
        self._task: Any
        self._optimizer: Any
        self._task, self._optimizer = self._fabric.setup(
            task, make_optimizer(model, experiment.optimizer)
        )
        self._task.mark_forward_method("total_loss")
        self._clip = experiment.trainer.gradient_clip_val

    def time(self, steps: int | None = None) -> Cost:
        """Time training steps and watch their memory.

        Args:
            steps: How many, after two to warm up; None for about three seconds of them.
        """
        for _ in range(WARM_UP):
            self.step()
        self._memory.restart()
        times = list(self._times(steps))
        return Cost(
            machine=machine(self._fabric.device),
            precision=self._precision,
            batch_size=len(self._batch["target"]),
            steps=len(times),
            step_seconds=statistics.median(times),
            peak_bytes=self._memory.read(),
        )

    def count_flops(self) -> tuple[float, float]:
        """FLOPs of one sample: forward pass in evaluation, both passes in training.

        Matrix products and convolutions are counted, by their shapes. Attention is computed in
        its plain form here, whose products can be seen; it takes more memory than the fused one.
        Compiled kernels are not run: nothing can be counted in them.
        """
        size = len(self._batch["target"])
        forward, step = FlopCounterMode(display=False), FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
            self._model.eval()
            # With gradients: the counter cannot follow a trained prompt that needs none.
            with self._fabric.autocast(), forward:
                self._model(self._batch["inputs"])
            self._model.train()
            with step:
                self.step()
        return forward.get_total_flops() / size, step.get_total_flops() / size

    def _times(self, steps: int | None) -> Iterator[float]:
        started = time.perf_counter()
        count = 0
        while count < (steps or _MOST):
            before = self._now()
            self.step()
            yield self._now() - before
            count += 1
            if steps is None and count >= _FEWEST and time.perf_counter() - started > _SECONDS:
                break

    def _now(self) -> float:
        if self._fabric.device.type == "cuda":
            torch.cuda.synchronize(self._fabric.device)
        elif self._fabric.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def step(self) -> None:
        """One training step."""
        with self._fabric.autocast():  # which Fabric gives to `forward` only, on a single device
            loss, _ = self._task.total_loss(self._batch)
        self._fabric.backward(loss)
        if self._clip:
            self._fabric.clip_gradients(
                self._task, self._optimizer, max_norm=self._clip, error_if_nonfinite=False
            )
        self._optimizer.step()
        self._optimizer.zero_grad()


def _fabric(experiment: Experiment) -> L.Fabric:
    config = experiment.trainer
    torch.use_deterministic_algorithms(config.deterministic)
    try:
        with quiet():
            return L.Fabric(
                accelerator=config.accelerator,
                devices=config.devices[:1] if isinstance(config.devices, list) else 1,
                precision=precision_of(config.precision, config.accelerator),  # type: ignore[arg-type]
            )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise ConfigError(f"trainer: {error}") from error


def machine(device: torch.device) -> str:
    """``NVIDIA H200``, or ``AMD EPYC, 2 cores``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = torch.get_num_threads()
    name = "Apple GPU" if device.type == "mps" else _cpu_name()
    return f"{name}, {cores} core{'s' if cores > 1 else ''}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine() or os.name
