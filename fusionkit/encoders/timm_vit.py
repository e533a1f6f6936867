"""Vision Transformers of timm, DeiT and registers included, as main encoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.encoders.attention import (
    PromptRows,
    join_parts,
    parts_of,
    project_parts,
    run_concatenated,
    split_heads,
)
from fusionkit.encoders.augment import Augment, check_augment
from fusionkit.encoders.base import (
    Features,
    Inputs,
    MainEncoder,
    Modality,
    TokenState,
)
from fusionkit.encoders.images import ImagePreprocessor, Whole
from fusionkit.encoders.state import split_first
from fusionkit.encoders.timm_common import build_backbone, channels_of, pixels_to_embed


class TimmViT(MainEncoder):
    """A ``VisionTransformer`` of timm: ViT, DeiT (distilled too), DINOv2, CLIP and SigLIP towers.

    Prompts are extra keys and values in timm's plain blocks; other blocks (parallel, post-norm,
    differential attention) get them by concatenation.
    """

    modality: ClassVar[Modality] = "image"
    takes_parts: ClassVar[bool] = True
    backbone: VisionTransformer

    def __init__(
        self,
        model: str = "vit_base_patch16_224",
        weights: str = "pretrained",
        image_size: int | None = None,
        augment: Augment = None,
        whole: Whole = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Build the model.

        Args:
            model: A name of timm (``deit_tiny_patch16_224``), ``hf-hub:OWNER/NAME``, a folder in
                timm's layout, or ``fusionkit/NAME``.
            weights: ``pretrained``, ``random``, or a local file or folder.
            image_size: Side of the input; position embeddings are resized. None for the model's.
            augment: For training: ``none``, ``crop`` (and flip), ``randaugment`` (and crop), or a
                list of transforms of torchvision; None for what the data set recommends.
            whole: All of an image, not the model's crop of it, in tests and where ``augment`` does
                not crop: ``squash`` stretches it, ``border`` puts bars beside it.
            options: Further keyword arguments of ``timm.create_model``.
        """
        super().__init__()
        self.backbone = build_backbone("timm_vit", model, weights, options, image_size)
        self.channels = channels_of(self.backbone, options)
        self.augment = check_augment(augment)
        self.whole = whole

    @property
    def out_dim(self) -> int:
        return int(self.backbone.num_features)

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.backbone.blocks)

    @property
    def takes_tokens(self) -> bool:
        return True

    @property
    def takes_queries(self) -> bool:
        return True

    @property
    def layer_widths(self) -> tuple[int, ...]:
        return (int(self.backbone.embed_dim),) * len(self.backbone.blocks)

    @property
    def prefix(self) -> int:
        """Number of class, distillation and register tokens in front."""
        return int(self.backbone.num_prefix_tokens)

    def embed(self, inputs: Inputs) -> TokenState:
        backbone = self.backbone
        x = backbone.patch_embed(pixels_to_embed(backbone, inputs, "TimmViT", self.channels))
        x = backbone.patch_drop(backbone._pos_embed(x))
        return TokenState(backbone.norm_pre(x))

    def run_layer(self, layer: int, state: TokenState, prompts: PromptRows | None) -> TokenState:
        block = self.backbone.blocks[layer]
        parts = parts_of(prompts)
        if not parts:
            return state.with_tokens(block(state.tokens))
        if _is_plain(block):
            return state.with_tokens(run_prompted(block, state.tokens, parts))
        rows = join_parts(parts, len(state.tokens))
        return state.with_tokens(run_concatenated(block, state.tokens, rows, self.prefix))

    @property
    def pools_apart(self) -> bool:
        heads = (VisionTransformer.forward_head, VisionTransformerDistilled.forward_head)
        plain = type(self.backbone).forward_head in heads
        return plain and bool(self.backbone.global_pool == "token")

    def pooled_apart(self, state: TokenState) -> tuple[TokenState, TokenState]:
        return split_first(state, self.prefix)

    def readout(self, state: TokenState) -> Features:
        tokens = self.backbone.norm(state.tokens)
        return Features(self.backbone.forward_head(tokens, pre_logits=True), tokens)

    def preprocessor(self, train: bool) -> ImagePreprocessor:
        augment = self.augment if train else None
        size = tuple(self.backbone.patch_embed.img_size)
        return ImagePreprocessor.of_backbone(
            self.backbone, self.channels, size, augment, self.whole
        )


def _is_plain(block: nn.Module) -> bool:
    """Whether a block computes what :func:`run_prompted` does."""
    # Compares the methods, not the classes: FSDP2 gives a wrapped module a subclass.
    attention: Any = getattr(block, "attn", None)
    return type(block).forward is Block.forward and type(attention).forward is Attention.forward


def run_prompted(block: Any, tokens: Tensor, prompts: tuple[Tensor, ...]) -> Tensor:
    """timm's pre-norm ``Block`` with extra keys and values.

    Args:
        block: A ``timm.models.vision_transformer.Block``.
        tokens: (B, L, D).
        prompts: One or more parts, (B or 1, n_j, D), not normed yet.

    Returns:
        (B, L, D), what ``block`` gives at the tokens when the prompts are concatenated.
    """
    attended = _attend(block.attn, block.norm1(tokens), tuple(map(block.norm1, prompts)))
    tokens = tokens + block.drop_path1(block.ls1(attended))
    out: Tensor = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
    return out


def _attend(attn: Any, rows: Tensor, prompts: tuple[Tensor, ...]) -> Tensor:
    """timm's ``Attention`` on (B, L, D) with the keys and values of prompts before its own."""

    def project(part: Tensor) -> tuple[Tensor, Tensor]:
        # By the module, so that a wrapped qkv (LoRA) holds for the prompts as well.
        _, key, value = attn.qkv(part).chunk(3, dim=-1)
        return key, value

    query, key, value = attn.qkv(rows).chunk(3, dim=-1)
    keys, values = project_parts(prompts, project, len(rows))
    key, value = torch.cat([*keys, key], dim=1), torch.cat([*values, value], dim=1)
    q, k, v = (split_heads(part, attn.head_dim) for part in (query, key, value))
    q, k = attn.q_norm(q), attn.k_norm(k)
    if attn.fused_attn:
        dropout = attn.attn_drop.p if attn.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        scores = (q * attn.scale) @ k.transpose(-2, -1)
        out = attn.attn_drop(scores.softmax(dim=-1)) @ v
    out = attn.norm(out.transpose(1, 2).flatten(2))
    if attn.gate is not None:
        out = out * attn.gate(rows).sigmoid()
    projected: Tensor = attn.proj_drop(attn.proj(out))
    return projected
