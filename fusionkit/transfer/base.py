"""The interface of a transfer mode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from fusionkit.encoders.base import (
    ComplementEncoder,
    ExtraTokens,
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
        plain: Whether the mode changes weights only, so that a fusion may run the layers itself.
        starts_from_samples: Whether a new run calls :meth:`start_from` before it trains.
    """

    api_version: ClassVar[int] = API_VERSION
    needs_layers: ClassVar[bool] = False
    takes_prompts: ClassVar[bool] = True
    plain: ClassVar[bool] = False
    starts_from_samples: bool = False

    encoder: ComplementEncoder

    def __init__(self, encoder: ComplementEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def out_dim(self) -> int:
        """C, the width of the pooled feature."""
        return self.encoder.out_dim

    def start_from(self, inputs: Inputs) -> None:
        """Set what is trained by what the encoder makes of samples, without gradients.

        Args:
            inputs: Samples of the training split, collated by the encoder's preprocessor.
        """

    @abstractmethod
    def encode(
        self,
        inputs: Inputs,
        prompts: Prompts | None = None,
        edit: TokenEdit | None = None,
        extra: ExtraTokens | None = None,
    ) -> Features:
        """Features of a batch.

        Args:
            inputs: What the encoder's preprocessor collated.
            prompts: Only for a main encoder whose mode takes them.
            edit: Only for a main encoder; see :meth:`MainEncoder.encode`.
            extra: Only for a main encoder that takes further tokens.
        """

    def forward(
        self,
        inputs: Inputs,
        prompts: Prompts | None = None,
        edit: TokenEdit | None = None,
        extra: ExtraTokens | None = None,
    ) -> Features:
        """Same as :meth:`encode`, so that hooks and wrappers see the call."""
        return self.encode(inputs, prompts, edit, extra)


def run(
    encoder: ComplementEncoder,
    inputs: Inputs,
    prompts: Prompts | None = None,
    edit: TokenEdit | None = None,
    extra: ExtraTokens | None = None,
) -> Features:
    """Call an encoder in the form its interface has: a complement takes its inputs only."""
    if isinstance(encoder, MainEncoder):
        return encoder.encode(inputs, prompts, edit, extra)
    return encoder.encode(inputs)
