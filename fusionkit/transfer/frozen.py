"""Nothing is trained."""

from __future__ import annotations

from typing import ClassVar, Self

import torch

from fusionkit.encoders.base import (
    ComplementEncoder,
    ExtraTokens,
    Features,
    Inputs,
    Prompts,
    TokenEdit,
    stored_features,
)
from fusionkit.transfer.base import Transfer, run


class FrozenWeights(Transfer):
    """What modes that leave the encoder's own weights alone have in common."""

    def __init__(self, encoder: ComplementEncoder) -> None:
        super().__init__(encoder)
        encoder.requires_grad_(False)
        encoder.eval()

    def train(self, mode: bool = True) -> Self:
        """Training mode never reaches the encoder: its dropout and batch statistics stay off."""
        super().train(mode)
        self.encoder.eval()
        return self


class Frozen(FrozenWeights):
    """Nothing of the encoder is trained, in weights or in buffers.

    Args:
        encoder: Any encoder.
    """

    plain: ClassVar[bool] = True

    def __init__(self, encoder: ComplementEncoder) -> None:
        super().__init__(encoder)

    def encode(
        self,
        inputs: Inputs,
        prompts: Prompts | None = None,
        edit: TokenEdit | None = None,
        extra: ExtraTokens | None = None,
    ) -> Features:
        if (stored := stored_features(inputs)) is not None:
            return stored
        if (
            prompts is None and edit is None and extra is None
        ):  # nothing to differentiate, so keep no activations
            with torch.no_grad():
                return run(self.encoder, inputs)
        return run(self.encoder, inputs, prompts, edit, extra)
