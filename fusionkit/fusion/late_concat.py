"""Features of all encoders side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fusionkit.encoders.base import Inputs
from fusionkit.fusion.base import Fusion, FusionOutput
from fusionkit.fusion.requirements import complements_of
from fusionkit.transfer.base import Transfer


class LateConcat(Fusion):
    """LateConcat and P-LateConcat of arXiv 2312.03734, section 4.3.

    The feature is ``[x_1; ...; x_n]``, the pooled features of the main encoder and of every
    complement, as the encoders give them; the head is all that meets both. Which of the two
    systems it is, fine-tuned or prompted, is up to the transfer modes.

    Args:
        main: The main encoder, under any mode.
        complements: One or more, under any mode.

    Raises:
        ConfigError: There is no complement.
    """

    main_alone = True
    reads_tokens = False

    def __init__(self, main: Transfer, complements: Sequence[Transfer]) -> None:
        super().__init__(main, complements_of(complements, "late_concat"))

    @property
    def out_dim(self) -> int:
        return self.main.out_dim + sum(seen.out_dim for seen in self.complements.values())

    def forward(self, inputs: Mapping[str, Inputs]) -> FusionOutput:
        pooled = [features.pooled for features in self.see_all(inputs).values()]
        return FusionOutput(torch.cat(pooled, dim=-1))
