"""The affine parameters of the norms are trained."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from fusionkit.encoders.base import (
    ComplementEncoder,
    ExtraTokens,
    Features,
    Inputs,
    Prompts,
    TokenEdit,
)
from fusionkit.errors import ConfigError
from fusionkit.transfer.base import run
from fusionkit.transfer.frozen import FrozenWeights


class NormOnly(FrozenWeights):
    """Scale and shift of every norm are trained (arXiv 2312.11420; of batch norms, 2003.00152).

    The encoder stays in evaluation mode, so that dropout is off and running statistics rest.

    Args:
        encoder: An encoder with norms.

    Raises:
        ConfigError: The encoder has no norm with parameters.
    """

    plain: ClassVar[bool] = True

    def __init__(self, encoder: ComplementEncoder) -> None:
        super().__init__(encoder)
        found = [weight for module in encoder.modules() for weight in affine(module)]
        if not found:
            raise ConfigError(
                f"The transfer 'norm_only' trains norms; {type(encoder).__name__} (its model is a "
                f"{type(encoder.backbone).__name__}) has none with parameters. Use lora or adapter."
            )
        for weight in found:
            weight.requires_grad_(True)

    def encode(
        self,
        inputs: Inputs,
        prompts: Prompts | None = None,
        edit: TokenEdit | None = None,
        extra: ExtraTokens | None = None,
    ) -> Features:
        return run(self.encoder, inputs, prompts, edit, extra)


_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def affine(module: nn.Module) -> list[nn.Parameter]:
    """Scale and shift of a norm; nothing if the module is none.

    Libraries write norms of their own (``LlamaRMSNorm``, ``T5LayerNorm``), known by their name
    and by owning vectors only: a ``PreNormBlock`` owns other modules.
    """
    own = list(module.parameters(recurse=False))
    if isinstance(module, _NORMS):
        return own
    is_leaf = len(own) == sum(1 for _ in module.parameters())
    named = "norm" in type(module).__name__.lower()
    return own if named and is_leaf and all(weight.ndim == 1 for weight in own) else []
