"""Every weight is trained, or those of the last layers."""

from __future__ import annotations

from typing import ClassVar, Self

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
from fusionkit.errors import ConfigError
from fusionkit.transfer.base import Transfer, run


class FineTune(Transfer):
    """Every weight of the encoder is trained, or every weight of its last layers.

    Under ``last_layers`` the rest of the encoder, embeddings and final norm included, stays
    frozen and in evaluation mode. Layers that share their weights (ALBERT) count once for each
    use, and training one of them trains all.

    Args:
        encoder: Any encoder; one with layers if ``last_layers`` is given.
        last_layers: Train only the last n layers; null trains everything.

    Raises:
        ConfigError: ``last_layers`` is more than the encoder has, or less than 1.
    """

    plain: ClassVar[bool] = True

    def __init__(self, encoder: ComplementEncoder, last_layers: int | None = None) -> None:
        super().__init__(encoder)
        self._trained = [encoder] if last_layers is None else _last(encoder, last_layers)
        encoder.requires_grad_(False)
        for module in self._trained:
            module.requires_grad_(True)
        self.train()  # pretrained models arrive in evaluation mode

    def train(self, mode: bool = True) -> Self:
        """Training mode reaches what is trained and nothing else."""
        super().train(mode)
        self.encoder.eval()
        for module in self._trained:
            module.train(mode)
        return self

    def encode(
        self,
        inputs: Inputs,
        prompts: Prompts | None = None,
        edit: TokenEdit | None = None,
        extra: ExtraTokens | None = None,
    ) -> Features:
        return run(self.encoder, inputs, prompts, edit, extra)


def _last(encoder: ComplementEncoder, count: int) -> list[nn.Module]:
    if not isinstance(encoder, MainEncoder):
        raise ConfigError(
            f"last_layers is {count}, but {type(encoder).__name__} has no layers; "
            f"leave last_layers out to train all of it."
        )
    layers = list(encoder.layers)
    if not 1 <= count <= len(layers):
        raise ConfigError(
            f"last_layers is {count}; {type(encoder).__name__} has {len(layers)} layers, so give "
            f"1 to {len(layers)}, or leave it out to train all of the encoder."
        )
    return layers[-count:]
