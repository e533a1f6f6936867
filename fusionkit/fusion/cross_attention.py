"""The main encoder's tokens attend to the complements'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fusionkit.encoders.base import Features, Inputs
from fusionkit.encoders.sequences import all_real, masked_mean
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import Fusion, FusionOutput
from fusionkit.fusion.requirements import complements_of
from fusionkit.transfer.base import Transfer


class CrossAttention(Fusion):
    """One crossmodal Transformer block behind the encoders.

    Sections 3.1 and 3.2 of Tsai et al. 2019 (MulT, arXiv 1906.00295). X are the main encoder's
    tokens, Y the complements', each encoder's projected to ``dim``; several complements' tokens
    form one sequence:

        Z = X + MultiHead(queries LN(X), keys and values LN'(Y))
        F = Z + W_2 relu(W_1 LN(Z)),    hidden width 4 dim
        feature = [pooled; mean of LN(F) over the main's real tokens]

    with residuals around the norms and a norm at the end, as in the authors' code. Decided here:
    one block, from complement to main; a norm of its own for Y, since other encoders wrote it; no
    positions, which the encoders have written into their tokens; and the main encoder's pooled
    feature beside the block's, so that nothing is lost that the main encoder alone would say. An
    encoder without tokens is a sequence of one, its pooled feature; what a complement has for its
    pooled feature alone plays no part where it has tokens. A sample without any real complement
    token gets Z = X.

    Parameters: 12 dim^2 + 17 dim + dim * sum_j (C_j + 1).

    Args:
        main: The main encoder, under any mode.
        complements: One or more, under any mode.
        dim: Width of the block, a multiple of ``heads``.
        heads: Of the attention.

    Raises:
        ConfigError: There is no complement, or ``dim`` is no multiple of ``heads``.
    """

    main_alone = True

    def __init__(
        self,
        main: Transfer,
        complements: Sequence[Transfer],
        dim: int = 256,  # 1.3 M parameters for Swin-B and BERT-base, half of ours at k = 16
        heads: int = 4,
    ) -> None:
        super().__init__(main, complements_of(complements, "cross_attention"))
        if dim < 1 or heads < 1 or dim % heads:
            raise ConfigError(
                f"cross_attention shares its dim out among its heads: dim is a multiple of heads "
                f"and both are at least 1, given {dim} and {heads}."
            )
        self.dim = dim
        self.project = nn.ModuleList(
            nn.Linear(encoder.out_dim, dim) for encoder in (main, *complements)
        )
        self.norm_main, self.norm_seen = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim)
        )
        self.norm = nn.LayerNorm(dim)

    @property
    def out_dim(self) -> int:
        return self.main.out_dim + self.dim

    def forward(self, inputs: Mapping[str, Inputs]) -> FusionOutput:
        seen = self.see_all(inputs)
        (x, keep), *others = [
            _sequence(project, features)
            for project, features in zip(self.project, seen.values(), strict=True)
        ]
        y = torch.cat([tokens for tokens, _ in others], dim=1)
        x = x + self._read(x, y, torch.cat([real for _, real in others], dim=1))
        x = self.norm(x + self.feed_forward(x))
        return FusionOutput(torch.cat([seen["main"].pooled, masked_mean(x, keep)], dim=-1))

    def _read(self, x: Tensor, y: Tensor, keep: Tensor) -> Tensor:
        """What tokens x (B, T, dim) take from the real ones among y (B, S, dim); keep (B, S)."""
        # A softmax over nothing is not a number: such rows look at their padding and drop it.
        some = keep.any(dim=1, keepdim=True)
        seen = self.norm_seen(y)
        hidden = ~(keep | ~some)
        read, _ = self.attention(
            self.norm_main(x), seen, seen, key_padding_mask=hidden, need_weights=False
        )
        return torch.where(some.unsqueeze(-1), read, 0.0)


def _sequence(project: nn.Module, features: Features) -> tuple[Tensor, Tensor]:
    """Projected tokens (B, T, dim) and keep (B, T) of an encoder."""
    tokens = features.pooled.unsqueeze(1) if features.tokens is None else features.tokens
    tokens = project(tokens)
    return tokens, all_real(tokens) if features.keep is None else features.keep
