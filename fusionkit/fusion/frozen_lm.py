"""Frozen: the complement as a prefix of a frozen causal language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fusionkit.encoders.base import ExtraTokens, Inputs
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import Fusion, FusionOutput
from fusionkit.fusion.requirements import complements_of, extendable, layered
from fusionkit.transfer.base import Transfer


class FrozenLM(Fusion):
    """Frozen (Tsimpoukelli et al. 2021, arXiv 2106.13884, section 3.1).

    The pooled feature x of the complement is mapped to n tokens in front of the text,

        [v_1; ..; v_n] = reshape(W x + b),

    through whose frozen layers the gradient reaches W and the complement, which is trained:
    ``complement_transfer: fine_tune`` in the paper and in ``system: frozen``. Several complements
    have a map each; their tokens stand one behind the other, as several images do in the paper.

    The paper's model goes on to write the answer; here a head predicts it from the last token,
    which sees all others. The v_i are numbered like words, where the paper's positions are
    relative.

    Args:
        main: A causal language model, such as the encoder ``gpt2``, whose transfer trains nothing.
        complements: One or more.
        length: n, tokens for each complement.

    Raises:
        ConfigError: The main encoder is not causal, takes no further tokens or is trained, there
            is no complement, or ``length`` is below 1.
    """

    reads_tokens = False

    def __init__(
        self,
        main: Transfer,
        complements: Sequence[Transfer],
        length: int = 2,  # paper, section 3.1
    ) -> None:
        super().__init__(main, complements_of(complements, "frozen"))
        encoder = layered(main, "frozen")
        if not encoder.causal:
            raise ConfigError(
                f"The fusion 'frozen' puts tokens in front of a causal language model, which reads "
                f"from left to right; {type(encoder).__name__} reads both ways. Give such a model "
                f"as `main`, as the encoder gpt2 does (GPT-2, OPT, Llama, Qwen), or use the fusion "
                f"mmbt."
            )
        width = extendable(main, "frozen", length * len(complements)).layer_widths[0]
        if any(weight.requires_grad for weight in main.parameters()):
            raise ConfigError(
                f"The fusion 'frozen' is defined by a language model of which nothing is trained; "
                f"main_transfer ({type(main).__name__}) trains some of it. Set `main_transfer: "
                f"frozen`, or use the fusion mmbt, which takes any."
            )
        if length < 1:
            raise ConfigError(f"length is at least 1, given {length}.")
        self.width = width
        self.project = nn.ModuleList(
            nn.Linear(made.out_dim, length * width) for made in complements
        )

    @property
    def out_dim(self) -> int:
        return self.main.out_dim

    def forward(self, inputs: Mapping[str, Inputs]) -> FusionOutput:
        rows = [
            project(features.pooled).unflatten(-1, (-1, self.width))  # (B, n, D_0)
            for project, features in zip(self.project, self.see(inputs).values(), strict=True)
        ]
        return FusionOutput(self.run_main(inputs, extra=ExtraTokens(torch.cat(rows, dim=1))).pooled)
