"""Prefix-tuning: frozen weights, the prompts of all layers made by one MLP."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from fusionkit.encoders.base import (
    ExtraTokens,
    Features,
    Inputs,
    MainEncoder,
    TokenEdit,
    TokenState,
)
from fusionkit.errors import ConfigError
from fusionkit.transfer.prompt import OwnPrompts


class Prefix(OwnPrompts):
    """Prefix-tuning (Li and Liang 2021, arXiv 2101.00190, section 4.3); the encoder is frozen.

    ``P = W_2 tanh(W_1 P' + b_1) + b_2``: row j of P' (length, D_0) becomes row j of the prompts of
    all layers, side by side. There, an MLP makes keys and values of each layer, twice as many
    numbers; here it makes one row for each layer, which passes through the layer's own maps to
    keys and values, as every prompt does (arXiv 2312.03734, section 3.1, which calls its prompts
    at all layers "prefix-tuning" in language). What they keep for inference is P alone; here the
    MLP stays.

    Args:
        encoder: An encoder with layers to prompt.
        length: Prompt rows per layer.
        hidden_dim: Width between the two maps of the MLP.
        dropout: Probability that an entry of a prompt is dropped in training.

    Raises:
        ConfigError: The encoder has no layers.
    """

    mode: ClassVar[str] = "prefix"

    def __init__(
        self,
        encoder: MainEncoder,
        length: int = 4,  # as the transfer prompt
        hidden_dim: int = 512,  # authors' code; there 800 for summarization
        dropout: float = 0.1,  # as the transfer prompt; authors' code: 0
    ) -> None:
        super().__init__(encoder, length, dropout)
        if hidden_dim < 1:
            raise ConfigError(f"hidden_dim is at least 1, given {hidden_dim}.")
        widths = encoder.layer_widths
        # N(0, 1), as torch starts embeddings: authors' code.
        self.rows = nn.Embedding(length, widths[0])
        self.mlp = nn.Sequential(
            nn.Linear(widths[0], hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, sum(widths))
        )

    def encode_prompted(
        self, inputs: Inputs, edit: TokenEdit | None, extra: ExtraTokens | None
    ) -> Features:
        # Once for all layers, and outside of what checkpointing recomputes.
        made = self.dropout(self.mlp(self.rows.weight))
        layers = made.split(self.encoder.layer_widths, dim=-1)

        def prompts(layer: int, state: TokenState) -> tuple[Tensor]:
            return (layers[layer].unsqueeze(0),)

        return self.encoder.encode(inputs, prompts, edit, extra)
