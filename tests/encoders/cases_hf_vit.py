"""Contract cases of Vision Transformers of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cases import IMAGES, shaken
from torch import Tensor, nn
from transformers import AutoModel

from fusionkit.encoders.attention import run_concatenated
from fusionkit.encoders.base import TokenState
from fusionkit.encoders.hf_vit import HfViT
from fusionkit.testing import Case

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PLAIN = {**SIZES, "intermediate_size": 48, "image_size": 32, "patch_size": 8, "qkv_bias": True}
DINOV2 = {**SIZES, "mlp_ratio": 2, "image_size": 32, "patch_size": 8}
NETS: dict[str, dict[str, Any]] = {
    "vit": {"model_type": "vit", **PLAIN},
    "deit": {"model_type": "deit", **PLAIN},
    "dinov2": {"model_type": "dinov2", **DINOV2},
    "swiglu": {"model_type": "dinov2", **DINOV2, "use_swiglu_ffn": True},
    "registers": {"model_type": "dinov2_with_registers", **DINOV2, "num_register_tokens": 3},
    "dinov3": {
        **{"model_type": "dinov3_vit", **SIZES, "intermediate_size": 48, "image_size": 32},
        **{"patch_size": 8, "num_register_tokens": 3, "use_gated_mlp": True},
    },
}


def plain_vit(backbone: Any) -> Any:
    """Upstream's own model in its own attention, with the weights of ``backbone``."""
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    pooler = {"add_pooling_layer": False} if config.model_type in ("vit", "deit") else {}
    plain = AutoModel.from_config(config, attn_implementation="sdpa", **pooler).double().eval()
    plain.load_state_dict(backbone.state_dict())
    return plain


def first_token(backbone: nn.Module, inputs: Any) -> Tensor:
    resized = backbone.config.model_type in ("vit", "deit")
    more = {"interpolate_pos_encoding": True} if resized else {}
    return plain_vit(backbone)(inputs["pixels"], **more).last_hidden_state[:, 0]


def concatenated_vit(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    model = plain_vit(encoder.backbone)
    stacks = {"dinov3_vit": "model.layer", "vit": "layers", "deit": "layers"}
    block = model.get_submodule(stacks.get(model.config.model_type, "encoder.layer"))[layer]
    more = state.cache  # the rotation of DINOv3, which is for the patches at the end

    def run(rows: Tensor) -> Tensor:
        return block(rows, **more)

    return state.with_tokens(run_concatenated(run, state.tokens, prompts, prefix=1))


def vit(net: str, image_size: int | None = None) -> Case:
    def make() -> HfViT:
        return shaken(HfViT(config=dict(NETS[net]), weights="random", image_size=image_size))

    keys = plain_vit(make().double().backbone).state_dict()
    return Case(make, IMAGES, first_token, concatenated_vit, tuple(keys))


CASES: dict[str, dict[str, Callable[[str], Case]]] = {
    "hf_vit": {
        **{net: lambda _, net=net: vit(net) for net in NETS},
        "vit_resized": lambda _: vit("vit", image_size=48),
        "dinov2_resized": lambda _: vit("dinov2", image_size=24),
    },
}
