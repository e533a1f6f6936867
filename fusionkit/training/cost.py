"""What a training step will compute and hold, found without weights and without computing.

The model and a batch are made of fake tensors, which have shapes and no values: the real forward
and backward pass run over them, so that short cuts, frozen parts and recomputation count as they
are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fusionkit.errors import ConfigError
from fusionkit.fusion.model import FusionModel, ModelOutput
from fusionkit.training.precision import frozen_products, low_precision

_ADAM = 2  # values that AdamW keeps for each one that is trained
_UNKNOWN = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step costs on one device.

    Attributes:
        batch_size: Samples of the batch.
        shapes: Of what each role reads, by role.
        forward_flops: Of one sample's forward pass in evaluation; a multiply-add is two.
        backward_flops: Of one sample's backward pass in training.
        weights: Bytes of all parameters and buffers.
        optimizer: Bytes of AdamW's state.
        passes: Most bytes that forward and backward pass hold at one time: activations, gradients.
    """

    batch_size: int
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    forward_flops: float
    backward_flops: float
    weights: int
    optimizer: int
    passes: int

    @property
    def memory(self) -> int:
        """Bytes that a training step holds at its peak."""
        return self.weights + self.optimizer + self.passes


def step_cost(model: FusionModel, inputs: Mapping[str, Any], precision: str) -> StepCost:
    """Cost of a training step.

    FLOPs are those of matrix products and convolutions, attention in its plain form.

    Args:
        model: May be on the meta device; left as it is.
        inputs: A batch by role, as a loader makes it.
        precision: Lightning's name of it.

    Raises:
        ConfigError: The model decides by values of its input, which fake tensors do not have.
    """
    batch = len(next(iter(next(iter(inputs.values())).values())))
    training = model.training
    low = low_precision(precision)
    rounded = set(frozen_products(model)) if low else set()
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # constants that modules hold are none
    try:
        with mode:
            state = {
                f"model.{name}": torch.empty_like(
                    value, device="cpu", dtype=low if name in rounded else None
                ).requires_grad_(value.requires_grad)
                for name, value in [*model.named_parameters(), *model.named_buffers()]
            }
            fake = {
                role: {name: mode.from_tensor(value) for name, value in rows.items()}
                for role, rows in inputs.items()
            }
            within = _Within(model, lambda model: (_flops(model, fake), _peak(model, fake)))
            with torch.autocast("cpu", low, enabled=low is not None):
                (forward, backward), peak = functional_call(within, state, ())
    except _UNKNOWN as error:
        raise ConfigError(
            f"this model decides by the values of its input: {str(error).splitlines()[0]}"
        ) from error
    finally:
        model.train(training)
    trained = sum(_bytes(p) for p in model.parameters() if p.requires_grad)
    return StepCost(
        batch,
        {
            role: {name: tuple(value.shape) for name, value in rows.items()}
            for role, rows in inputs.items()
        },
        forward / batch,
        backward / batch,
        sum(map(_bytes, state.values())),
        _ADAM * trained,
        peak,
    )


class _Within(nn.Module):
    """Runs something on a model; under ``functional_call``, all of it sees the other tensors."""

    def __init__(self, model: FusionModel, run: Callable[[FusionModel], Any]) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self) -> Any:
        return self.run(self.model)


def _flops(model: FusionModel, inputs: Any) -> tuple[int, int]:
    """Of a forward pass in evaluation, and a backward pass in training."""
    evaluated, forward, both = (FlopCounterMode(display=False) for _ in range(3))
    with sdpa_kernel(SDPBackend.MATH):  # its products can be seen
        with evaluated:
            model.eval()(inputs)
        model.train()
        with both:
            with forward:
                loss = _loss(model(inputs))
            loss.backward()
    return evaluated.get_total_flops(), both.get_total_flops() - forward.get_total_flops()


def _peak(model: FusionModel, inputs: Any) -> int:
    """Most bytes that a forward and a backward pass hold at one time, beside weights."""
    with _Allocated() as allocated:
        _loss(model.train()(inputs)).backward()
    return allocated.peak


class _Allocated(TorchDispatchMode):
    """Counts the bytes of what operations make, as long as somebody holds it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(value)._cdata for value in _tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for value in _tensors(made):
            storage = _storage(value)
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self._seen:
                self._seen[key] = weakref.ref(storage, partial(self._drop, key, size))
                self._now += size
                self.peak = max(self.peak, self._now)
        return made

    def _drop(self, key: int, size: int, _: object) -> None:
        del self._seen[key]
        self._now -= size


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _storage(value: Tensor) -> Any:
    return value.untyped_storage()


def _loss(output: ModelOutput) -> Tensor:
    """Any number of everything that the real loss is made of."""
    scores = output.logits if output.branches is None else output.branches
    return sum(output.fused.losses.values(), scores.float().sum())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
