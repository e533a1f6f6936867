"""Gated multimodal unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fusionkit.encoders.base import Inputs
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import Fusion, FusionOutput
from fusionkit.fusion.requirements import complements_of
from fusionkit.transfer.base import Transfer


class Gated(Fusion):
    """Gates decide, for every sample and unit, which modality is heard.

    Section 3.1 of Arevalo et al. 2017 (arXiv 1702.01992), over the encoders' pooled features
    x_j. Of two encoders the bimodal unit, with one gate for both (Fig. 2b):

        h = z * tanh(W_1 x_1) + (1 - z) * tanh(W_2 x_2),    z = sigmoid(V [x_1; x_2]).

    Of more the general unit, with a gate for each (Fig. 2a):

        h = sum_j z_j * tanh(W_j x_j),    z_j = sigmoid(V_j [x_1; ...; x_n]).

    No biases, as in the paper. The gates read x_j as the paper writes, not W_j x_j as its code
    does. The paper's classifier behind the unit, a maxout network with batch norms, is left out:
    the linear head takes its place, as in every fusion.

    Parameters: two encoders dim * 2 (C_1 + C_2), n of them dim * (n + 1) (C_1 + ... + C_n).

    Args:
        main: The main encoder, under any mode.
        complements: One or more, under any mode.
        dim: Width of h.

    Raises:
        ConfigError: There is no complement, or ``dim`` is less than 1.
    """

    main_alone = True
    reads_tokens = False

    def __init__(
        self,
        main: Transfer,
        complements: Sequence[Transfer],
        dim: int = 512,  # authors' code
    ) -> None:
        super().__init__(main, complements_of(complements, "gated"))
        if dim < 1:
            raise ConfigError(f"dim of gated is at least 1, given {dim}.")
        self.dim = dim
        widths = [encoder.out_dim for encoder in (main, *complements)]
        self.hidden = nn.ModuleList(nn.Linear(width, dim, bias=False) for width in widths)
        gates = 1 if len(widths) == 2 else len(widths)
        self.gates = nn.Linear(sum(widths), gates * dim, bias=False)

    @property
    def out_dim(self) -> int:
        return self.dim

    def forward(self, inputs: Mapping[str, Inputs]) -> FusionOutput:
        pooled = [features.pooled for features in self.see_all(inputs).values()]
        gates = list(self.gates(torch.cat(pooled, dim=-1)).sigmoid().split(self.dim, dim=-1))
        if len(pooled) == 2:
            gates.append(1 - gates[0])
        hidden = [linear(x).tanh() for linear, x in zip(self.hidden, pooled, strict=True)]
        gated = [gate * h for gate, h in zip(gates, hidden, strict=True)]
        return FusionOutput(torch.stack(gated).sum(dim=0))
