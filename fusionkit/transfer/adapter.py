"""Bottleneck adapters behind frozen layers."""

from __future__ import annotations

from dataclasses import replace

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
from fusionkit.errors import ConfigError, EncoderError
from fusionkit.transfer.base import run
from fusionkit.transfer.frozen import FrozenWeights


class Bottleneck(nn.Module):
    """``x + up(relu(down(x)))``, which starts as the identity.

    Args:
        width: D, of what goes in and comes out.
        dim: Width between the two maps.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, dim), nn.Linear(dim, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        update: Tensor = self.up(self.down(x).relu())
        return x + update.to(x)  # under autocast, a sum of two dtypes would change the tokens'


class Adapter(FrozenWeights):
    """A bottleneck with a residual behind every layer; the encoder itself is frozen.

    One after each layer, on the layer's output, as Pfeiffer et al. place it (arXiv 2005.00247)
    of the two that Houlsby et al. have in a layer (arXiv 1902.00751). An encoder without layers
    gets one behind its feature, as CLIP-Adapter (arXiv 2110.04544); tokens pass through the same.

    Args:
        encoder: Any encoder.
        dim: Width of the bottleneck.

    Raises:
        ConfigError: ``dim`` is less than 1.
    """

    def __init__(self, encoder: ComplementEncoder, dim: int = 64) -> None:  # arXiv 1902.00751
        super().__init__(encoder)
        if dim < 1:
            raise ConfigError(f"dim is at least 1, given {dim}.")
        if isinstance(encoder, MainEncoder):
            # What leaves a layer is as wide as what enters the next.
            widths = (*encoder.layer_widths[1:], encoder.layer_widths[-1])
        else:
            widths = (encoder.out_dim,)
        self.adapters = nn.ModuleList(Bottleneck(width, dim) for width in widths)

    def encode(
        self,
        inputs: Inputs,
        prompts: Prompts | None = None,
        edit: TokenEdit | None = None,
        extra: ExtraTokens | None = None,
    ) -> Features:
        if not isinstance(self.encoder, MainEncoder):
            features, adapt = run(self.encoder, inputs), self.adapters[0]
            tokens = None if features.tokens is None else adapt(features.tokens)
            return replace(features, pooled=adapt(features.pooled), tokens=tokens)

        def adapted(layer: int, state: TokenState) -> TokenState:
            state = self._behind(layer - 1, state) if layer else state
            return state if edit is None else edit(layer, state)

        return self.encoder.encode(inputs, prompts, adapted, extra)

    def _behind(self, layer: int, state: TokenState) -> TokenState:
        adapter, width = self.adapters[layer], state.tokens.shape[-1]
        assert isinstance(adapter, Bottleneck)
        if width != adapter.down.in_features:
            raise EncoderError(
                f"Layer {layer} of {type(self.encoder).__name__} returns tokens {width} wide, its "
                f"adapter is {adapter.down.in_features} wide, as layer_widths says. A projection "
                f"behind the last layer belongs into readout."
            )
        return state.with_tokens(adapter(state.tokens))
