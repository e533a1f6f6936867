"""Audio preprocessing: files and arrays to mono waveforms at an encoder's own rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import SequenceFeatureExtractor

from fusionkit.encoders.base import Inputs
from fusionkit.encoders.files import file_name, is_file, local_path, open_file
from fusionkit.encoders.transformers_known import known_preprocessing
from fusionkit.encoders.transformers_weights import fetch
from fusionkit.encoders.weights import locate
from fusionkit.errors import ConfigError, DataError, EncoderError, WeightsError
from fusionkit.registry import require

RATE = 16_000  # samples per second that all published models of these families expect
MAX_SECONDS = 20.0  # the longest crops of wav2vec 2.0's pretraining: arXiv 2006.11477, section 4.2

_TOKEN_SECONDS = 0.02  # 320 samples at 16 kHz: the stride of all their convolutions
_LOUDEST = 10.0  # 20 dB over full scale: floats beyond it are integers that were not scaled
_MOST_CHANNELS = 32
_FULL_SCALE = {np.dtype(np.int16): 2**15, np.dtype(np.int32): 2**31}

Samples = NDArray[np.float32]


def load_audio(raw: Any, rate: int, max_seconds: float) -> Samples:
    """A raw value to mono samples.

    Args:
        raw: A file that libsndfile reads (WAV, FLAC, Ogg, MP3, ...): its path or URL, bytes, or
            ``{"bytes", "path"}``; or ``(array, rate)``, or
            ``{"array": ..., "sampling_rate": ...}``. Arrays (numpy or torch) are (samples,), or
            have their channels on the shorter side; floats in -1..1, int16 or int32.
        rate: Samples per second of the result.
        max_seconds: What comes later is cut off; of a file, it is not read.

    Returns:
        (S,) float32, at least one sample.

    Raises:
        DataError: The file is missing, damaged or empty, or the array is not sound.
    """
    if is_file(raw):
        name = f"The audio file {file_name(raw)}"
        array, own = _read_file(raw, name, max_seconds)
    else:
        name = "An audio array"
        array, own = _unpack(raw)
    if array.size == 0:
        raise DataError(f"{name} holds no samples. Leave the row out, or its audio empty.")
    _check_rate(own, name)
    samples = _mono(array, name)[: math.ceil(max_seconds * own)]
    _check_values(samples, name)
    return _resample(samples, int(own), rate)[: math.ceil(max_seconds * rate)]


def audio_seconds(raw: Any) -> float:
    """How long a raw value is; of a file, only its header is read.

    Args:
        raw: As in :func:`load_audio`.

    Raises:
        DataError: The file is missing or damaged, or the array has no rate.
    """
    if is_file(raw):
        with _open(raw, f"The audio file {file_name(raw)}") as file:
            return float(file.frames / file.samplerate)
    array, own = _unpack(raw)
    _check_rate(own, "An audio array")
    return float(max(array.shape, default=0) / own)


def _read_file(raw: Any, name: str, max_seconds: float) -> tuple[Samples, int]:
    with _open(raw, name) as file:
        frames = file.read(
            math.ceil(max_seconds * file.samplerate), dtype="float32", always_2d=True
        )
        return frames.mean(axis=1), file.samplerate


@contextmanager
def _open(raw: Any, name: str) -> Iterator[Any]:
    """A file as soundfile opens it; what goes wrong in reading it is a DataError."""
    path = local_path(raw)
    if path is not None and not Path(path).is_file():
        raise DataError(f"{name} {'is a folder' if Path(path).is_dir() else 'does not exist'}.")
    soundfile = require("soundfile", "audio")
    try:
        with soundfile.SoundFile(path or open_file(raw)) as file:
            yield file
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: .raw states no rate
        why = str(getattr(error, "error_string", error))  # without the name of a Python object
        raise DataError(
            f"{name} cannot be read: {why.rstrip('.')}. It is damaged or no format of "
            f"libsndfile (WAV, FLAC, Ogg, MP3, ...); replace or convert it."
        ) from error


def _unpack(raw: Any) -> tuple[NDArray[Any], Any]:
    if isinstance(raw, tuple) and len(raw) == 2:
        return np.asarray(raw[0]), raw[1]
    if isinstance(raw, Mapping) and {"array", "sampling_rate"} <= raw.keys():
        return np.asarray(raw["array"]), raw["sampling_rate"]
    if isinstance(raw, np.ndarray | Tensor | list):
        raise DataError("An audio array was given without its rate; give (array, rate).")
    shown = f"a dict of {sorted(raw)}" if isinstance(raw, Mapping) else type(raw).__name__
    raise DataError(
        f"Audio is a path, a URL, bytes, (array, rate) or a dict with 'array' and "
        f"'sampling_rate', given "
        f"{shown}. Check which field holds the audio."
    )


def _mono(array: NDArray[Any], name: str) -> Samples:
    if array.dtype in _FULL_SCALE:
        array = array / np.float32(_FULL_SCALE[array.dtype])
    elif array.dtype.kind != "f":
        raise DataError(f"{name} is float, int16 or int32, given {array.dtype}; convert it.")
    samples: Samples = array.astype(np.float32)
    if samples.ndim == 2 and min(samples.shape) <= _MOST_CHANNELS:
        longer = samples.shape[0] != samples.shape[1] or samples.size == 1
        samples = samples.mean(axis=int(np.argmin(samples.shape))) if longer else samples
    if samples.ndim != 1:
        raise DataError(
            f"{name} has the shape (samples,), (samples, channels) or (channels, samples), with "
            f"more samples than channels and at most {_MOST_CHANNELS} of these, given "
            f"{array.shape}."
        )
    return samples


def _check_rate(own: Any, name: str) -> None:
    numeric = isinstance(own, int | float | np.integer | np.floating)
    if not numeric or not 1 <= own <= 1e7 or own != int(own):
        raise DataError(
            f"{name} has a rate of {own!r}; it is a positive whole number of samples per second."
        )


def _check_values(samples: Samples, name: str) -> None:
    strange = int((~np.isfinite(samples)).sum())
    if strange:
        raise DataError(
            f"{name} has {strange} samples that are NaN or infinite, of {samples.size}. "
            f"Repair or replace it."
        )
    peak = float(np.abs(samples).max())
    if peak > _LOUDEST:
        raise DataError(
            f"{name} has floats up to {peak:.4g}; they are in -1..1. Divide what was made from "
            f"16-bit integers by 32768."
        )


def _resample(samples: Samples, own: int, rate: int) -> Samples:
    if own == rate:
        return samples
    from scipy.signal import resample_poly  # slow to import, and not every clip needs it

    common = math.gcd(own, rate)
    out: Samples = resample_poly(samples, rate // common, own // common).astype(np.float32)
    return out


class AudioPreprocessor:
    """Raw audio to ``{"waveform": (B, S) float32, "samples": (B,) long}``.

    Clips are mixed to mono, resampled, cut, and padded with zeros on the right; ``samples`` says
    how many of a row are real.
    """

    def __init__(
        self,
        rate: int,
        shortest: int,
        max_seconds: float,
        normalize: bool = True,
        epsilon: float = 1e-7,
    ) -> None:
        """Set the format.

        Args:
            rate: Samples per second.
            shortest: Shorter clips get zeros up to this many samples, which count as real.
            max_seconds: Longer clips are cut.
            normalize: To zero mean and unit variance, each clip by itself.
            epsilon: Added to the variance; that of Wav2Vec2FeatureExtractor.
        """
        self.rate = rate
        self.shortest = shortest
        self.max_seconds = max_seconds
        self.normalize = normalize
        self.epsilon = epsilon

    def __call__(self, raw: Any) -> dict[str, Tensor]:
        """One clip to ``{"waveform": (S,)}``.

        Raises:
            DataError: See :func:`load_audio`.
        """
        samples = load_audio(raw, self.rate, self.max_seconds)
        if self.normalize:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + self.epsilon)
        samples = np.pad(samples, (0, max(0, self.shortest - len(samples))))
        return {"waveform": torch.from_numpy(samples)}

    def length(self, raw: Any) -> int:
        """Tokens of 20 ms, as wav2vec 2.0 and its kin make them.

        Raises:
            DataError: See :func:`audio_seconds`.
        """
        seconds = min(audio_seconds(raw), self.max_seconds)
        return math.ceil(max(seconds, self.shortest / self.rate) / _TOKEN_SECONDS)

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Rows to a batch, padded to its longest."""
        waveforms = [row["waveform"] for row in rows]
        return {
            "waveform": pad_sequence(waveforms, batch_first=True),
            "samples": torch.tensor([len(waveform) for waveform in waveforms]),
        }


