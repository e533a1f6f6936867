"""Low-rank tensor product of all features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fusionkit.encoders.base import Inputs
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import Fusion, FusionOutput
from fusionkit.fusion.requirements import complements_of
from fusionkit.transfer.base import Transfer


class LowRankTensor(Fusion):
    """Every product of features of different modalities, through a weight tensor of low rank.

    Low-rank Multimodal Fusion, section 3 of Liu et al. 2018 (arXiv 1806.00064), over the
    encoders' pooled features x_m:

        h = sum_r prod_m W_m^(r) [x_m; 1]    (elementwise product over the modalities),

    which is the outer product of all ``[x_m; 1]`` contracted with a tensor of
    (C_1 + 1) x ... x (C_n + 1) x dim weights of rank R. The 1 keeps what a modality says alone.

    The authors' code weighs the R terms and adds a bias to h; both are left out, since the
    factors and the head contain them. Factors start as those of a linear layer, U(-b, b) with
    b = C_m^(-1/2); the paper is silent on it.

    Parameters: rank * dim * sum_m (C_m + 1).

    Args:
        main: The main encoder, under any mode.
        complements: One or more, under any mode.
        rank: R.
        dim: Width of h.

    Raises:
        ConfigError: There is no complement, or a number is less than 1.
    """

    main_alone = True
    reads_tokens = False

    def __init__(
        self,
        main: Transfer,
        complements: Sequence[Transfer],
        rank: int = 4,  # of 1, 4, 8, 16 in the authors' search
        dim: int = 256,  # rank * dim: as many parameters as `gated` has for two encoders
    ) -> None:
        super().__init__(main, complements_of(complements, "low_rank_tensor"))
        if rank < 1 or dim < 1:
            raise ConfigError(
                f"rank and dim of low_rank_tensor are at least 1, given {rank} and {dim}."
            )
        self.rank, self.dim = rank, dim
        # W_m^(1) .. W_m^(R), one below the other; the bias is their column for the 1.
        self.factors = nn.ModuleList(
            nn.Linear(encoder.out_dim, rank * dim) for encoder in (main, *complements)
        )

    @property
    def out_dim(self) -> int:
        return self.dim

    def forward(self, inputs: Mapping[str, Inputs]) -> FusionOutput:
        features = self.see_all(inputs).values()
        projected = [
            factor(seen.pooled) for factor, seen in zip(self.factors, features, strict=True)
        ]
        product = torch.stack(projected).prod(dim=0)  # (B, R dim)
        return FusionOutput(product.unflatten(-1, (self.rank, self.dim)).sum(dim=1))
