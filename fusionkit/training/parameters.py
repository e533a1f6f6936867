"""What is trained: the parameter table of a model."""

from __future__ import annotations

from dataclasses import dataclass

from fusionkit.fusion.model import FusionModel, group_of


@dataclass(frozen=True, slots=True)
class PartCount:
    """Parameters of one part of a model.

    Attributes:
        part: An encoder's role, a part of the fusion, or the head.
        trained: Number of trained values.
        total: Number of all values.
    """

    part: str
    trained: int
    total: int


def count_parameters(model: FusionModel) -> list[PartCount]:
    """Count by part; what a transfer mode adds to an encoder is a part of its own."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        entry = counts.setdefault(_part(name), [0, 0])
        entry[0] += parameter.numel() if parameter.requires_grad else 0
        entry[1] += parameter.numel()
    return [PartCount(part, trained, total) for part, (trained, total) in counts.items()]


def _part(name: str) -> str:
    """``main``, ``complement prompts``, ``experts``, ``router``, ``head``, ..."""
    group, parts = group_of(name), name.split(".")
    if group == "head":
        return group
    if parts[1] == "stand_ins":
        return "stand-ins"
    if group == "fusion":  # fusion.prompts.experts.3 -> prompts experts
        return " ".join(part for part in parts[1:3] if not part.isdigit())
    if parts[3] != "encoder":
        return f"{group} {parts[3]}"
    return f"{group} lora" if any(part.startswith("lora_") for part in parts) else group
