"""A main encoder made from any list of token blocks, prompted by concatenation."""

from __future__ import annotations

from torch import Tensor

from fusionkit.encoders.attention import run_concatenated
from fusionkit.encoders.base import MainEncoder, TokenState


class BlockStack(MainEncoder):
    """For an upstream model whose blocks map (B, L, D) to (B, L, D) and see every token.

    A subclass says what its ``layers`` are, how tokens are embedded and how they are read out; the
    prompts are concatenated, so any attention will do, at the price of a feed-forward pass over
    the prompt rows. Blocks that mask or add positions need their own ``run_layer``; unless they
    mask by ``keep`` only, also an ``embed_with`` and a ``query`` of their own, or ``takes_tokens``
    and ``takes_queries`` that are False.

    Attributes:
        prefix: Number of class tokens and the like that stay in front of the prompts.
    """

    prefix: int = 0

    @property
    def takes_tokens(self) -> bool:
        return True

    @property
    def takes_queries(self) -> bool:
        return True

    @property
    def layer_widths(self) -> tuple[int, ...]:
        return (self.out_dim,) * len(self.layers)

    def run_layer(self, layer: int, state: TokenState, prompts: Tensor | None) -> TokenState:
        return state.with_tokens(
            run_concatenated(self.layers[layer], state.tokens, prompts, self.prefix)
        )
