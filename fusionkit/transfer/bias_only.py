"""BitFit: the bias terms are trained."""

from __future__ import annotations

from typing import ClassVar

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


class BiasOnly(FrozenWeights):
    """BitFit (arXiv 2106.10199): every bias of the encoder is trained, those of its norms included.

    The encoder stays in evaluation mode, so that dropout is off and running statistics rest.

    Args:
        encoder: An encoder with biases.

    Raises:
        ConfigError: The encoder has no bias.
    """

    plain: ClassVar[bool] = True

    def __init__(self, encoder: ComplementEncoder) -> None:
        super().__init__(encoder)
        # By the end of the name: attention also has in_proj_bias, q_bias and v_bias.
        found = [
            weight for name, weight in encoder.named_parameters() if name.lower().endswith("bias")
        ]
        if not found:
            raise ConfigError(
                f"The transfer 'bias_only' trains biases; {type(encoder).__name__} (its model is a "
                f"{type(encoder.backbone).__name__}) has none. Use lora or adapter."
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
