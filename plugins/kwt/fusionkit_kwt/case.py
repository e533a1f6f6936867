"""The contract case: against torch's own Transformer layer."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.encoders.attention import run_concatenated
from fusionkit.encoders.base import Inputs, MainEncoder, TokenState
from fusionkit.testing import Case, samples
from fusionkit_kwt.encoder import KWT
from fusionkit_kwt.model import CLIP

DEPTH = 2


def plain_layer(block: nn.Module | None) -> nn.TransformerEncoderLayer:
    """torch's own post-norm layer, with the weights of ``block``."""
    gelu = partial(F.gelu, approximate="tanh")
    layer = nn.TransformerEncoderLayer(64, 1, 256, 0.0, gelu, 1e-6, batch_first=True).double()
    if block is not None:
        layer.load_state_dict(block.state_dict())
    return layer.eval()


def upstream(backbone: Any, inputs: Inputs) -> Tensor:
    """(B, 64), the class token."""
    waveform = inputs["waveform"]
    x = backbone.embed(F.pad(waveform, (0, CLIP - waveform.shape[1])))
    for block in backbone.layers:
        x = plain_layer(block)(x)
    return x[:, 0]


def concatenated(
    encoder: MainEncoder, layer: int, state: TokenState, prompts: Tensor
) -> TokenState:
    """A layer run on prompts and tokens alike."""
    block = plain_layer(encoder.layers[layer])
    return state.with_tokens(run_concatenated(block, state.tokens, prompts, prefix=1))


def keys() -> list[str]:
    """Of the published weights without their head."""
    frontend = ("window", "dft_real", "dft_imag", "mel", "dct", "scale")
    names = ["meta", "cls_token", "pos_embed", "patch_embed.weight", "patch_embed.bias"]
    names += [f"frontend.{name}" for name in frontend]
    return names + [f"layers.{i}.{k}" for i in range(DEPTH) for k in plain_layer(None).state_dict()]


def case() -> Case:
    """KWT-1 with two layers and random weights."""
    return Case(partial(KWT, depth=DEPTH), samples("audio"), upstream, concatenated, keys())
