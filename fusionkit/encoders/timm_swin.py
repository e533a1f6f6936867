"""Swin Transformers of timm as main encoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from timm.models.swin_transformer import SwinTransformer, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.encoders.attention import (
    PromptRows,
    parts_of,
    project_parts,
    split_heads,
    widen_mask,
)
from fusionkit.encoders.augment import Augment, check_augment
from fusionkit.encoders.base import Features, Inputs, MainEncoder, Modality, TokenState
from fusionkit.encoders.images import ImagePreprocessor, Whole
from fusionkit.encoders.timm_common import build_backbone, channels_of, pixels_to_embed


class TimmSwin(MainEncoder):
    """A ``SwinTransformer`` of timm; a layer is a block, and its tokens are (B, H, W, D_i).

    Prompts are extra keys and values, made once per image and shared by all of its windows, with
    zero relative position bias and never masked.
    """

    modality: ClassVar[Modality] = "image"
    takes_parts: ClassVar[bool] = True
    backbone: SwinTransformer

    def __init__(
        self,
        model: str = "swin_base_patch4_window7_224",
        weights: str = "pretrained",
        image_size: int | None = None,
        augment: Augment = None,
        whole: Whole = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Build the model.

        Args:
            model: A name of timm (``swin_base_patch4_window7_224``), ``hf-hub:OWNER/NAME``,
                a folder in timm's layout, or ``fusionkit/NAME``.
            weights: ``pretrained``, ``random``, or a local file or folder.
            image_size: Side of the input; None for the model's own.
            augment: For training: ``none``, ``crop`` (and flip), ``randaugment`` (and crop), or a
                list of transforms of torchvision; None for what the data set recommends.
            whole: All of an image, not the model's crop of it, in tests and where ``augment`` does
                not crop: ``squash`` stretches it, ``border`` puts bars beside it.
            options: Further keyword arguments of ``timm.create_model``.
        """
        super().__init__()
        self.backbone = build_backbone("timm_swin", model, weights, options, image_size)
        self.channels = channels_of(self.backbone, options)
        self.augment = check_augment(augment)
        self.whole = whole
        self._last_of_stage = {  # layer -> the stage that follows it
            sum(len(stage.blocks) for stage in self.backbone.layers[:following]) - 1: following
            for following in range(1, len(self.backbone.layers))
        }

    @property
    def out_dim(self) -> int:
        return int(self.backbone.num_features)

    @property
    def layers(self) -> list[nn.Module]:
        return [block for stage in self.backbone.layers for block in stage.blocks]

    @property
    def layer_widths(self) -> tuple[int, ...]:
        return tuple(int(block.dim) for block in self.layers)  # type: ignore[arg-type]  # an int

    def embed(self, inputs: Inputs) -> TokenState:
        backbone = self.backbone
        x = backbone.patch_embed(pixels_to_embed(backbone, inputs, "TimmSwin", self.channels))
        return TokenState(backbone.layers[0].downsample(x))

    def run_layer(self, layer: int, state: TokenState, prompts: PromptRows | None) -> TokenState:
        block = self.layers[layer]
        parts = parts_of(prompts)
        x = run_prompted(block, state.tokens, parts) if parts else block(state.tokens)
        # timm downsamples at the start of a stage. Done here instead, so that a layer's state is
        # what its block gets, and the first block of a stage takes prompts of its own width.
        if layer in self._last_of_stage:
            x = self.backbone.layers[self._last_of_stage[layer]].downsample(x)
        return state.with_tokens(x)

    def readout(self, state: TokenState) -> Features:
        tokens = self.backbone.norm(state.tokens)
        pooled = self.backbone.forward_head(tokens, pre_logits=True)
        return Features(pooled, tokens.flatten(1, 2))

    def preprocessor(self, train: bool) -> ImagePreprocessor:
        augment = self.augment if train else None
        size = tuple(self.backbone.patch_embed.img_size)
        return ImagePreprocessor.of_backbone(
            self.backbone, self.channels, size, augment, self.whole
        )


