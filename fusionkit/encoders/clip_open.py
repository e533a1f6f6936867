"""The two towers of CLIP (arXiv 2103.00020) and kin in open_clip."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fusionkit.encoders.attention import PromptRows, hide_tokens
from fusionkit.encoders.augment import Augment, check_augment
from fusionkit.encoders.base import (
    ExtraTokens,
    Features,
    Inputs,
    MainEncoder,
    Modality,
    TokenState,
)
from fusionkit.encoders.clip_open_block import run_block
from fusionkit.encoders.clip_open_weights import (
    Source,
    build_tower,
    preprocessing,
    source_of,
    tokenizer_of,
)
from fusionkit.encoders.images import (
    ImagePreprocessor,
    Whole,
    check_tiles,
    pair,
    pixels_of,
    uncropped,
)
from fusionkit.encoders.sequences import all_real, insert_rows
from fusionkit.encoders.state import split_first, split_one
from fusionkit.encoders.texts import TextPreprocessor, beside, check_length, tokens_of
from fusionkit.errors import ConfigError


class OpenClipImage(MainEncoder):
    """A plain ``VisionTransformer`` of open_clip: CLIP, CLIPA, MetaCLIP, CoCa and others.

    Pooled is upstream's ``encode_image``, not normalised to length 1: the projection of the class
    token, or of what the model pools instead. All tokens get the same norm and projection; there
    are none where the model pools by attention (CoCa).
    """

    modality: ClassVar[Modality] = "image"
    takes_parts: ClassVar[bool] = True

    backbone: Any  # an open_clip.transformer.VisionTransformer

    def __init__(
        self,
        model: str | None = None,
        weights: str = "pretrained",
        tag: str | None = None,
        image_size: int | None = None,
        augment: Augment = None,
        whole: Whole = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        """Build the tower.

        Args:
            model: A name of open_clip (``ViT-L-14-quickgelu``), ``hf-hub:OWNER/NAME``, or a folder
                in open_clip's layout; ViT-B-32 if neither it nor ``config`` is given.
            weights: ``pretrained`` (those of ``model`` and ``tag``), ``random``, or a local file
                or folder.
            tag: Which of open_clip's pretrained weights. By default OpenAI's for models with
                QuickGELU, LAION-2B's for ViT-B-32, B-16, L-14, H-14 and g-14, else the only ones.
                Images are preprocessed as these were.
            image_size: Side of the input; position embeddings are resized. None for the model's.
            augment: For training: ``none``, ``crop`` (and flip), ``randaugment`` (and crop), or a
                list of transforms of torchvision; None for what the data set recommends.
            whole: All of an image, not the model's crop of it, in tests and where ``augment`` does
                not crop: ``squash`` stretches it, ``border`` puts bars beside it.
            config: A net of one's own instead of ``model``: ``embed_dim``, ``vision_cfg`` and
                ``quick_gelu`` as in open_clip; its weights are ``random`` or a path.

        Raises:
            ConfigError: Both ``model`` and ``config``, an unknown name, or a tower of another kind.
            WeightsError: The weights were not found or do not fit.
        """
        super().__init__()
        self._source = source_of(model, weights, tag, config)
        _check_image(self._source)
        self.backbone = build_tower("image", self._source, weights, image_size)
        check_tiles(image_size, self.backbone.patch_size)
        self.augment = check_augment(augment)
        self.whole = whole

    @property
    def out_dim(self) -> int:
        return int(self.backbone.output_dim)

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.backbone.transformer.resblocks)

    @property
    def takes_tokens(self) -> bool:
        return True

    @property
    def takes_queries(self) -> bool:
        return True

    @property
    def layer_widths(self) -> tuple[int, ...]:
        return (int(self.backbone.transformer.width),) * len(self.layers)

    def embed(self, inputs: Inputs) -> TokenState:
        pixels = pixels_of(inputs, "OpenClipImage", 3, size=pair(self.backbone.image_size))
        return TokenState(self.backbone._embeds(pixels))

    def run_layer(self, layer: int, state: TokenState, prompts: PromptRows | None) -> TokenState:
        return state.with_tokens(run_block(self.layers[layer], state.tokens, prompts, None))

    @property
    def pools_apart(self) -> bool:
        return self.backbone.attn_pool is None and self.backbone.pool_type == "tok"

    def pooled_apart(self, state: TokenState) -> tuple[TokenState, TokenState]:
        return split_first(state, 1)

    def readout(self, state: TokenState) -> Features:
        backbone = self.backbone
        pooled = backbone._pool(state.tokens)[0] @ backbone.proj
        if backbone.attn_pool is not None:
            return Features(pooled)
        return Features(pooled, backbone.ln_post(state.tokens) @ backbone.proj)

    def preprocessor(self, train: bool) -> ImagePreprocessor:
        stated = preprocessing(self._source)
        modes = {"shortest": "center", "squash": "squash"}
        if stated["resize_mode"] not in modes:
            raise ConfigError(
                f"resize_mode {stated['resize_mode']!r} of {self._source.name!r} is not known; "
                f"known are {', '.join(modes)}."
            )
        # "random" is for training; open_clip evaluates such models with bicubic.
        bilinear = stated["interpolation"] == "bilinear"
        framing = {"crop_mode": modes[stated["resize_mode"]], **uncropped(self.whole)}
        return ImagePreprocessor(
            pair(self.backbone.image_size),
            stated["mean"],
            stated["std"],
            interpolation="bilinear" if bilinear else "bicubic",
            augment=self.augment if train else None,
            **framing,
        )


class OpenClipText(MainEncoder):
    """A causal ``TextTransformer`` of open_clip: CLIP, MetaCLIP and others.

    Pooled is upstream's ``encode_text``, not normalised to length 1: the projection of the
    end-of-text token. All tokens get the same norm and projection. Prompts come before the first
    token and are seen by every token. Texts are padded to the longest of their batch only: what
    comes after the end of a text does not change it.
    """

    modality: ClassVar[Modality] = "text"
    takes_parts: ClassVar[bool] = True

    backbone: Any  # an open_clip.transformer.TextTransformer

    def __init__(
        self,
        model: str | None = None,
        weights: str = "pretrained",
        tag: str | None = None,
        max_length: int | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        """Build the tower.

        Args:
            model: A name of open_clip (``ViT-L-14-quickgelu``), ``hf-hub:OWNER/NAME``, or a folder
                in open_clip's layout; ViT-B-32 if neither it nor ``config`` is given.
            weights: ``pretrained`` (those of ``model`` and ``tag``), ``random``, or a local file
                or folder.
            tag: Which of open_clip's pretrained weights. By default OpenAI's for models with
                QuickGELU, LAION-2B's for ViT-B-32, B-16, L-14, H-14 and g-14, else the only ones.
            max_length: Longer texts are cut; by default at what the model has positions for (77).
            config: A net of one's own instead of ``model``: ``embed_dim``, ``text_cfg`` and
                ``quick_gelu`` as in open_clip; its weights are ``random`` or a path.

        Raises:
            ConfigError: Both ``model`` and ``config``, an unknown name, or a tower of another kind.
            WeightsError: The weights were not found or do not fit.
        """
        super().__init__()
        self._source = source_of(model, weights, tag, config)
        _check_text(self._source)
        self.backbone = build_tower("text", self._source, weights)
        self.max_length = max_length
        if max_length is not None and max_length > self.positions:
            raise ConfigError(
                f"max_length {max_length} is more than the {self.positions} positions of "
                f"{self._source.name or 'this config'!r}."
            )

    @property
    def out_dim(self) -> int:
        backbone = self.backbone
        return int(backbone.width if backbone.text_projection is None else backbone.output_dim)

    @property
    def causal(self) -> bool:
        return True

    @property
    def takes_tokens(self) -> bool:
        return True

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.backbone.transformer.resblocks)

    @property
    def layer_widths(self) -> tuple[int, ...]:
        return (int(self.backbone.width),) * len(self.layers)

    @property
    def positions(self) -> int:
        """How many tokens a text may have."""
        return int(self.backbone.context_length)

    def embed(self, inputs: Inputs) -> TokenState:
        ids, keep = tokens_of(inputs, "OpenClipText")
        length = ids.shape[1]
        check_length(length, 0, self.positions)
        tokens, mask = self.backbone._embeds(ids)
        return TokenState(tokens, keep, cache=(mask[:length, :length], _end(self.backbone, ids)))

    def embed_with(self, inputs: Inputs, extra: ExtraTokens) -> tuple[TokenState, int]:
        """Further tokens stand behind the first one and are numbered like words, as in CoOp."""
        ids, keep = tokens_of(inputs, "OpenClipText")
        backbone, rows, place = self.backbone, extra.rows, 1
        check_length(ids.shape[1], rows.shape[1], self.positions)
        dtype, length = backbone.transformer.get_cast_dtype(), ids.shape[1] + rows.shape[1]
        words = insert_rows(backbone.token_embedding(ids).to(dtype), rows, place)
        tokens = words + backbone.positional_embedding[:length].to(dtype)
        past = backbone.attn_mask[:length, :length]
        mask = hide_tokens(past, extra.visible, place, length, self.causal, extra.blind)
        keep = insert_rows(keep, all_real(rows), place)
        return TokenState(tokens, keep, cache=(mask, _end(backbone, ids))), place

    def resume(self, layer: int, tokens: Tensor, keep: Tensor | None) -> TokenState:
        assert keep is not None  # the last real token is the end of the text
        mask = self.backbone.attn_mask[: tokens.shape[1], : tokens.shape[1]]
        return TokenState(tokens, keep, cache=(mask, keep.sum(dim=1) - 1))

    def run_layer(self, layer: int, state: TokenState, prompts: PromptRows | None) -> TokenState:
        mask, _ = state.cache
        return state.with_tokens(run_block(self.layers[layer], state.tokens, prompts, mask))

    @property
    def pools_apart(self) -> bool:
        return True

    def pooled_apart(self, state: TokenState) -> tuple[TokenState, TokenState]:
        mask, end = state.cache
        one, others = split_one(state, end)
        return TokenState(one.tokens, one.keep, cache=(mask, torch.zeros_like(end))), others

    def readout(self, state: TokenState) -> Features:
        _, end = state.cache
        tokens = self.backbone.ln_final(state.tokens)
        projection = self.backbone.text_projection
        if isinstance(projection, nn.Linear):
            tokens = projection(tokens)
        elif projection is not None:
            tokens = tokens @ projection
        rows = torch.arange(len(tokens), device=tokens.device)
        return Features(tokens[rows, end], tokens, state.keep)

    def preprocessor(self, train: bool) -> TextPreprocessor:
        end = self.backbone.eos_id if self.backbone.pool_type == "eos" else None
        tokenizer = UntilEnd(tokenizer_of(self._source), end)
        length = self.max_length or self.positions
        return TextPreprocessor(tokenizer, beside(self.reserved, length, self.positions))


class UntilEnd:
    """A tokenizer of open_clip, which pads to a fixed length, without its padding."""

    is_fast = False  # has no backend in Rust
    pad_token_id = 0  # as open_clip pads
    eos_token_id = None

    def __init__(self, tokenizer: Any, end: int | None) -> None:
        """Keep the tokenizer.

        Args:
            tokenizer: Maps a list of texts and a length to their padded ids, (B, length).
            end: The id that ends a text; None for the highest of all.
        """
        self.tokenizer = tokenizer
        self.end = end

    def encode(
        self, text: str, add_special_tokens: bool, truncation: bool, max_length: int
    ) -> list[int]:
        """The ids of one text, start and end included, cut to ``max_length``."""
        ids: Tensor = self.tokenizer([text], max_length)[0]
        last = (ids if self.end is None else (ids == self.end).int()).argmax()
        return ids[: int(last) + 1].tolist()


def _end(backbone: Any, ids: Tensor) -> Tensor:
    """(B,), where the end-of-text token stands."""
    highest = backbone.pool_type == "argmax"
    return (ids if highest else (ids == backbone.eos_id).int()).argmax(dim=-1)


def _check_image(source: Source) -> None:
    stated = source.config["vision_cfg"]
    if stated.get("timm_model_name"):
        raise ConfigError(
            f"The image tower of {source.name or 'this config'!r} is timm's "
            f"{stated['timm_model_name']!r}; timm_vit, timm_swin and timm_cnn run those of timm."
        )
    if isinstance(stated.get("layers"), list | tuple):
        raise ConfigError(
            f"The image tower of {source.name or 'this config'!r} is a ResNet and has no layers to "
            f"prompt; timm_cnn runs it, as resnet50_clip.openai for example, as complement."
        )
    if isinstance(stated.get("attentional_pool"), str) or stated.get("pool_type") == "none":
        raise ConfigError(
            f"The image tower of {source.name or 'this config'!r} pools to more than one vector; "
            f"set `pool_type: tok` or `avg`."
        )


def _check_text(source: Source) -> None:
    stated = source.config["text_cfg"]
    reason = None
    if stated.get("hf_model_name"):
        reason = f"is {stated['hf_model_name']!r} of transformers; bert and gpt2 run such models"
    elif stated.get("embed_cls"):
        reason = "reads a class token after the padding (CoCa)"
    elif stated.get("no_causal_mask"):
        reason = "reads its padding, so that a text depends on how it is padded"
    elif stated.get("pool_type", "argmax") not in ("argmax", "eos"):
        reason = f"pools {stated['pool_type']!r}, not the end-of-text token"
    if reason is not None:
        raise ConfigError(
            f"The text tower of {source.name or 'this config'!r} {reason}. Give a model whose "
            f"text tower is CLIP's own, such as ViT-B-32."
        )
