"""Vision Transformers of transformers: ViT, DeiT, DINOv2 and DINOv3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fusionkit.encoders.attention import PromptRows, parts_of
from fusionkit.encoders.augment import Augment, check_augment
from fusionkit.encoders.base import (
    Features,
    Inputs,
    MainEncoder,
    Modality,
    TokenState,
)
from fusionkit.encoders.images import ImagePreprocessor, Whole, check_tiles, pair, pixels_of
from fusionkit.encoders.state import split_first
from fusionkit.encoders.transformers_images import image_preprocessor
from fusionkit.encoders.transformers_weights import architecture, build
from fusionkit.encoders.weights import locate
from fusionkit.errors import ConfigError, EncoderError, suggest


@dataclass(frozen=True)
class _Layout:
    """Where a family keeps its parts, as dotted paths.

    Attributes:
        layers: The list of layers, in the model.
        prompt_norm: The norm before the attention, in a layer.
        final_norm: The norm after the last layer, in the model.
    """

    layers: str
    prompt_norm: str
    final_norm: str = "layernorm"


# By transformers' model_type; each is compared with upstream's own forward in the tests.
LAYOUTS: Mapping[str, _Layout] = {
    "deit": _Layout("layers", "layernorm_before"),
    "dinov2": _Layout("encoder.layer", "norm1"),
    "dinov2_with_registers": _Layout("encoder.layer", "norm1"),
    "dinov3_vit": _Layout("model.layer", "norm1", final_norm="norm"),
    "vit": _Layout("layers", "layernorm_before"),
}

_BIAS = "its attention adds a bias for the relative position of every pair of patches"
_CONVOLUTIONAL = "it is convolutional; timm_cnn takes such nets, as complement"
_REFUSED = {
    **dict.fromkeys(("beit", "data2vec-vision"), _BIAS),
    **dict.fromkeys(("convnext", "convnextv2", "mobilenet_v2", "resnet"), _CONVOLUTIONAL),
    **dict.fromkeys(("clip", "clip_vision_model"), "use the encoder clip_image"),
    **dict.fromkeys(
        ("siglip", "siglip_vision_model"),
        "it pools by attention; timm_vit runs it, as vit_base_patch16_siglip_224 for example",
    ),
    **dict.fromkeys(("swin", "swinv2"), "its attention is in windows; use the encoder timm_swin"),
    "vit_mae": "it hides patches at random; timm_vit runs it, as vit_base_patch16_224.mae",
}


class HfViT(MainEncoder):
    """Any Vision Transformer in :data:`LAYOUTS`, prompted in its keys and values.

    Without prompts the tokens equal upstream's ``last_hidden_state``: class token, distillation
    token (DeiT) or registers (DINO), patches. Pooled is the class token behind the final norm,
    upstream's own ``pooler_output`` for DINOv2 and DINOv3; the pooler of ViT and DeiT, which
    was not trained in most of them, is not built. In DINOv3, which rotates the keys of patches by
    their position, prompts stay unrotated like the class token.
    """

    modality: ClassVar[Modality] = "image"
    takes_parts: ClassVar[bool] = True

    backbone: Any  # a PreTrainedModel: its parts differ from family to family

    def __init__(
        self,
        model: str | None = None,
        weights: str = "pretrained",
        image_size: int | None = None,
        augment: Augment = None,
        whole: Whole = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        """Build the encoder.

        Args:
            model: Hub name or local folder; google/vit-base-patch16-224-in21k if neither it nor
                ``config`` is given.
            weights: ``pretrained`` (those of ``model``), ``random``, or a local file or folder.
            image_size: Side of the input, a multiple of the patch; positions are interpolated.
                None for the size in the model's preprocessing (224 for DINOv2).
            augment: For training: ``none``, ``crop`` (and flip), ``randaugment`` (and crop), or a
                list of transforms of torchvision; None for what the data set recommends.
            whole: All of an image, not the model's crop of it, in tests and where ``augment`` does
                not crop: ``squash`` stretches it, ``border`` puts bars beside it.
            config: A net of one's own instead of ``model``: a transformers config with
                ``model_type``; its weights are ``random`` or a path.

        Raises:
            ConfigError: Both ``model`` and ``config``, a family that cannot be prompted, or a size
                that is no multiple of the patch.
            WeightsError: The weights were not found or do not fit.
        """
        super().__init__()
        default = "google/vit-base-patch16-224-in21k"
        found, self._model = architecture(model, weights, config, default)
        self._layout = _layout_of(found)
        check_tiles(image_size, found.patch_size)
        source = None if self._model is None else locate(self._model)
        self.backbone = build(found, weights, source)
        self.image_size = image_size
        self.augment = check_augment(augment)
        self.whole = whole

    @property
    def out_dim(self) -> int:
        return int(self.backbone.config.hidden_size)

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.backbone.get_submodule(self._layout.layers).children())

    @property
    def takes_tokens(self) -> bool:
        return self._unrotated

    @property
    def takes_queries(self) -> bool:
        return self._unrotated

    @property
    def _unrotated(self) -> bool:
        return bool(self.backbone.config.model_type != "dinov3_vit")

    @property
    def layer_widths(self) -> tuple[int, ...]:
        return (self.out_dim,) * len(self.layers)

    def embed(self, inputs: Inputs) -> TokenState:
        backbone, config = self.backbone, self.backbone.config
        patch = pair(config.patch_size)
        pixels = pixels_of(inputs, "HfViT", config.num_channels, multiple=patch)
        if config.model_type == "dinov3_vit":
            positions = {"position_embeddings": backbone.rope_embeddings(pixels)}
            return TokenState(backbone.embeddings(pixels), cache=positions)
        if config.model_type.startswith("dinov2"):  # which interpolates by itself
            return TokenState(backbone.embeddings(pixels), cache={})
        other = tuple(pixels.shape[2:]) != pair(config.image_size)
        return TokenState(backbone.embeddings(pixels, interpolate_pos_encoding=other), cache={})

    def resume(self, layer: int, tokens: Tensor, keep: Tensor | None) -> TokenState:
        config = self.backbone.config
        if config.model_type != "dinov3_vit":
            return TokenState(tokens, cache={})
        patches = tokens.shape[1] - 1 - config.num_register_tokens
        side = math.isqrt(patches)
        if side**2 != patches:
            raise EncoderError(
                f"{patches} patches are no square; the positions of DINOv3 can be told from the "
                f"tokens of square images only. Do not cache this encoder."
            )
        height, width = (side * step for step in pair(config.patch_size))
        pixels = tokens.new_empty(1, config.num_channels, height, width)
        return TokenState(
            tokens, cache={"position_embeddings": self.backbone.rope_embeddings(pixels)}
        )

    def run_layer(self, layer: int, state: TokenState, prompts: PromptRows | None) -> TokenState:
        block, arguments = self.layers[layer], dict(state.cache)
        if parts := parts_of(prompts):
            norm = block.get_submodule(self._layout.prompt_norm)
            arguments["prompts"] = tuple(map(norm, parts))
        return state.with_tokens(block(state.tokens, **arguments))

    @property
    def pools_apart(self) -> bool:
        return True

    def pooled_apart(self, state: TokenState) -> tuple[TokenState, TokenState]:
        return split_first(state, 1)

    def readout(self, state: TokenState) -> Features:
        tokens = self.backbone.get_submodule(self._layout.final_norm)(state.tokens)
        return Features(tokens[:, 0], tokens)

    def preprocessor(self, train: bool) -> ImagePreprocessor:
        augment = self.augment if train else None
        return image_preprocessor(
            self._model, self.backbone.config, self.image_size, augment, self.whole
        )


def _layout_of(config: Any) -> _Layout:
    kind = config.model_type
    if kind not in LAYOUTS:
        reason = _REFUSED.get(kind, "its attention is not known to take prompts")
        raise ConfigError(
            f"A {kind!r} model cannot be prompted here: {reason}.{suggest(kind, LAYOUTS)} "
            f"Families that work: {', '.join(LAYOUTS)}."
        )
    return LAYOUTS[kind]
