"""Nothing is trained."""

from __future__ import annotations

from typing import Self

import torch

from fusionkit.encoders.base import ComplementEncoder, Features, Inputs, Prompts
from fusionkit.transfer.base import Transfer, run


def freeze(encoder: ComplementEncoder) -> None:
    """Take all weights out of training and switch dropout and batch statistics off."""
    encoder.requires_grad_(False)
    encoder.eval()


class Frozen(Transfer):
    """Nothing of the encoder is trained, in weights or in buffers.

    Args:
        encoder: Any encoder.
    """

    def __init__(self, encoder: ComplementEncoder) -> None:
        super().__init__(encoder)
        freeze(encoder)

    def train(self, mode: bool = True) -> Self:
        """Training mode never reaches the encoder: its dropout stays off."""
        super().train(mode)
        self.encoder.eval()
        return self

    def encode(self, inputs: Inputs, prompts: Prompts | None = None) -> Features:
        if prompts is None:  # nothing to differentiate, so keep no activations
            with torch.no_grad():
                return run(self.encoder, inputs, None)
        return run(self.encoder, inputs, prompts)
