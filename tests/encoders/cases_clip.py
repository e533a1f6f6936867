"""Contract cases of the towers of CLIP, in transformers and in open_clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip
import torch
from cases import IMAGES, TEXTS, WORDS, shaken
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from fusionkit.encoders.attention import run_concatenated
from fusionkit.encoders.base import TokenState
from fusionkit.encoders.clip_hf import ClipImage, ClipText
from fusionkit.encoders.clip_open import OpenClipImage, OpenClipText
from fusionkit.testing import Case

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 48, "projection_dim": 24}
IMAGE = {"model_type": "clip_vision_model", **SIZES, "image_size": 32, "patch_size": 8}
TEXT = {"model_type": "clip_text_model", **SIZES, "max_position_embeddings": 16}
TEXT |= {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


def plain_clip(backbone: Any) -> Any:
    """Upstream's own model in its own attention, with the weights of ``backbone``."""
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    plain = type(backbone)._from_config(config, attn_implementation="sdpa").double().eval()
    plain.load_state_dict(backbone.state_dict())
    return plain


def image_embeds(backbone: nn.Module, inputs: Any) -> Tensor:
    plain = plain_clip(backbone)
    return plain(pixel_values=inputs["pixels"], interpolate_pos_encoding=True).image_embeds


def text_embeds(backbone: nn.Module, inputs: Any) -> Tensor:
    return plain_clip(backbone)(**inputs).text_embeds


def causal(length: int, extra: int) -> Tensor:
    """(extra + L, extra + L), 0 or -inf, the first ``extra`` visible to all."""
    future = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)
    return F.pad(future, (extra, 0, extra, 0))


def concatenated_image(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    block = plain_clip(encoder.backbone).vision_model.encoder.layers[layer]

    def run(rows: Tensor) -> Tensor:
        return block(rows, None)

    return state.with_tokens(run_concatenated(run, state.tokens, prompts, prefix=1))


def concatenated_text(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    block = plain_clip(encoder.backbone).text_model.encoder.layers[layer]
    mask = causal(state.tokens.shape[1], prompts.shape[1])[None, None]

    def run(rows: Tensor) -> Tensor:
        return block(rows, mask)

    return state.with_tokens(run_concatenated(run, state.tokens, prompts))


def spread(table: nn.Embedding) -> None:
    """Tokens further apart than what a layer adds to them, so that check 3 can tell them apart."""
    table.weight.data.mul_(10)


def clip_image(image_size: int | None = None) -> Case:
    def make() -> ClipImage:
        return shaken(ClipImage(config=dict(IMAGE), weights="random", image_size=image_size))

    keys = CLIPVisionModelWithProjection(make().backbone.config).state_dict()
    return Case(make, IMAGES, image_embeds, concatenated_image, tuple(keys))


def clip_text(tokenizer: str) -> Case:
    def make() -> ClipText:
        encoder = shaken(ClipText(config=dict(TEXT), weights="random", tokenizer=tokenizer))
        spread(encoder.backbone.text_model.embeddings.token_embedding)
        return encoder

    keys = CLIPTextModelWithProjection(make().backbone.config).state_dict()
    return Case(make, TEXTS, text_embeds, concatenated_text, tuple(keys))


OPEN_IMAGE = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
OPEN_TEXT = {"context_length": 16, "width": 32, "layers": 2, "heads": 2}
CUSTOM = {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True}


def whole_clip(image: dict[str, Any], text: dict[str, Any]) -> Any:
    """Upstream's own model of both towers."""
    sizes = {"vision_cfg": {**OPEN_IMAGE, **image}, "text_cfg": {**OPEN_TEXT, **text}}
    return open_clip.CustomTextCLIP(embed_dim=24, **sizes).double().eval()


def open_layer(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    """Upstream's block on [prompts, tokens], the mask built by hand."""
    block = encoder.backbone.transformer.resblocks[layer]
    n, length = prompts.shape[1], state.tokens.shape[1]
    mask = causal(length, n) if encoder.modality == "text" else None

    def run(rows: Tensor) -> Tensor:
        return block(rows, attn_mask=mask)

    return state.with_tokens(run_concatenated(run, state.tokens, prompts))


def open_clip_image(image_size: int | None = None, **more: Any) -> Case:
    def upstream(backbone: nn.Module, inputs: Any) -> Tensor:
        plain = whole_clip(more if image_size is None else {**more, "image_size": image_size}, {})
        plain.visual.load_state_dict(backbone.state_dict())
        return plain.encode_image(inputs["pixels"])

    def make() -> OpenClipImage:
        config = {"embed_dim": 24, "vision_cfg": {**OPEN_IMAGE, **more}}
        return shaken(OpenClipImage(config=config, weights="random", image_size=image_size))

    keys = whole_clip(more, {}).visual.state_dict()
    return Case(make, IMAGES, upstream, open_layer, tuple(keys))


def open_clip_text(**more: Any) -> Case:
    def upstream(backbone: nn.Module, inputs: Any) -> Tensor:
        plain = whole_clip({}, more)
        plain.text.load_state_dict(backbone.state_dict())
        ids = inputs["input_ids"]
        return plain.encode_text(F.pad(ids, (0, plain.context_length - ids.shape[1])))

    def make() -> OpenClipText:
        config = {"embed_dim": 24, "text_cfg": {**OPEN_TEXT, **more}}
        encoder = shaken(OpenClipText(config=config, weights="random"))
        spread(encoder.backbone.token_embedding)
        return encoder

    keys = whole_clip({}, more).text.state_dict()
    return Case(make, TEXTS, upstream, open_layer, tuple(keys))


CASES: dict[str, dict[str, Callable[[str], Case]]] = {
    "clip_image": {
        "plain": lambda _: clip_image(),
        "resized": lambda _: clip_image(image_size=48),
    },
    "clip_text": {"plain": clip_text},
    "open_clip_image": {
        "plain": lambda _: open_clip_image(),
        "resized": lambda _: open_clip_image(image_size=48),
        "scaled": lambda _: open_clip_image(ls_init_value=0.5),
        "mean": lambda _: open_clip_image(
            pool_type="avg", final_ln_after_pool=True, no_ln_pre=True
        ),
        "coca": lambda _: open_clip_image(attentional_pool=True, attn_pooler_queries=4),
        "custom": lambda _: open_clip_image(**CUSTOM),
    },
    "open_clip_text": {
        "plain": lambda _: open_clip_text(),
        "custom": lambda _: open_clip_text(pool_type="eos", eos_id=49407, proj_bias=True, **CUSTOM),
    },
}
