"""Contract cases of timm's encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from cases import IMAGES, shaken
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.encoders.attention import run_concatenated
from fusionkit.encoders.base import ComplementEncoder, TokenState
from fusionkit.encoders.timm_cnn import TimmCNN
from fusionkit.encoders.timm_swin import TimmSwin
from fusionkit.encoders.timm_vit import TimmViT
from fusionkit.testing import Case


def timm_case(
    encoder: Callable[..., ComplementEncoder],
    model: str,
    options: dict[str, Any],
    reference_layer: Any = None,
    image_size: int | None = None,
) -> Case:
    def upstream(backbone: nn.Module, inputs: Any) -> Tensor:
        plain = timm.create_model(model, num_classes=0, **options).double().eval()
        plain.load_state_dict(backbone.state_dict())
        return plain(inputs["pixels"])

    return Case(
        make=lambda: shaken(
            encoder(model, weights="random", options=options, image_size=image_size)
        ),
        samples=IMAGES,
        upstream=upstream,
        reference_layer=reference_layer,
        upstream_keys=tuple(timm.create_model(model, num_classes=0, **options).state_dict()),
    )


def concatenated_vit(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    block, prefix = encoder.backbone.blocks[layer], encoder.backbone.num_prefix_tokens
    return state.with_tokens(run_concatenated(block, state.tokens, prompts, prefix))


def vit(model: str = "vit_tiny_patch16_224", **options: Any) -> Case:
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm_case(TimmViT, model, {**tiny, **options}, concatenated_vit)


def concatenated_swin(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    """Window after window of image after image, with the prompts among its tokens."""
    stages = encoder.backbone.layers
    stage, block = [(stage, block) for stage in stages for block in stage.blocks][layer]
    x, n, shift = state.tokens, prompts.shape[1], tuple(block.shift_size)
    side, _ = block.window_size
    rows = torch.roll(block.norm1(x), (-shift[0], -shift[1]), (1, 2))
    images = []
    for image, extra in zip(rows, block.norm1(prompts), strict=True):
        strips, window = [], 0
        for top in range(0, image.shape[0], side):
            strip = []
            for left in range(0, image.shape[1], side):
                cut = image[top : top + side, left : left + side]
                mask = None if block.attn_mask is None else block.attn_mask[window]
                out = window_attention(block.attn, torch.cat([extra, cut.flatten(0, 1)]), n, mask)
                strip.append(out.view(cut.shape))
                window += 1
            strips.append(torch.cat(strip, dim=1))
        images.append(torch.cat(strips, dim=0))
    x = x + torch.roll(torch.stack(images), shift, (1, 2))
    x = x + block.mlp(block.norm2(x))
    following = [*stages][[*stages].index(stage) + 1 :]
    return state.with_tokens(
        following[0].downsample(x) if following and block is stage.blocks[-1] else x
    )


def window_attention(attn: Any, rows: Tensor, n: int, mask: Tensor | None) -> Tensor:
    """(n + N, D), the prompts first, to the (N, D) of the tokens."""
    q, k, v = attn.qkv(rows).view(len(rows), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
    size = len(rows) - n
    bias = attn.relative_position_bias_table[attn.relative_position_index.view(-1)]
    bias = bias.view(size, size, -1).permute(2, 0, 1)
    bias = F.pad(bias if mask is None else bias + mask, (n, 0, n, 0))
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5 + bias
    return attn.proj((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))[n:]


def swin() -> Case:
    options = {
        "img_size": 32,
        "patch_size": 4,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (2, 1),
        "num_heads": (2, 4),
    }
    return timm_case(TimmSwin, "swin_tiny_patch4_window7_224", options, concatenated_swin)


RESNET = {"channels": (8, 8, 16, 16), "stem_width": 8}

CASES: dict[str, dict[str, Callable[[str], Case]]] = {
    "timm_vit": {
        "plain": lambda _: vit(),
        "registers": lambda _: vit(reg_tokens=4, no_embed_class=True),
        "distilled": lambda _: vit("deit_tiny_distilled_patch16_224"),
    },
    "timm_swin": {"shifted": lambda _: swin()},
    "timm_cnn": {
        "resnet": lambda _: timm_case(TimmCNN, "resnet10t", RESNET, image_size=32),
        "mobilenet": lambda _: timm_case(TimmCNN, "mobilenetv3_small_050", {}, image_size=32),
    },
}