def waveforms_of(inputs: Inputs, encoder: str, shortest: int) -> tuple[Tensor, Tensor]:
    """``inputs["waveform"]``, (B, S), and ``inputs["samples"]``, (B,), if they fit.

    Args:
        inputs: What :class:`AudioPreprocessor` collated.
        encoder: Named in the message.
        shortest: The least S.

    Raises:
        EncoderError: A key is missing, or the shape is another one.
    """
    if not {"waveform", "samples"} <= set(inputs):
        raise EncoderError(
            f"{encoder} takes inputs['waveform'] and inputs['samples'], given {sorted(inputs)}; "
            f"collate them with its preprocessor()."
        )
    waveform = inputs["waveform"]
    if waveform.ndim != 2 or waveform.shape[1] < shortest:
        raise EncoderError(
            f"{encoder} takes a waveform of shape (B, S) with S at least {shortest}, given "
            f"{tuple(waveform.shape)}; preprocess with its preprocessor()."
        )
    return waveform, inputs["samples"]


def check_seconds(max_seconds: float) -> float:
    """``max_seconds`` if it is a length.

    Raises:
        ConfigError: It is not positive.
    """
    if not 0 < max_seconds < math.inf:
        raise ConfigError(f"max_seconds is a positive number of seconds, given {max_seconds}.")
    return max_seconds


def read_preprocessing(model: str | None, weights: str) -> Mapping[str, Any]:
    """What ``preprocessor_config.json`` of a model says; nothing for a net of one's own.

    Like its architecture, that of a well-known model is known without a network unless its
    pretrained weights are asked for.

    Raises:
        WeightsError: There is none.
    """
    name = "preprocessor_config.json"

    def read(source: str, local_files_only: bool = False) -> Mapping[str, Any]:
        found: Mapping[str, Any] = SequenceFeatureExtractor.get_feature_extractor_dict(
            source, local_files_only=local_files_only
        )[0]
        return found

    if model is None:
        return {}
    source = locate(model)
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*processor_config.json")):
        raise WeightsError(
            f"The folder {source!r} lacks {name}, which says at what rate and how normalised a "
            f"model hears. Put the model's own beside its weights."
        )
    if weights != "pretrained":
        try:
            return read(source, local_files_only=True)
        except (OSError, ValueError):
            known = known_preprocessing(source)
        if known is not None:
            return known
    return fetch(read, source, name)
