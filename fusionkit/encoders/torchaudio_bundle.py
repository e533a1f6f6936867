"""Speech models of torchaudio's pipelines, whose weights come without the hub."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.encoders.attention import run_concatenated
from fusionkit.encoders.audio import MAX_SECONDS, AudioPreprocessor, check_seconds
from fusionkit.encoders.base import TokenState
from fusionkit.encoders.speech import SpeechEncoder
from fusionkit.encoders.weights import building_on_meta, load_file
from fusionkit.errors import (
    ConfigError,
    MissingExtraError,
    UnknownNameError,
    WeightsError,
    suggest,
)
from fusionkit.registry import require

_REMEDY = "Give a local file with `weights: PATH`, or `weights: random`."


class TorchaudioBundle(SpeechEncoder):
    """A wav2vec 2.0, HuBERT or WavLM of ``torchaudio.pipelines``; heads are left out.

    Prompts are concatenated to the tokens and run through upstream's own layers: as a clip has
    50 tokens a second, that costs little, and it equals extra keys and values.
    """

    def __init__(
        self,
        model: str = "WAV2VEC2_BASE",
        weights: str = "pretrained",
        max_seconds: float = MAX_SECONDS,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Build the encoder.

        Args:
            model: Name of a bundle: WAV2VEC2_BASE, HUBERT_LARGE, WAVLM_BASE_PLUS, ...
            weights: ``pretrained`` (those of the bundle, from download.pytorch.org or torch's
                local cache), ``random``, or a local file.
            max_seconds: Longer clips are cut at their end. 20 s are the longest crops of
                wav2vec 2.0's pretraining; attention costs the square of it.
            options: Arguments of ``torchaudio.models.wav2vec2_model`` or ``wavlm_model`` that
                differ from the bundle's; with ``weights: random`` or a file.

        Raises:
            ConfigError: Options that the model lacks, or together with pretrained weights.
            UnknownNameError: No bundle of that name holds such a model.
            WeightsError: The weights were not found or do not fit.
            MissingExtraError: torchaudio is not installed, or does not load.
        """
        super().__init__()
        self.max_seconds = check_seconds(max_seconds)
        self._bundle = _find_bundle(model)
        self.backbone = _build(self._bundle, model, weights, options or {})

    @property
    def transformer(self) -> Any:
        return self.backbone.encoder.transformer

    @property
    def pre_norm(self) -> bool:
        return bool(self.transformer.layers[0].layer_norm_first)

    def convolve(self, block: nn.Module, x: Tensor) -> Tensor:
        frames: Tensor = block(x, None)[0]
        return frames

    def project(self, features: Tensor) -> Tensor:
        return self.backbone.encoder.feature_projection(features)

    def layer_cache(self, tokens: Tensor, keep: Tensor) -> Tensor | None:
        """WavLM's biases for relative positions, (heads, L, L)."""
        attention = self.transformer.layers[0].attention
        if not hasattr(attention, "compute_bias"):
            return None
        bias: Tensor = attention.compute_bias(tokens.shape[1], tokens.shape[1])
        return bias

    def run_layer(self, layer: int, state: TokenState, prompts: Tensor | None) -> TokenState:
        keep, bias = state.keep, state.cache
        assert keep is not None
        front = 0 if prompts is None else prompts.shape[1]
        visible = F.pad(keep, (front, 0), value=True)
        length = visible.shape[1]
        if bias is None:
            mask = visible[:, None, None].expand(-1, 1, length, length)
            arguments = {"attention_mask": mask}
        else:
            # Prompts have no position, so no bias. Upstream warns of a bool mask beside it.
            hidden = bias.new_zeros(visible.shape).masked_fill(~visible, -torch.inf)
            bias = F.pad(bias, (front, 0, front, 0))
            arguments = {"position_bias": bias, "key_padding_mask": hidden}

        def block(rows: Tensor) -> Tensor:
            out: Tensor = self.transformer.layers[layer](rows, **arguments)[0]
            return out

        return state.with_tokens(run_concatenated(block, state.tokens, prompts))

    def preprocessor(self, train: bool) -> AudioPreprocessor:
        return AudioPreprocessor(
            rate=int(self._bundle.sample_rate),
            shortest=self.shortest,
            max_seconds=self.max_seconds,
            normalize=self._bundle._normalize_waveform,
            epsilon=1e-5,  # of the layer norm that upstream wraps around such a model
        )


# torchaudio 2.11, the last release, says what a bundle is made of in private attributes only.


def _find_bundle(name: str) -> Any:
    try:
        pipelines = require("torchaudio.pipelines", "torchaudio")
    except (OSError, RuntimeError) as error:
        raise MissingExtraError(
            f"torchaudio is installed but does not load: {error} Install the build of torchaudio "
            f"that belongs to torch {torch.__version__}, or use the encoders wav2vec2, hubert and "
            f"wavlm, which do without."
        ) from error
    known = {
        name: bundle
        for name, bundle in vars(pipelines).items()
        if isinstance(bundle, pipelines.Wav2Vec2Bundle)
    }
    if name not in known:
        raise UnknownNameError(
            f"torchaudio has no speech model {name!r}.{suggest(name, known)} "
            f"Known: {', '.join(sorted(known))}."
        )
    return known[name]


def _build(bundle: Any, name: str, weights: str, options: dict[str, Any]) -> nn.Module:
    if weights == "pretrained" and options:
        raise ConfigError(
            f"The pretrained weights of {name} do not fit other options ({', '.join(options)}). "
            f"Set `weights: random` or `weights: PATH`."
        )
    if weights == "pretrained" and not building_on_meta():
        return _pretrained(bundle, name)
    models = require("torchaudio.models", "torchaudio")
    make = models.wavlm_model if bundle._model_type == "WavLM" else models.wav2vec2_model
    unknown = sorted(set(options) - set(bundle._params))
    if unknown:
        raise ConfigError(
            f"{name} has no option {unknown[0]!r}.{suggest(unknown[0], bundle._params)} "
            f"It has: {', '.join(bundle._params)}."
        )
    backbone: nn.Module = make(**{**bundle._params, **options, "aux_num_out": None})
    if weights not in ("pretrained", "random") and not building_on_meta():
        load_file(backbone, weights, without=("aux.weight", "aux.bias"))
    return backbone


def _pretrained(bundle: Any, name: str) -> nn.Module:
    try:
        model = bundle.get_model(dl_kwargs={"progress": False})
    except (OSError, RuntimeError) as error:  # RuntimeError: a damaged download
        raise WeightsError(
            f"Looked for the weights of {name} in torch's cache ({torch.hub.get_dir()}) and on "
            f"download.pytorch.org: {error}. {_REMEDY}"
        ) from error
    backbone: Any = getattr(model, "model", model)  # without what normalises the waveform
    backbone.aux = None  # the head
    return backbone  # type: ignore[no-any-return]
