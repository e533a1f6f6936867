"""Every weight is trained."""

from __future__ import annotations

from fusionkit.encoders.base import ComplementEncoder, Features, Inputs, Prompts, TokenEdit
from fusionkit.transfer.base import Transfer, run


class FineTune(Transfer):
    """Every weight of the encoder is trained.

    Args:
        encoder: Any encoder.
    """

    def __init__(self, encoder: ComplementEncoder) -> None:
        super().__init__(encoder)
        encoder.requires_grad_(True)
        encoder.train()  # pretrained models arrive in evaluation mode

    def encode(
        self, inputs: Inputs, prompts: Prompts | None = None, edit: TokenEdit | None = None
    ) -> Features:
        return run(self.encoder, inputs, prompts, edit)
