"""Audio preprocessing, against tones computed by hand and upstream's feature extractor."""

from __future__ import annotations

import csv
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2FeatureExtractor

from fusionkit.encoders.audio import (
    AudioPreprocessor,
    load_audio,
    read_preprocessing,
    waveforms_of,
)
from fusionkit.errors import DataError, EncoderError, MissingExtraError, WeightsError

RATE = 16_000


def tone(rate, seconds=1.0, pitch=440.0):
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate)).astype("f4")


def load(raw, max_seconds=20.0):
    return load_audio(raw, RATE, max_seconds)


@pytest.mark.parametrize(
    ("suffix", "error"), [("wav", 1e-4), ("flac", 1e-4), ("aiff", 1e-4), ("ogg", 0.03)]
)
def test_files_are_read(tmp_path, suffix, error):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(RATE), RATE)
    for raw in (path, str(path)):
        samples = load(raw)
        assert samples.dtype == np.float32
        np.testing.assert_allclose(samples, tone(RATE), atol=error)


def test_mp3_is_read(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, tone(RATE), RATE)
    samples = load(path)
    assert abs(len(samples) - RATE) <= 1152  # a block of the format
    np.testing.assert_allclose(
        samples[1152:-1152], tone(RATE)[1152 : len(samples) - 1152], atol=0.05
    )


@pytest.mark.parametrize("own", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampled_tone_is_the_same_tone(own):
    samples = load((tone(own), own))
    assert len(samples) == RATE
    np.testing.assert_allclose(samples[400:-400], tone(RATE)[400:-400], atol=2e-3)


def test_downsampling_takes_out_what_would_fold_back():
    assert np.abs(load((tone(48_000, pitch=15_000.0), 48_000))[400:-400]).max() < 0.02


def test_all_forms_of_an_array_give_the_same():
    stereo = np.stack([tone(RATE), tone(RATE, pitch=880.0)])
    expected = stereo.mean(axis=0)
    forms = [
        (stereo, RATE),
        (stereo.T, float(RATE)),
        (torch.from_numpy(stereo), np.int64(RATE)),
        (stereo.astype(np.float64), RATE),
        (expected, RATE),
        (expected[None], RATE),
        {"array": stereo.T, "sampling_rate": RATE, "path": None},
        {"array": expected.tolist(), "sampling_rate": RATE},
    ]
    for raw in forms:
        np.testing.assert_allclose(load(raw), expected, atol=1e-6)


def test_channels_of_a_file_are_mixed(tmp_path):
    stereo = np.stack([tone(RATE), tone(RATE, pitch=880.0)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, RATE, subtype="FLOAT")
    np.testing.assert_allclose(load(tmp_path / "a.wav"), stereo.mean(axis=1), atol=1e-6)


def test_integers_are_scaled_to_one():
    for dtype, bits in ((np.int16, 15), (np.int32, 31)):
        values = np.array([-(2**bits), 2 ** (bits - 1), 0], dtype=dtype)
        np.testing.assert_array_equal(load((values, RATE)), np.array([-1, 0.5, 0], "f4"))


def test_later_sound_is_cut_off_and_not_read(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(8_000, seconds=3.0), 8_000)
    asked, read = [], soundfile.SoundFile.read

    def counted(self, frames, **options):
        asked.append(frames)
        return read(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    samples = load(path, 0.5)
    assert (len(samples), asked) == (8_000, [4_000])
    np.testing.assert_allclose(samples[400:-400], tone(RATE)[400:7_600], atol=2e-3)
    assert len(load((tone(RATE, seconds=3.0), RATE), 0.5)) == 8_000
    assert len(load((tone(44_100), 44_100), 0.3333)) == 5_333


ARRAY = "An audio array"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (None, "Audio is a path, .*given NoneType. Check which field"),
        (7, "given int"),
        ({"bytes": b"", "path": "a.wav"}, r"audio file a.wav \(0 bytes\) cannot be read: Form"),
        ({"bytes": None, "path": None}, r"given a dict of \['bytes', 'path'\]"),
        (tone(RATE), "without its rate; give (array, rate)"),
        ((tone(RATE), 0), f"{ARRAY} has a rate of 0; it is a positive whole number"),
        ((tone(RATE), -8000), "rate of -8000"),
        ((tone(RATE), None), "rate of None"),
        ((tone(RATE), "16k"), "rate of '16k'"),
        ((tone(RATE), float("nan")), "rate of nan"),
        ((tone(RATE), 16000.5), "rate of 16000.5"),
        ((np.zeros(0), RATE), f"{ARRAY} holds no samples"),
        ((np.zeros((2, 0)), RATE), "no samples"),
        ((np.zeros((2, 3, 4)), RATE), r"has the shape \(samples,\).*given \(2, 3, 4\)"),
        ((np.zeros((2, 2)), RATE), r"more samples than channels.*given \(2, 2\)"),
        ((np.zeros((64, 100)), RATE), r"at most 32 of these, given \(64, 100\)"),
        ((np.array([0.0, np.nan, np.inf]), RATE), "2 samples that are NaN or infinite, of 3"),
        ((np.array([0.0, 3e4]), RATE), r"floats up to 3e\+04; .* by 32768"),
        ((np.array([1, 2]), RATE), "is float, int16 or int32, given int64; convert it"),
    ],
)
def test_arrays_that_cannot_be_used_say_why(raw, message):
    with pytest.raises(DataError, match=message.replace("(array, rate)", r"\(array, rate\)")):
        load(raw)


def test_files_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "a.wav"
    with pytest.raises(DataError, match=f"audio file {path} does not exist"):
        load(path)
    with pytest.raises(DataError, match=f"{tmp_path} is a folder"):
        load(tmp_path)
    for content in (b"", b"no sound at all" * 50):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{path} cannot be read: .* replace or convert it"):
            load(path)
    soundfile.write(path, np.zeros((0, 1)), RATE)
    with pytest.raises(DataError, match=f"{path} holds no samples"):
        load(path)
    soundfile.write(tmp_path / "a.flac", tone(RATE), RATE)
    whole = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="a.flac cannot be read"):
        load(tmp_path / "a.flac")
    (tmp_path / "a.raw").write_bytes(bytes(100))
    with pytest.raises(DataError, match="a.raw cannot be read: samplerate must be specified"):
        load(tmp_path / "a.raw")


