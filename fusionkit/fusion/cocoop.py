"""CoCoOp: input prompts shifted by what the complement saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fusionkit.encoders.base import ExtraTokens, Inputs
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import Fusion, FusionOutput
from fusionkit.fusion.requirements import extendable, only_complement
from fusionkit.transfer.base import Transfer

_BOTTLENECK = 16  # paper, section 3.2


class CoCoOp(Fusion):
    """Conditional context tokens (Zhou et al. 2022, arXiv 2203.05557, section 3.2).

    Learned tokens v_1 .. v_M at the main encoder's input are all shifted by what the Meta-Net
    h_theta (linear, ReLU, linear; its hidden layer 16 times narrower than its input) makes of the
    complement's pooled feature x:

        v_m(x) = v_m + pi,    pi = h_theta(x).

    In the paper the tokens precede the name of a class, CLIP's text encoder reads one such prompt
    for each class, and the class is that whose text is nearest to the image. Here they stand in
    the main encoder's own field, a text or an image, which it reads once, and a head predicts from
    its feature; x is not normalised to length 1, as CLIP's image features are. Tokens start as
    N(0, 0.02^2) (authors' code).

    Args:
        main: The main encoder, one whose input takes further tokens.
        complements: One.
        prompt_length: M.

    Raises:
        ConfigError: The main encoder takes no further tokens, there is not exactly one
            complement, or ``prompt_length`` is below 1.
    """

    reads_tokens = False

    def __init__(
        self,
        main: Transfer,
        complements: Sequence[Transfer],
        prompt_length: int = 4,  # paper, section 4
    ) -> None:
        complement = only_complement(complements, "cocoop")
        super().__init__(main, [complement])
        width = extendable(main, "cocoop", prompt_length).layer_widths[0]
        if prompt_length < 1:
            raise ConfigError(f"prompt_length is at least 1, given {prompt_length}.")
        hidden = max(complement.out_dim // _BOTTLENECK, 1)
        self.meta_net = nn.Sequential(
            nn.Linear(complement.out_dim, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )
        self.prompts = nn.Parameter(nn.init.normal_(torch.empty(prompt_length, width), std=0.02))

    @property
    def out_dim(self) -> int:
        return self.main.out_dim

    def forward(self, inputs: Mapping[str, Inputs]) -> FusionOutput:
        (features,) = self.see(inputs).values()
        rows = self.prompts + self.meta_net(features.pooled).unsqueeze(1)  # (B, M, D_0)
        return FusionOutput(self.run_main(inputs, extra=ExtraTokens(rows)).pooled)
