"""Audio Spectrogram Transformer of transformers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from fusionkit.encoders.attention import PromptRows, parts_of
from fusionkit.encoders.audio import RATE, load_audio, read_preprocessing
from fusionkit.encoders.base import (
    Features,
    Inputs,
    MainEncoder,
    Modality,
    TokenState,
)
from fusionkit.encoders.state import split_first
from fusionkit.encoders.transformers_weights import architecture, build
from fusionkit.encoders.weights import locate
from fusionkit.errors import ConfigError, EncoderError

# Kaldi's features, as ASTFeatureExtractor has them: 25 ms every 10 ms.
_WINDOW, _HOP = 400, 160
_SPECTRUM = {
    "frame_length": _WINDOW,
    "hop_length": _HOP,
    "fft_length": 512,
    "power": 2.0,
    "center": False,
    "preemphasis": 0.97,
    "log_mel": "log",
    "mel_floor": 1.192092955078125e-07,
    "remove_dc_offset": True,
}


class AST(MainEncoder):
    """Audio Spectrogram Transformer (arXiv 2104.01778), prompted in its keys and values.

    ``pooled`` is upstream's: the mean of class and distillation token. Its positions are those of
    a fixed time, 10.24 s for AudioSet: longer clips are cut, shorter ones go on in silence.
    """

    modality: ClassVar[Modality] = "audio"
    takes_parts: ClassVar[bool] = True

    backbone: Any  # an ASTModel

    def __init__(
        self,
        model: str | None = None,
        weights: str = "pretrained",
        config: dict[str, Any] | None = None,
    ) -> None:
        """Build the encoder.

        Args:
            model: Hub name or local folder; MIT/ast-finetuned-audioset-10-10-0.4593 if neither
                it nor ``config`` is given.
            weights: ``pretrained`` (those of ``model``), ``random``, or a local file or folder.
            config: A net of one's own instead of ``model``: a transformers config with
                ``model_type``; its weights are ``random`` or a path.

        Raises:
            ConfigError: Both ``model`` and ``config``, or another family.
            WeightsError: The weights were not found or do not fit.
        """
        super().__init__()
        default = "MIT/ast-finetuned-audioset-10-10-0.4593"
        found, self._model = architecture(model, weights, config, default)
        self._weights = weights
        if found.model_type != "audio-spectrogram-transformer":
            raise ConfigError(
                f"AST takes 'audio-spectrogram-transformer' models, given a "
                f"{found.model_type!r}. Name another model."
            )
        self.backbone = build(found, weights, None if self._model is None else locate(self._model))

    @property
    def out_dim(self) -> int:
        return int(self.backbone.config.hidden_size)

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.backbone.layers)

    @property
    def takes_tokens(self) -> bool:
        return True

    @property
    def takes_queries(self) -> bool:
        return True

    @property
    def layer_widths(self) -> tuple[int, ...]:
        return (self.out_dim,) * len(self.layers)

    def embed(self, inputs: Inputs) -> TokenState:
        config = self.backbone.config
        if not {"spectrogram", "silence"} <= set(inputs):
            raise EncoderError(
                f"AST takes inputs['spectrogram'] and inputs['silence'], given {sorted(inputs)}; "
                f"collate them with its preprocessor()."
            )
        frames = inputs["spectrogram"]
        length, bands = config.max_length, config.num_mel_bins
        if frames.ndim != 3 or frames.shape[1] > length or frames.shape[2] != bands:
            raise EncoderError(
                f"AST takes spectrograms of shape (B, T, {bands}) with T at most {length}, given "
                f"{tuple(frames.shape)}; preprocess with its preprocessor()."
            )
        rest = inputs["silence"][:, None, None].expand(-1, length - frames.shape[1], bands)
        return TokenState(self.backbone.embeddings(torch.cat([frames, rest], dim=1)))

    def run_layer(self, layer: int, state: TokenState, prompts: PromptRows | None) -> TokenState:
        block: Any = self.layers[layer]
        rows = tuple(map(block.layernorm_before, parts_of(prompts)))
        return state.with_tokens(block(state.tokens, prompts=rows))

    @property
    def pools_apart(self) -> bool:
        return True

    def pooled_apart(self, state: TokenState) -> tuple[TokenState, TokenState]:
        return split_first(state, 2)

    def readout(self, state: TokenState) -> Features:
        tokens = self.backbone.layernorm(state.tokens)
        return Features((tokens[:, 0] + tokens[:, 1]) / 2, tokens)

    def preprocessor(self, train: bool) -> SpectrogramPreprocessor:
        settings = read_preprocessing(self._model, self._weights)
        config = self.backbone.config
        scale = {key: settings[key] for key in ("mean", "std") if key in settings}
        if not settings.get("do_normalize", True):
            scale = {"mean": 0.0, "std": 0.5}
        return SpectrogramPreprocessor(config.max_length, config.num_mel_bins, **scale)


class SpectrogramPreprocessor:
    """Raw audio to ``{"spectrogram": (B, T, bands) float32, "silence": (B,) float32}``.

    Log-mel frames as ASTFeatureExtractor makes them where torchaudio is not installed, padded to
    the longest of the batch with what upstream pads with, ``silence``.
    """

    def __init__(
        self, frames: int, bands: int, mean: float = -4.2677393, std: float = 4.5689974
    ) -> None:
        """Make the filters.

        Args:
            frames: What comes later is cut off.
            bands: Mel bands.
            mean: Mean of the log-mel values; by default that of AudioSet.
            std: Their standard deviation; the result has half of it.
        """
        self.frames = frames
        self.mean = mean
        self.std = std
        self.window = window_function(_WINDOW, "hann", periodic=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the lowest of AST's own 128 bands holds no frequency
            self.filters = mel_filter_bank(
                num_frequency_bins=257,
                num_mel_filters=bands,
                min_frequency=20,
                max_frequency=RATE // 2,
                sampling_rate=RATE,
                norm=None,
                mel_scale="kaldi",
                triangularize_in_mel_space=True,
            )

    def __call__(self, raw: Any) -> dict[str, Tensor]:
        """One clip to ``{"spectrogram": (T, bands), "silence": ()}``.

        Raises:
            DataError: See :func:`fusionkit.encoders.audio.load_audio`.
        """
        longest = round(self.max_seconds * RATE)
        samples = load_audio(raw, RATE, self.max_seconds)[:longest]
        samples = np.pad(samples, (0, max(0, _WINDOW - len(samples))))
        mel = spectrogram(samples, self.window, mel_filters=self.filters, **_SPECTRUM).T
        return {
            "spectrogram": torch.from_numpy(self._scale(mel.astype(np.float32))),
            "silence": torch.tensor(self._scale(0.0), dtype=torch.float32),
        }

    @property
    def max_seconds(self) -> float:
        """What comes later is cut off."""
        return ((self.frames - 1) * _HOP + _WINDOW) / RATE

    def _scale(self, values: Any) -> Any:
        return (values - self.mean) / (2 * self.std)

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Rows to a batch, padded to its longest."""
        frames = [row["spectrogram"] for row in rows]
        return {
            "spectrogram": pad_sequence(
                frames, batch_first=True, padding_value=float(self._scale(0.0))
            ),
            "silence": torch.stack([row["silence"] for row in rows]),
        }