def test_missing_library_names_its_extra(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(RATE), RATE)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingExtraError, match=r"'soundfile'.*fusionkit\[audio\]"):
        load(tmp_path / "a.wav")
    assert len(load((tone(RATE), RATE))) == RATE  # arrays need no library


CLIPS = [tone(RATE, 0.1), tone(RATE, 0.3, 200.0) + np.float32(0.2), tone(RATE, 0.2, 90.0)]


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_upstreams_feature_extractor(normalize):
    ours = AudioPreprocessor(RATE, shortest=400, max_seconds=20.0, normalize=normalize)
    batch = ours.collate([ours((clip, RATE)) for clip in CLIPS])
    upstream = Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=True)
    expected = upstream(CLIPS, sampling_rate=RATE, padding=True, return_tensors="pt")
    torch.testing.assert_close(batch["waveform"], expected["input_values"], rtol=0, atol=1e-6)
    assert batch["samples"].tolist() == expected["attention_mask"].sum(1).tolist()
    assert batch["samples"].tolist() == [1600, 4800, 3200]


def test_too_short_clips_become_one_frame():
    ours = AudioPreprocessor(RATE, shortest=400, max_seconds=20.0)
    for length in (1, 399, 400):
        row = ours((tone(RATE)[1 : length + 1], RATE))["waveform"]
        assert (len(row), row.dtype) == (400, torch.float32)
        assert row.isfinite().all()
        assert not row[length:].any()


def test_silence_is_finite():
    ours = AudioPreprocessor(RATE, shortest=400, max_seconds=20.0)
    assert not ours((np.zeros(1000, "f4"), RATE))["waveform"].any()


def test_travels_to_workers():
    ours = AudioPreprocessor(RATE, shortest=400, max_seconds=0.2)
    there = pickle.loads(pickle.dumps(ours))
    for clip in CLIPS:
        assert torch.equal(there((clip, RATE))["waveform"], ours((clip, RATE))["waveform"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pixels": torch.zeros(1)}, r"X takes inputs\['waveform'\].*given \['pixels'\]"),
        ({"waveform": torch.zeros(2, 399)}, r"at least 400, given \(2, 399\)"),
        ({"waveform": torch.zeros(400)}, r"given \(400,\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, message):
    if "waveform" in inputs:
        inputs["samples"] = torch.tensor([1, 1])
    with pytest.raises(EncoderError, match=message):
        waveforms_of(inputs, "X", 400)


def test_preprocessing_of_a_folder_is_its_own(tmp_path):
    with pytest.raises(WeightsError, match=r"lacks preprocessor_config\.json.*beside its weights"):
        read_preprocessing(str(tmp_path), "pretrained")
    Wav2Vec2FeatureExtractor(do_normalize=False, sampling_rate=8000).save_pretrained(tmp_path)
    for weights in ("pretrained", "random"):
        found = read_preprocessing(str(tmp_path), weights)
        assert (found["do_normalize"], found["sampling_rate"]) == (False, 8000)


def test_preprocessing_of_well_known_models_needs_no_network():
    assert read_preprocessing(None, "random") == {}
    assert read_preprocessing("facebook/wav2vec2-base", "random") == {}
    assert read_preprocessing("microsoft/wavlm-base", "random") == {"do_normalize": False}


def test_real_recordings(root: Path):
    data = root.parent / "shared" / "data" / "spoken-digits"
    if not data.is_dir():
        pytest.skip("no recordings beside the repository")
    with (data / "digits.csv").open() as file:
        names = [row["audio"] for row in csv.DictReader(file)][::300]
    ours = AudioPreprocessor(RATE, shortest=400, max_seconds=20.0)
    batch = ours.collate([ours(data / name) for name in names])
    seconds = [soundfile.info(data / name).duration for name in names]
    assert len(names) == 10
    assert batch["samples"].tolist() == pytest.approx([RATE * s for s in seconds], abs=2)
    for row, length in zip(batch["waveform"], batch["samples"], strict=True):
        assert row[:length].mean().abs() < 1e-3
        assert row[:length].std() == pytest.approx(1, abs=1e-2)
        # 8 kHz recordings hold nothing above 4 kHz.
        spectrum = torch.fft.rfft(row[:length]).abs().square()
        half = len(spectrum) // 2
        assert spectrum[int(1.15 * half) :].sum() < 0.01 * spectrum.sum()
