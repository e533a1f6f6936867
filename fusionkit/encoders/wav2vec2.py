"""wav2vec 2.0 and HuBERT of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from fusionkit.encoders.attention import PromptRows, parts_of
from fusionkit.encoders.audio import (
    MAX_SECONDS,
    RATE,
    AudioPreprocessor,
    check_seconds,
    read_preprocessing,
)
from fusionkit.encoders.base import TokenState
from fusionkit.encoders.speech import SpeechEncoder
from fusionkit.encoders.transformers_attention import padding_mask
from fusionkit.encoders.transformers_weights import architecture, build
from fusionkit.encoders.weights import locate
from fusionkit.errors import ConfigError


class TransformersSpeech(SpeechEncoder):
    """A speech model of transformers; see :class:`SpeechEncoder` for what all have in common.

    The vector that SpecAugment puts in place of frames, ``masked_spec_embed``, is not built:
    nothing uses it, and published fine-tuned models lack it.
    """

    takes_parts: ClassVar[bool] = True
    model_type: ClassVar[str]
    default_model: ClassVar[str]
    attention: ClassVar[type[nn.Module] | None] = None  # takes the place of upstream's

    def __init__(
        self,
        model: str | None = None,
        weights: str = "pretrained",
        max_seconds: float = MAX_SECONDS,
        config: dict[str, Any] | None = None,
    ) -> None:
        """Build the encoder.

        Args:
            model: Hub name or local folder; the base model of the family if neither it nor
                ``config`` is given.
            weights: ``pretrained`` (those of ``model``), ``random``, or a local file or folder.
            max_seconds: Longer clips are cut at their end. 20 s are the longest crops of
                wav2vec 2.0's pretraining; attention costs the square of it.
            config: A net of one's own instead of ``model``: a transformers config with
                ``model_type``; its weights are ``random`` or a path.

        Raises:
            ConfigError: Both ``model`` and ``config``, or another family.
            WeightsError: The weights were not found or do not fit.
        """
        super().__init__()
        found, self._model = architecture(model, weights, config, default=self.default_model)
        self._weights = weights
        self.max_seconds = check_seconds(max_seconds)
        _check(found, self.model_type, type(self).__name__)
        found.mask_time_prob = found.mask_feature_prob = 0.0
        self.backbone = build(found, weights, None if self._model is None else locate(self._model))
        if self.attention is not None:
            for block in self.layers:
                block.attention.__class__ = self.attention  # the same weights, the same names

    @property
    def transformer(self) -> Any:
        return self.backbone.encoder

    @property
    def pre_norm(self) -> bool:
        return bool(self.backbone.config.do_stable_layer_norm)

    def convolve(self, block: nn.Module, x: Tensor) -> Tensor:
        return block(x)

    def project(self, features: Tensor) -> Tensor:
        projected = self.backbone.feature_projection(features)
        # All but HuBERT's return what entered the projection as well.
        return projected[0] if isinstance(projected, tuple) else projected

    def prompt_rows(self, layer: int, prompts: PromptRows | None) -> tuple[Tensor, ...]:
        """What the attention of ``layer`` makes keys and values of."""
        parts = parts_of(prompts)
        return (
            tuple(map(self.transformer.layers[layer].layer_norm, parts)) if self.pre_norm else parts
        )

    def preprocessor(self, train: bool) -> AudioPreprocessor:
        settings: Mapping[str, Any] = read_preprocessing(self._model, self._weights)
        return AudioPreprocessor(
            rate=int(settings.get("sampling_rate", RATE)),
            shortest=self.shortest,
            max_seconds=self.max_seconds,
            normalize=bool(settings.get("do_normalize", True)),
        )


class Wav2Vec2(TransformersSpeech):
    """wav2vec 2.0 (arXiv 2006.11477) and its kin XLSR, XLS-R and MMS.

    Prompts are extra keys and values of upstream's own layers.
    """

    model_type = "wav2vec2"
    default_model = "facebook/wav2vec2-base"

    def layer_cache(self, tokens: Tensor, keep: Tensor) -> Tensor | None:
        return padding_mask(keep)

    def run_layer(self, layer: int, state: TokenState, prompts: PromptRows | None) -> TokenState:
        rows = self.prompt_rows(layer, prompts)
        block = self.layers[layer]
        return state.with_tokens(block(state.tokens, attention_mask=state.cache, prompts=rows))


class Hubert(Wav2Vec2):
    """HuBERT (arXiv 2106.07447), which is built and prompted like wav2vec 2.0."""

    model_type = "hubert"
    default_model = "facebook/hubert-base-ls960"


def _check(config: Any, model_type: str, encoder: str) -> None:
    found = config.model_type
    if found != model_type:
        names = {"wav2vec2": "wav2vec2", "hubert": "hubert", "wavlm": "wavlm"}
        remedy = f"Use the encoder `{names[found]}`." if found in names else "Name another model."
        raise ConfigError(f"{encoder} takes {model_type!r} models, given a {found!r}. {remedy}")
    if getattr(config, "add_adapter", False):
        raise ConfigError(
            "This model has convolutions behind its layers (add_adapter: true), which change what "
            "is pooled. Name a model without them."
        )
    if getattr(config, "conv_pos_batch_norm", False):
        raise ConfigError(
            "This model norms its positions over the batch (conv_pos_batch_norm: true), so that a "
            "clip would depend on the padding of its batch. Name a model without it."
        )
