"""A fusion and the linear head that predicts from its feature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionkit.encoders.base import Inputs, MainEncoder
from fusionkit.fusion.base import Fusion, FusionOutput


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """A prediction and what led to it.

    Attributes:
        logits: (B, outputs); of several branches, the mean of their scores.
        fused: Feature, routing record and further losses.
        branches: (n, B, outputs), the scores of each branch, whose losses are averaged in
            training; None if there is one head.
    """

    logits: Tensor
    fused: FusionOutput
    branches: Tensor | None = None


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


class EnsembleHead(nn.Module):
    """A linear head for each branch of a feature.

    Args:
        heads: Of each branch, in the order of their parts of the feature.
    """

    def __init__(self, heads: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.widths = [head.in_features for head in heads]
        self.out_features = heads[0].out_features

    def forward(self, feature: Tensor) -> Tensor:
        """Scores of each branch, (n, B, outputs), of a feature (B, C)."""
        parts = feature.split(self.widths, dim=-1)
        return torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)])


class FusionModel(nn.Module):
    """A fusion with a linear head, or one for each of its branches.

    Args:
        fusion: Holds the encoders.
        outputs: Number of classes, or 1 for regression.
        regression: Whether the head predicts a number.
    """

    def __init__(self, fusion: Fusion, outputs: int, regression: bool = False) -> None:
        super().__init__()
        self.fusion = fusion
        for transfer in fusion.encoders.values():
            if isinstance(transfer.encoder, MainEncoder):
                transfer.encoder.pooled_only = not fusion.reads_tokens
        branches = fusion.branches
        heads = [
            RegressionHead(width) if regression else nn.Linear(width, outputs)
            for width in branches or (fusion.out_dim,)
        ]
        self.head = heads[0] if branches is None else EnsembleHead(heads)

    def forward(self, inputs: Mapping[str, Inputs]) -> ModelOutput:
        """Predict a batch; ``inputs`` by role."""
        fused = self.fusion(inputs)
        scores = self.head(fused.feature)
        if isinstance(self.head, EnsembleHead):
            return ModelOutput(scores.mean(dim=0), fused, scores)
        return ModelOutput(scores, fused)

    def fit_scale(self, targets: Tensor) -> None:
        """Show the heads of a regression its training targets, (n,)."""
        for head in self._regression_heads():
            head.fit_scale(targets)

    @property
    def target_std(self) -> Tensor | None:
        """Standard deviation of the regression target; None for other tasks."""
        return next((head.target_std for head in self._regression_heads()), None)

    def _regression_heads(self) -> Iterator[RegressionHead]:
        return (head for head in self.head.modules() if isinstance(head, RegressionHead))

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
