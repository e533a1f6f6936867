"""In which precision a run computes, and what of the weights is kept in it."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from fusionkit.fusion.model import FusionModel

_LOW = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# Their weights enter nothing but products, which mixed precision computes in the low one.
_PRODUCTS = {
    "torch.nn.modules.linear.Linear",
    *(f"torch.nn.modules.conv.Conv{dims}d" for dims in (1, 2, 3)),
    "transformers.pytorch_utils.Conv1D",  # by name, for it is slow to import
}


def precision_of(asked: str, accelerator: str) -> str:
    """Lightning's name of the precision.

    ``auto`` is bf16-mixed on a GPU whose hardware has it, 16-mixed on other GPUs, else 32-true.
    """
    if asked != "auto":
        return asked
    if accelerator not in ("auto", "gpu") or not torch.cuda.is_available():
        return "32-true"
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if native else "16-mixed"


def low_precision(precision: str) -> torch.dtype | None:
    """What products are computed in under Lightning's ``precision``; None for that of weights."""
    return _LOW.get(precision)


def frozen_products(model: nn.Module) -> list[str]:
    """Names of the frozen weights that enter products only.

    Mixed precision rounds them before each product, and again for the next: kept rounded, they
    give the same and take half the memory.
    """
    uses = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if f"{type(module).__module__}.{type(module).__qualname__}" in _PRODUCTS
        for name, parameter in module.named_parameters(recurse=False)
        if not parameter.requires_grad and uses[id(parameter)] == 1
    ]


def hold_frozen(model: FusionModel, precision: str) -> None:
    """Keep :func:`frozen_products` in the low precision; from then on it runs in that only.

    Args:
        model: Changed in place.
        precision: Lightning's name of it; one without mixed precision changes nothing.
    """
    if (dtype := low_precision(precision)) is not None:
        for name in frozen_products(model):
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.to(dtype)
