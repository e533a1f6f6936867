"""The interface of a transfer mode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from fusionkit.encoders.base import (
    ComplementEncoder,
    Features,
    Inputs,
    MainEncoder,
    Prompts,
    TokenEdit,
)
from fusionkit.registry import API_VERSION


class Transfer(nn.Module, ABC):
    """Wraps an encoder and decides what of it is trained.

    A constructor takes the encoder first, then what a config may set.

    Attributes:
        encoder: The wrapped encoder.
        needs_layers: Whether the mode works on main encoders only.
        takes_prompts: Whether a fusion may prompt the wrapped encoder.
    """

    api_version: ClassVar[int] = API_VERSION
    needs_layers: ClassVar[bool] = False
    takes_prompts: ClassVar[bool] = True

    encoder: ComplementEncoder

    def __init__(self, encoder: ComplementEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def out_dim(self) -> int:
        """C, the width of the pooled feature."""
        return self.encoder.out_dim

    @abstractmethod
    def encode(
        self, inputs: Inputs, prompts: Prompts | None = None, edit: TokenEdit | None = None
    ) -> Features:
        """Features of a batch.

        Args:
            inputs: What the encoder's preprocessor collated.
            prompts: Only for a main encoder whose mode takes them.
            edit: Only for a main encoder; see :meth:`MainEncoder.encode`.
        """

    def forward(
        self, inputs: Inputs, prompts: Prompts | None = None, edit: TokenEdit | None = None
    ) -> Features:
        """Same as :meth:`encode`, so that hooks and wrappers see the call."""
        return self.encode(inputs, prompts, edit)


def run(
    encoder: ComplementEncoder,
    inputs: Inputs,
    prompts: Prompts | None = None,
    edit: TokenEdit | None = None,
) -> Features:
    """Call an encoder in the form its interface has: complements take neither prompts nor edits."""
    if isinstance(encoder, MainEncoder):
        return encoder.encode(inputs, prompts, edit)
    return encoder.encode(inputs)
