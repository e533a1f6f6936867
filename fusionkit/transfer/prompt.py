"""Vanilla prompt tuning: frozen weights, static prompts at every layer."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from fusionkit.encoders.base import Features, Inputs, MainEncoder, Prompts, TokenEdit, TokenState
from fusionkit.errors import ConfigError
from fusionkit.prompts.static import INIT_RANGE, StaticPrompts
from fusionkit.transfer.frozen import FrozenWeights


class Prompt(FrozenWeights):
    """Static deep prompts; the encoder itself is frozen (arXiv 2312.03734, section 4.1).

    Args:
        encoder: An encoder with layers to prompt.
        length: Prompt rows per layer.
        dropout: Probability that an entry of a prompt is dropped in training.
        init_range: Prompts start as U(-init_range, init_range).

    Raises:
        ConfigError: The encoder has no layers.
    """

    needs_layers: ClassVar[bool] = True
    takes_prompts: ClassVar[bool] = False

    encoder: MainEncoder

    def __init__(
        self,
        encoder: MainEncoder,
        length: int = 4,  # authors' code
        dropout: float = 0.1,  # authors' code
        init_range: float = INIT_RANGE,
    ) -> None:
        if not isinstance(encoder, MainEncoder):
            raise ConfigError(
                f"The transfer 'prompt' needs layers to prompt; {type(encoder).__name__} has none. "
                f"Use a mode that needs none, such as frozen, lora or fine_tune."
            )
        if length < 1 or init_range < 0:
            raise ConfigError(
                f"length is at least 1 and init_range at least 0, given {length} and {init_range}."
            )
        super().__init__(encoder)
        self.prompts = StaticPrompts(encoder.layer_widths, length, init_range)
        self.dropout = nn.Dropout(dropout)

    def encode(
        self, inputs: Inputs, prompts: Prompts | None = None, edit: TokenEdit | None = None
    ) -> Features:
        if prompts is not None:
            raise ConfigError(
                "An encoder under the transfer 'prompt' has its own prompts and takes no others; "
                "the main encoder of a prompting fusion has another mode, such as frozen or lora."
            )
        return self.encoder.encode(inputs, self._rows, edit)

    def _rows(self, layer: int, state: TokenState) -> Tensor:
        rows: Tensor = self.dropout(self.prompts(layer, len(state.tokens)))
        return rows
