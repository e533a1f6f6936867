"""Vanilla prompt tuning: frozen weights, static prompts at every layer or at the input."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fusionkit.encoders.base import (
    ComplementEncoder,
    ExtraTokens,
    Features,
    Inputs,
    MainEncoder,
    Prompts,
    TokenEdit,
    TokenState,
)
from fusionkit.errors import ConfigError
from fusionkit.prompts.static import INIT_RANGE, StaticPrompts
from fusionkit.transfer.frozen import FrozenWeights


class OwnPrompts(FrozenWeights):
    """What modes with prompts of their own have in common.

    Attributes:
        mode: Its name, for messages.
    """

    needs_layers: ClassVar[bool] = True
    takes_prompts: ClassVar[bool] = False
    mode: ClassVar[str]

    encoder: MainEncoder

    def __init__(self, encoder: ComplementEncoder, length: int, dropout: float) -> None:
        if not isinstance(encoder, MainEncoder):
            raise ConfigError(
                f"The transfer {self.mode!r} needs layers to prompt; {type(encoder).__name__} has "
                f"none. Use a mode that needs none, such as frozen, lora or fine_tune."
            )
        if length < 1:
            raise ConfigError(f"length is at least 1, given {length}.")
        super().__init__(encoder)
        self.dropout = nn.Dropout(dropout)

    def encode(
        self,
        inputs: Inputs,
        prompts: Prompts | None = None,
        edit: TokenEdit | None = None,
        extra: ExtraTokens | None = None,
    ) -> Features:
        if prompts is not None:
            raise ConfigError(
                f"An encoder under the transfer {self.mode!r} has its own prompts and takes no "
                f"others; the main encoder of a prompting fusion has another mode, such as frozen "
                f"or lora."
            )
        return self.encode_prompted(inputs, edit, extra)

    @abstractmethod
    def encode_prompted(
        self, inputs: Inputs, edit: TokenEdit | None, extra: ExtraTokens | None
    ) -> Features:
        """Features of a batch, with the mode's own prompts."""


class Prompt(OwnPrompts):
    """Static prompts, deep or shallow; the encoder itself is frozen.

    Deep (arXiv 2312.03734, section 4.1; VPT-deep, section 3.2 of arXiv 2203.12119): each layer
    has rows of its own. Shallow (VPT-shallow, ibid.): rows enter the first layer as further tokens
    and travel through all. They stand where the encoder puts further tokens: text encoders number
    them like words, images give them no position. A fusion's further tokens follow them, and both
    see each other as far as the encoder looks.

    Args:
        encoder: An encoder with layers to prompt.
        length: Prompt rows, per layer if deep.
        dropout: Probability that an entry of a prompt is dropped in training.
        init: How prompts start: ``uniform``, or as ``tokens`` that enter their layer, drawn from
            training samples.
        init_range: Under ``uniform``, prompts start as U(-init_range, init_range).
        shallow: Whether rows enter at the first layer only, instead of fresh ones at each.

    Raises:
        ConfigError: The encoder has no layers; or ``shallow``, and its input takes no further
            tokens, or ``init`` is ``tokens``.
    """

    mode: ClassVar[str] = "prompt"

    def __init__(
        self,
        encoder: MainEncoder,
        length: int = 4,  # authors' code
        dropout: float = 0.1,  # authors' code
        init: Literal["uniform", "tokens"] = "uniform",  # authors' code
        init_range: float = INIT_RANGE,
        shallow: bool = False,
    ) -> None:
        super().__init__(encoder, length, dropout)
        if init_range < 0:
            raise ConfigError(f"init_range is at least 0, given {init_range}.")
        if shallow and not encoder.takes_tokens:
            raise ConfigError(
                f"The transfer 'prompt' with shallow adds tokens to an encoder's input; this "
                f"{type(encoder).__name__} takes none. Use it without shallow, or on one of bert "
                f"(but for ALBERT and small ELECTRA), gpt2, clip_text, open_clip_text, timm_vit, "
                f"hf_vit (but for DINOv3), clip_image, open_clip_image and ast."
            )
        if shallow and init == "tokens":
            raise ConfigError(
                "init: tokens is for prompts at each layer; leave out shallow, or set "
                "init: uniform."
            )
        self.shallow = shallow
        self.starts_from_samples = init == "tokens"
        encoder.reserved += length if shallow else 0
        widths = encoder.layer_widths[:1] if shallow else encoder.layer_widths
        self.prompts = StaticPrompts(widths, length, init_range)

    def start_from(self, inputs: Inputs) -> None:
        rows = self.prompts.rows.in_order()

        def draw(layer: int, state: TokenState) -> None:
            tokens = state.tokens.flatten(1, -2)  # (B, L, D)
            real = tokens.flatten(0, 1) if state.keep is None else tokens[state.keep]
            rows[layer].copy_(real[torch.randint(len(real), rows[layer].shape[:1])])

        self.encoder.encode(inputs, draw)

    def encode_prompted(
        self, inputs: Inputs, edit: TokenEdit | None, extra: ExtraTokens | None
    ) -> Features:
        if not self.shallow:
            layers = self.prompts(self.dropout)
            return self.encoder.encode(inputs, lambda layer, _: (layers[layer],), edit, extra)
        rows = self.prompts(self.dropout)[0].expand(len(next(iter(inputs.values()))), -1, -1)
        return self.encoder.encode(inputs, None, edit, _in_front(rows, extra))


def _in_front(rows: Tensor, extra: ExtraTokens | None) -> ExtraTokens:
    """Rows (B, n, D), which all tokens see, and then the further tokens of others."""
    if extra is None:
        return ExtraTokens(rows)
    visible, blind, count = extra.visible, extra.blind, rows.shape[1]
    if visible is not None:
        visible = nn.functional.pad(visible, (count, 0, count, 0), value=True)
    if blind is not None:
        blind = nn.functional.pad(blind, (count, 0), value=False)
    return ExtraTokens(torch.cat([rows, extra.rows.to(rows.dtype)], dim=1), visible, blind)
