"""A fusion and the linear head that predicts from its feature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionkit.encoders.base import Inputs
from fusionkit.fusion.base import Fusion, FusionOutput


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """A prediction and what led to it.

    Attributes:
        logits: (B, outputs).
        fused: Feature, routing record and further losses.
    """

    logits: Tensor
    fused: FusionOutput


class RegressionHead(nn.Linear):
    """A linear map to one number, in the units of the target.

    Training sees the target with mean 0 and standard deviation 1, so that a learning rate means
    the same for prices and for grades.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features, 1)
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_std", torch.ones(()))

    def fit_scale(self, targets: Tensor) -> None:
        """Take mean and standard deviation from the training targets, (n,)."""
        self.target_mean.copy_(targets.mean())
        spread = targets.std(correction=0)
        self.target_std.copy_(spread if spread > 0 else torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        # In float32: bfloat16 would round years to the next eight.
        return super().forward(features).float() * self.target_std + self.target_mean


class FusionModel(nn.Module):
    """A fusion with a linear head.

    Args:
        fusion: Holds the encoders.
        outputs: Number of classes, or 1 for regression.
        regression: Whether the head predicts a number.
    """

    def __init__(self, fusion: Fusion, outputs: int, regression: bool = False) -> None:
        super().__init__()
        self.fusion = fusion
        self.head = (
            RegressionHead(fusion.out_dim) if regression else nn.Linear(fusion.out_dim, outputs)
        )

    def forward(self, inputs: Mapping[str, Inputs]) -> ModelOutput:
        """Predict a batch; ``inputs`` by role."""
        fused = self.fusion(inputs)
        return ModelOutput(self.head(fused.feature), fused)

    def named_groups(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """(group, name, parameter) of every parameter.

        The groups are the encoders' roles, ``fusion`` for what the fusion itself owns, ``head``.
        """
        for name, parameter in self.named_parameters():
            yield group_of(name), name, parameter


def group_of(name: str) -> str:
    """The parameter group of a parameter or buffer of :class:`FusionModel`, by its name."""
    parts = name.split(".")
    if parts[0] == "head":
        return "head"
    return parts[2] if parts[1] == "encoders" else "fusion"
