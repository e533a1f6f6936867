"""Predictions of all encoders, averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fusionkit.encoders.base import Inputs
from fusionkit.fusion.base import Fusion, FusionOutput
from fusionkit.fusion.requirements import complements_of
from fusionkit.transfer.base import Transfer


class Ensemble(Fusion):
    """Score averaging: as many models of one modality as there are encoders.

    Each encoder has a linear head of its own, ``s_j = W_j x_j + b_j``, and the prediction is
    ``(s_1 + ... + s_n) / n``: of logits, so that it means the same in every task; of
    probabilities after a softmax it is their geometric mean. In training the loss is the mean of
    the heads' own losses. No gradient of an encoder depends on another, as if each were trained
    alone, at 1 / n of the gradient. Validation and test figures are of the averaged scores.

    A modality that a sample lacks votes with what its head makes of the stand-in.

    Args:
        main: The main encoder, under any mode.
        complements: One or more, under any mode.

    Raises:
        ConfigError: There is no complement.
    """

    main_alone = True
    reads_tokens = False

    def __init__(self, main: Transfer, complements: Sequence[Transfer]) -> None:
        super().__init__(main, complements_of(complements, "ensemble"))

    @property
    def out_dim(self) -> int:
        return sum(self.branches)

    @property
    def branches(self) -> Sequence[int]:
        return [self.main.out_dim, *(seen.out_dim for seen in self.complements.values())]

    def forward(self, inputs: Mapping[str, Inputs]) -> FusionOutput:
        pooled = [features.pooled for features in self.see_all(inputs).values()]
        return FusionOutput(torch.cat(pooled, dim=-1))
