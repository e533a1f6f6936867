"""The two towers of CLIP (arXiv 2103.00020) in transformers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from fusionkit.encoders.attention import PromptRows, hide_tokens, parts_of
from fusionkit.encoders.augment import Augment, check_augment
from fusionkit.encoders.base import (
    ExtraTokens,
    Features,
    Inputs,
    MainEncoder,
    Modality,
    TokenState,
)
from fusionkit.encoders.images import ImagePreprocessor, Whole, check_tiles, pair, pixels_of
from fusionkit.encoders.sequences import all_real, append_rows, insert_rows
from fusionkit.encoders.state import split_first, split_one
from fusionkit.encoders.texts import (
    TextPreprocessor,
    check_length,
    make_preprocessor,
    tokens_of,
)
from fusionkit.encoders.transformers_images import image_preprocessor
from fusionkit.encoders.transformers_weights import architecture, build
from fusionkit.encoders.weights import locate
from fusionkit.errors import ConfigError

_DEFAULT = "openai/clip-vit-base-patch32"

_SIGLIP = "timm_vit runs its image tower, as vit_base_patch16_siglip_224 for example"
_INSTEAD = {"siglip": _SIGLIP, "siglip2": _SIGLIP}


class _Tower(MainEncoder):
    """What both towers share: pre-norm layers, prompted in their keys and values."""

    takes_parts: ClassVar[bool] = True
    part: ClassVar[str]
    projection_name: ClassVar[str]

    backbone: Any  # a CLIPPreTrainedModel

    @property
    def tower(self) -> Any:
        """The tower without its projection."""
        return getattr(self.backbone, f"{self.part}_model", self.backbone)

    @property
    def takes_tokens(self) -> bool:
        return True

    @property
    def takes_queries(self) -> bool:
        return True

    @property
    def out_dim(self) -> int:
        config = self.backbone.config
        projects = hasattr(self.backbone, self.projection_name)
        return int(config.projection_dim if projects else config.hidden_size)

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.tower.encoder.layers)

    @property
    def layer_widths(self) -> tuple[int, ...]:
        return (int(self.backbone.config.hidden_size),) * len(self.layers)

    def _run(
        self, layer: int, state: TokenState, prompts: PromptRows | None, mask: Tensor | None
    ) -> TokenState:
        block: Any = self.layers[layer]
        rows = tuple(map(block.layer_norm1, parts_of(prompts)))
        return state.with_tokens(block(state.tokens, mask, prompts=rows))

    def _project(self, tokens: Tensor) -> Tensor:
        """(..., D) to (..., C)."""
        projection = getattr(self.backbone, self.projection_name, None)
        return tokens if projection is None else projection(tokens)


class ClipImage(_Tower):
    """The image tower of CLIP.

    Pooled is the projection of the class token, upstream's ``image_embeds`` before they are
    normalised to length 1. All tokens get the same norm and projection.
    """

    modality: ClassVar[Modality] = "image"
    part: ClassVar[str] = "vision"
    projection_name: ClassVar[str] = "visual_projection"

    def __init__(
        self,
        model: str | None = None,
        weights: str = "pretrained",
        image_size: int | None = None,
        augment: Augment = None,
        whole: Whole = None,
        projection: bool = True,
        config: dict[str, Any] | None = None,
    ) -> None:
        """Build the tower.

        Args:
            model: Hub name or local folder of a whole CLIP or of its image tower;
                openai/clip-vit-base-patch32 if neither it nor ``config`` is given.
            weights: ``pretrained`` (those of ``model``), ``random``, or a local file or folder.
            image_size: Side of the input, a multiple of the patch; positions are interpolated.
                None for the size in the model's preprocessing.
            augment: For training: ``none``, ``crop`` (and flip), ``randaugment`` (and crop), or a
                list of transforms of torchvision; None for what the data set recommends.
            whole: All of an image, not the model's crop of it, in tests and where ``augment`` does
                not crop: ``squash`` stretches it, ``border`` puts bars beside it.
            projection: Whether the tower ends in the space it shares with texts, or before it.
            config: A net of one's own instead of ``model``: a transformers config with
                ``model_type: clip_vision_model``; its weights are ``random`` or a path.

        Raises:
            ConfigError: Both ``model`` and ``config``, another model than CLIP, or a size that is
                no multiple of the patch.
            WeightsError: The weights were not found or do not fit.
        """
        super().__init__()
        found, self._model = architecture(model, weights, config, _DEFAULT)
        found = _tower_config(found, self.part)
        check_tiles(image_size, found.patch_size)
        kind = CLIPVisionModelWithProjection if projection else CLIPVisionModel
        source = None if self._model is None else locate(self._model)
        self.backbone = build(found, weights, source, kind)
        self.image_size = image_size
        self.augment = check_augment(augment)
        self.whole = whole

    def embed(self, inputs: Inputs) -> TokenState:
        tower, config = self.tower, self.backbone.config
        patch = pair(config.patch_size)
        pixels = pixels_of(inputs, "ClipImage", config.num_channels, multiple=patch)
        other = tuple(pixels.shape[2:]) != pair(config.image_size)
        tokens = tower.embeddings(pixels, interpolate_pos_encoding=other)
        return TokenState(tower.pre_layrnorm(tokens))  # sic: upstream's name

    def run_layer(self, layer: int, state: TokenState, prompts: PromptRows | None) -> TokenState:
        return self._run(layer, state, prompts, mask=None)

    @property
    def pools_apart(self) -> bool:
        return True

    def pooled_apart(self, state: TokenState) -> tuple[TokenState, TokenState]:
        return split_first(state, 1)

    def readout(self, state: TokenState) -> Features:
        tokens = self._project(self.tower.post_layernorm(state.tokens))
        return Features(tokens[:, 0], tokens)

    def preprocessor(self, train: bool) -> ImagePreprocessor:
        augment = self.augment if train else None
        return image_preprocessor(
            self._model, self.backbone.config, self.image_size, augment, self.whole
        )


class ClipText(_Tower):
    """The text tower of CLIP, which reads from left to right.

    Pooled is the projection of the end-of-text token, upstream's ``text_embeds`` before they are
    normalised to length 1. All tokens get the same norm and projection. Prompts come before the
    first token and are seen by every token.
    """

    modality: ClassVar[Modality] = "text"
    part: ClassVar[str] = "text"
    projection_name: ClassVar[str] = "text_projection"

    def __init__(
        self,
        model: str | None = None,
        weights: str = "pretrained",
        tokenizer: str | None = None,
        max_length: int | None = None,
        projection: bool = True,
        config: dict[str, Any] | None = None,
    ) -> None:
        """Build the tower.

        Args:
            model: Hub name or local folder of a whole CLIP or of its text tower;
                openai/clip-vit-base-patch32 if neither it nor ``config`` is given.
            weights: ``pretrained`` (those of ``model``), ``random``, or a local file or folder.
            tokenizer: Hub name or local folder; that of ``model`` if not given.
            max_length: Longer texts are cut; by default at what the model has positions for (77).
            projection: Whether the tower ends in the space it shares with images, or before it.
            config: A net of one's own instead of ``model``: a transformers config with
                ``model_type: clip_text_model``; its weights are ``random`` or a path.

        Raises:
            ConfigError: Both ``model`` and ``config``, or another model than CLIP.
            WeightsError: The weights were not found or do not fit.
        """
        super().__init__()
        found, name = architecture(model, weights, config, _DEFAULT)
        found = _tower_config(found, self.part)
        kind = CLIPTextModelWithProjection if projection else CLIPTextModel
        self.backbone = build(found, weights, None if name is None else locate(name), kind)
        self.max_length = max_length
        self._tokenizer = tokenizer or name
        if max_length is not None and max_length > self.positions:
            raise ConfigError(
                f"max_length {max_length} is more than the {self.positions} positions of "
                f"{name or found.model_type!r}."
            )

    @property
    def causal(self) -> bool:
        return True

    @property
    def positions(self) -> int:
        """How many tokens a text may have."""
        return int(self.backbone.config.max_position_embeddings)

    def embed(self, inputs: Inputs) -> TokenState:
        ids, keep = tokens_of(inputs, "ClipText")
        check_length(ids.shape[1], 0, self.positions)
        tokens = self.tower.embeddings(input_ids=ids)
        return TokenState(tokens, keep, cache=(_past(tokens), self._end(ids)))

    def embed_with(self, inputs: Inputs, extra: ExtraTokens) -> tuple[TokenState, int]:
        """Further tokens stand behind the first one and are numbered like words, as in CoOp."""
        ids, keep = tokens_of(inputs, "ClipText")
        rows, place = extra.rows, 1
        check_length(ids.shape[1], rows.shape[1], self.positions)
        words = insert_rows(self.tower.embeddings.token_embedding(ids), rows, place)
        tokens = self.tower.embeddings(inputs_embeds=words)
        past = hide_tokens(
            _past(tokens), extra.visible, place, tokens.shape[1], self.causal, extra.blind
        )
        keep = insert_rows(keep, all_real(rows), place)
        return TokenState(tokens, keep, cache=(past, self._end(ids))), place

    def query(
        self, layer: int, state: TokenState, rows: Tensor, prompts: Tensor | None = None
    ) -> Tensor:
        block: Any = self.layers[layer]
        assert state.keep is not None
        seen, keep = append_rows(state.tokens, state.keep, prompts)
        seen = block.layer_norm1(seen)
        out: Tensor = block(rows, _past(rows), prompts=seen, prompts_keep=keep)
        return out

    def resume(self, layer: int, tokens: Tensor, keep: Tensor | None) -> TokenState:
        assert keep is not None  # the last real token is the end of the text
        return TokenState(tokens, keep, cache=(_past(tokens), keep.sum(dim=1) - 1))

    def _end(self, ids: Tensor) -> Tensor:
        """(B,), where the end-of-text token stands."""
        end = self.backbone.config.eos_token_id
        # Configs from before transformers 4.31 say 2 and mean the highest id of all.
        return (ids if end == 2 else (ids == end).int()).argmax(dim=-1)

    def run_layer(self, layer: int, state: TokenState, prompts: PromptRows | None) -> TokenState:
        past, _ = state.cache
        return self._run(layer, state, prompts, mask=past)

    @property
    def pools_apart(self) -> bool:
        return True

    def pooled_apart(self, state: TokenState) -> tuple[TokenState, TokenState]:
        past, end = state.cache
        one, others = split_one(state, end)
        return TokenState(one.tokens, one.keep, cache=(past, torch.zeros_like(end))), others

    def readout(self, state: TokenState) -> Features:
        _, end = state.cache
        tokens = self._project(self.tower.final_layer_norm(state.tokens))
        rows = torch.arange(len(tokens), device=tokens.device)
        return Features(tokens[rows, end], tokens, state.keep)

    def preprocessor(self, train: bool) -> TextPreprocessor:
        if self._tokenizer is None:
            raise ConfigError("A net described by `config` needs `tokenizer: PATH` to read texts.")
        config = self.backbone.config
        made = make_preprocessor(
            self._tokenizer,
            self.max_length,
            config.vocab_size,
            self.positions,
            reserved=self.reserved,
        )
        ids, end = made("a")["input_ids"], config.eos_token_id
        # Otherwise the first token would be pooled, which sees none of the others.
        if int(self._end(ids[None])) != len(ids) - 1 or (end != 2 and int(ids[-1]) != end):
            raise ConfigError(
                f"The tokenizer {self._tokenizer!r} does not end a text with the token "
                f"{'of the highest id' if end == 2 else end}, which this model pools; 'a' becomes "
                f"{ids.tolist()}. Set `tokenizer` to the one that belongs to the model."
            )
        return made


def _past(tokens: Tensor) -> Tensor:
    """(1, 1, L, L) bool, True = visible. Padding needs no mask: it comes after what is read."""
    length = tokens.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()[None, None]


def _tower_config(config: Any, part: str) -> Any:
    """The architecture of one tower, from a whole CLIP or from the tower alone."""
    if config.model_type == f"clip_{part}_model":
        return config
    if config.model_type == "clip":
        tower = getattr(config, f"{part}_config")
        tower.projection_dim = config.projection_dim  # what the weights of a whole CLIP have
        return tower
    instead = _INSTEAD.get(config.model_type, "open_clip_image and open_clip_text take other CLIPs")
    raise ConfigError(
        f"A {config.model_type!r} model is not CLIP with its {part} tower: a 'clip' or a "
        f"'clip_{part}_model' is needed; {instead}."
    )
