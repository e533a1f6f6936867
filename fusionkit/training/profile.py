"""Where the time of a training step goes, by part."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.profilers import Profiler
from rich.table import Table

from fusionkit.fusion.model import FusionModel
from fusionkit.prompts.engine import ConditionalPrompts
from fusionkit.prompts.router import MultimodalRouter
from fusionkit.training.report import plain_table

FILE = "profile.json"
WARM_UP = 2  # steps that are left out: optimizer states are made, caches are filled

_STEP = "run_training_batch"
# What Lightning calls its actions: part of the name, and the part of a step.
_ACTIONS = {
    "train_dataloader_next": "data",
    "training_step": "head and loss",
    ".backward": "backward",
    "optimizer_step": "optimizer",
}
_ORDER = ("data", "engine", "main", "head and loss", "backward", "optimizer", "rest")


class StepProfiler(Profiler):
    """Times the parts of training steps; what a part calls of another counts as the other's.

    A step goes from asking for its batch to the last callback after it. Validation is left out.
    On a GPU it waits at the borders of parts, so that steps take longer than without it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, float]] = []
        self._running: list[str] = []  # parts, each called by the one before
        self._parts: dict[str, float] = {}
        self._began = self._since = 0.0
        self._in_step = False

    def start(self, action_name: str) -> None:
        """Lightning begins something."""
        if action_name == _STEP:
            self._in_step = True
        part = _part_of(action_name)
        if part == "data":
            self._parts, self._running = {}, []
            self._began = _now()
        if part == "data" or (part and self._in_step):
            self._enter(part)

    def stop(self, action_name: str) -> None:
        """Lightning has ended it."""
        part = _part_of(action_name)
        if part and self._running and self._running[-1] == part:
            self._leave()
        if action_name == _STEP:
            self._in_step = False
            self.steps.append(self._parts)
        if action_name.endswith("on_train_batch_end") and self.steps:
            step = self.steps[-1]
            step["rest"] = _now() - self._began - sum(v for k, v in step.items() if k != "rest")

    @contextmanager
    def watch(self, model: FusionModel) -> Iterator[None]:
        """Tell the encoders and the engine of a model from the rest of a step."""
        fusion = model.fusion
        named = list(fusion.encoders.items())
        for module in fusion.modules():
            if isinstance(module, ConditionalPrompts | MultimodalRouter):
                named.append(("engine", module))
        handles: list[Any] = []
        for part, module in named:
            handles += [
                module.register_forward_pre_hook(lambda *_, part=part: self._module(part)),
                module.register_forward_hook(lambda *_: self._module(None), always_call=True),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def seconds(self) -> dict[str, float]:
        """Mean seconds of each part; empty if there were no steps beyond the first two."""
        steps = self.steps[WARM_UP:]
        known = {part for step in steps for part in step}
        others = sorted(known - set(_ORDER))  # complements
        order = [_ORDER[0], *others, *_ORDER[1:]]
        return {
            part: statistics.fmean(step.get(part, 0.0) for step in steps)
            for part in order
            if part in known
        }

    def describe(self) -> None:
        """Lightning asks for a report; ours is :func:`profile_table`."""

    def _module(self, part: str | None) -> None:
        if not self._in_step:
            return
        if part is None:
            self._leave()
        else:
            self._enter(part)

    def _enter(self, part: str) -> None:
        now = _now()
        self._count(now)
        self._running.append(part)

    def _leave(self) -> None:
        self._count(_now())
        self._running.pop()

    def _count(self, now: float) -> None:
        if self._running:
            part = self._running[-1]
            self._parts[part] = self._parts.get(part, 0.0) + now - self._since
        self._since = now


def profile_table(seconds: dict[str, float], steps: int) -> Table:
    """Milliseconds and share of each part.

    Args:
        seconds: See :meth:`StepProfiler.seconds`.
        steps: How many were timed.
    """
    total = sum(seconds.values())
    made = plain_table(f"A training step, mean of {steps:,}", show_footer=True)
    made.add_column("part", footer="total")
    made.add_column("ms", justify="right", footer=f"{1000 * total:,.1f}")
    made.add_column("share", justify="right", footer="100 %")
    for part, value in seconds.items():
        made.add_row(part, f"{1000 * value:,.1f}", f"{value / total:.1%}")
    return made


def _part_of(action: str) -> str | None:
    return next((part for key, part in _ACTIONS.items() if action.endswith(key)), None)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