def run_prompted(block: Any, x: Tensor, prompts: tuple[Tensor, ...]) -> Tensor:
    """timm's ``SwinTransformerBlock`` with extra keys and values.

    Args:
        block: A ``timm.models.swin_transformer.SwinTransformerBlock``.
        x: (B, H, W, D).
        prompts: One or more parts, (B or 1, n_j, D), not normed yet.

    Returns:
        (B, H, W, D), what concatenating the prompts to the tokens of every window gives.
    """
    parts = tuple(map(block.norm1, prompts))
    x = x + block.drop_path1(_attend_shifted(block, block.norm1(x), parts))
    rows = x.flatten(1, 2)
    out: Tensor = rows + block.drop_path2(block.mlp(block.norm2(rows)))
    return out.view(x.shape)


def _attend_shifted(block: Any, x: Tensor, prompts: tuple[Tensor, ...]) -> Tensor:
    """Shift, pad, cut into windows, attend, and back: timm's ``SwinTransformerBlock._attn``."""
    batch, height, width, channels = x.shape
    rows, columns = block.window_size
    down, right = block.shift_size
    if down or right:
        x = torch.roll(x, shifts=(-down, -right), dims=(1, 2))
    x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
    mask = block.get_attn_mask(x) if block.dynamic_mask else block.attn_mask
    windows = window_partition(x, block.window_size).view(-1, rows * columns, channels)
    out = _attend(block.attn, windows, batch, prompts, mask).view(-1, rows, columns, channels)
    out = window_reverse(out, block.window_size, x.shape[1], x.shape[2])[:, :height, :width]
    if down or right:
        out = torch.roll(out, shifts=(down, right), dims=(1, 2))
    return out.contiguous()


def _attend(
    attn: Any, windows: Tensor, batch: int, prompts: tuple[Tensor, ...], mask: Tensor | None
) -> Tensor:
    """timm's ``WindowAttention`` with extra keys and values.

    Args:
        attn: The module.
        windows: (B * W, N, D), the W windows of an image one after the other.
        batch: B.
        prompts: One or more parts, (B or 1, n_j, D).
        mask: (W, N, N) additive, or None.

    Returns:
        (B * W, N, D).
    """

    def project(part: Tensor) -> tuple[Tensor, Tensor]:
        _, key, value = attn.qkv(part).chunk(3, -1)
        return key, value

    heads, count = attn.num_heads, len(windows) // batch
    q, k, v = (
        split_heads(rows, rows.shape[-1] // heads) for rows in attn.qkv(windows).chunk(3, -1)
    )
    keys, values = project_parts(prompts, project, batch)
    k = torch.cat([*(_share(rows, heads, count) for rows in keys), k], dim=2)
    v = torch.cat([*(_share(rows, heads, count) for rows in values), v], dim=2)
    bias: Any = attn._get_rel_pos_bias()  # (1, heads, N, N)
    if mask is not None:
        bias = bias + mask.unsqueeze(1)  # (W, heads, N, N)
    bias = widen_mask(bias, k.shape[2] - q.shape[2])
    if attn.fused_attn:
        dropout = attn.attn_drop.p if attn.training else 0.0
        bias = bias if mask is None else bias.repeat(batch, 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    else:
        scores = (q * attn.scale) @ k.transpose(-2, -1)
        scores = (scores.unflatten(0, (-1, count)) + bias).flatten(0, 1)
        out = attn.attn_drop(attn.softmax(scores)) @ v
    projected: Tensor = attn.proj_drop(attn.proj(out.transpose(1, 2).flatten(2)))
    return projected


def _share(rows: Tensor, heads: int, count: int) -> Tensor:
    """(B, n, A) to (B * count, heads, n, A / heads): the same rows for all windows of an image."""
    # Windows are ordered (B, W): tiling the batch instead would hand an image its neighbour's rows.
    return split_heads(rows, rows.shape[-1] // heads).repeat_interleave(count, dim=0)
