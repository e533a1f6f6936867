"""Which short cuts a model takes. Each gives what the long way gives; none has to be asked for."""

from __future__ import annotations

from fusionkit.encoders.base import MainEncoder
from fusionkit.fusion.model import FusionModel
from fusionkit.prompts.engine import ConditionalPrompts
from fusionkit.prompts.router import ComplementRouter
from fusionkit.transfer.base import Transfer


def fast_paths(model: FusionModel) -> list[str]:
    """A line for each short cut, with the roles that take it.

    Args:
        model: May be on the meta device.
    """
    fusion = model.fusion
    roles: dict[str, Transfer] = {"main": fusion.main, **fusion.complements}
    layered = {
        role: transfer.encoder
        for role, transfer in roles.items()
        if isinstance(transfer.encoder, MainEncoder)
    }
    engines = [module for module in fusion.modules() if isinstance(module, ConditionalPrompts)]
    prompted = [
        role for role in layered if not roles[role].takes_prompts or (role == "main" and engines)
    ]
    found = [
        (
            "prompts as keys and values, shared ones once",
            [role for role in prompted if layered[role].takes_parts],
        ),
        ("prompts concatenated", [role for role in prompted if not layered[role].takes_parts]),
        (
            "last layer for the pooled token only",
            [role for role, encoder in layered.items() if encoder.reads_alone],
        ),
        (
            "forward pass without a graph",
            [role for role, transfer in fusion.complements.items() if not _trains(transfer)],
        ),
        (
            "convolutions channels last",
            [role for role, transfer in roles.items() if _channels_last(transfer)],
        ),
    ]
    lines = [f"{what}: {', '.join(which)}" for what, which in found if which]
    below = fusion.layers_alone
    if below and not _trains(fusion.main):
        lines.append(f"no graph in the first {below} layers: main")
    if any(isinstance(engine.router, ComplementRouter) for engine in engines):
        lines.append("experts of all layers mixed at once")
    return [*lines, "fused AdamW"]


def _trains(transfer: Transfer) -> bool:
    return any(parameter.requires_grad for parameter in transfer.parameters())


def _channels_last(transfer: Transfer) -> bool:
    kernels = (parameter for parameter in transfer.parameters() if parameter.ndim == 4)
    return any(not kernel.is_contiguous() for kernel in kernels)
