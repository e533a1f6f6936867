"""MUStARD on a small replica."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import replicas

from fusionkit.data.mustard import Mustard
from fusionkit.encoders.audio import load_audio
from fusionkit.encoders.videos import read_frames
from fusionkit.errors import DataError, MissingExtraError
from fusionkit.registry import load


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return replicas.mustard(tmp_path_factory.mktemp("mustard") / "replica")


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "mustard"))


def by_id(root: Path, *splits: str, **arguments) -> dict:
    data = Mustard(str(root), **arguments)
    return {sample.id: sample for split in splits for sample in data.split(split)}


def test_config_is_known_before_any_file_exists():
    data = load("dataset", "mustard")("no/where")
    assert data.fields == {"text": "text", "audio": "audio", "video": "video"}
    assert list(data.classes) == ["sincere", "sarcastic"]


def test_friends_are_the_test_split_of_the_speaker_independent_setting(root):
    Mustard.prepare(root)
    train = by_id(root, "train", "val")
    assert set(train) == {f"1_{i}" for i in range(15)} - {"1_2", "1_3", "1_4"}
    assert set(by_id(root, "test")) == {f"2_{i}" for i in range(15, 25)}
    assert len(by_id(root, "val")) == 1
    assert train["1_6"].target == 1
    assert train["1_7"].target == 0
    assert train["1_0"].fields["text"] == "You don't say."


def test_sound_is_extracted_and_read_by_audio_encoders(root):
    Mustard.prepare(root)
    sample = by_id(root, "test")["2_16"]
    assert sample.fields["audio"] == str(root / "fusionkit" / "audio" / "2_16.wav")
    with wave.open(sample.fields["audio"]) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
    samples = load_audio(sample.fields["audio"], 16_000, 20.0)
    assert len(samples) == pytest.approx(16_000, abs=1_600)
    spectrum = np.abs(np.fft.rfft(samples[4000:12_000]))
    assert np.argmax(spectrum) * 16_000 / 8000 == pytest.approx(440, abs=4)
    assert len(read_frames(sample.fields["video"], 4)) == 4


def test_all_that_is_irregular_is_found(root):
    report = Mustard.prepare(root)
    assert {(what, count, outcome) for what, count, outcome, _ in report.findings.summary()} == {
        ("Õ for an apostrophe", 1, "repaired"),
        ("no series", 1, "taken from the id"),
        ("clip missing", 1, "dropped"),
        ("clip unreadable", 1, "dropped"),
        ("clip without sound", 1, "dropped"),
    }
    counts = {c.split: (c.listed, c.kept, c.published) for c in report.counts}
    assert counts["speaker_independent: train"] == (15, 12, "334")
    assert counts["speaker_independent: test"] == (10, 10, "356")
    assert counts["fold_2: train"] == (20, 17, "552")


def test_incomplete_clips_can_be_kept(root):
    Mustard.prepare(root, keep_incomplete=True)
    found = by_id(root, "train", "val")
    assert len(found) == 15
    assert found["1_2"].fields["video"] is None
    assert found["1_2"].fields["audio"] is None
    assert found["1_4"].fields["audio"] is None
    assert found["1_4"].fields["video"] == str(root / "utterances_final" / "1_4.mp4")


@pytest.mark.parametrize("fold", [1, 4])
def test_folds_are_those_of_the_authors(root, fold):
    Mustard.prepare(root)
    test = by_id(root, "test", setting=f"fold_{fold}")
    assert set(test) == {
        name
        for i in range(25)
        if i % 5 == fold - 1 and (name := f"{1 + (i >= 15)}_{i}") not in ("1_2", "1_3", "1_4")
    }
    rest = by_id(root, "train", "val", setting=f"fold_{fold}")
    assert len(rest) + len(test) == 22


def test_context_comes_before_the_utterance(root):
    Mustard.prepare(root)
    found = by_id(root, "train", "val", context=True)
    assert found["1_6"].fields["text"] == (
        "Which one is it? Number 6?\nGo on.\nIt is the 6th of them."
    )
    assert found["1_1"].fields["text"] == "It is the 1th of them."


def test_without_the_folds_the_other_setting_remains(root):
    (root / "split_indices.p").unlink()
    (remark,) = Mustard.prepare(root).remarks
    assert str(root / "split_indices.p") in remark
    assert len(by_id(root, "test")) == 10
    with pytest.raises(DataError, match=r"prepared without split_indices.p") as error:
        by_id(root, "test", setting="fold_1")
    assert "fusionkit data prepare mustard" in str(error.value)


def test_an_index_that_lost_a_file_is_to_be_made_again(root):
    Mustard.prepare(root)
    (root / "fusionkit" / "speaker_independent.parquet").unlink()
    with pytest.raises(DataError, match="speaker_independent.parquet. Run: fusionkit data prepare"):
        by_id(root, "test")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Harmful()), "it asks for posix.mkdir"),
        (pickle.dumps([(np.arange(3), np.arange(3))] * 5), "does not divide 25 utterances"),
        (pickle.dumps([1, 2]), "cannot be used"),
        (b"not a pickle", "cannot be used"),
        (b"", "cannot be used"),
    ],
)
def test_a_pickle_is_read_as_arrays_or_refused(root, content, message, monkeypatch):
    monkeypatch.chdir(root)
    (root / "split_indices.p").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Mustard.prepare(root)
    assert not (root / "harm").exists()


def test_sound_is_extracted_again_only_from_newer_clips(root):
    Mustard.prepare(root)
    sounds = root / "fusionkit" / "audio"
    before = {path.name: path.stat().st_mtime_ns for path in sounds.iterdir()}
    clip = root / "utterances_final" / "2_15.mp4"
    later = clip.stat().st_mtime + 100
    os.utime(clip, (later, later))
    Mustard.prepare(root)
    after = {path.name: path.stat().st_mtime_ns for path in sounds.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"2_15.wav"}


def test_a_clip_that_was_cut_off_is_none(root):
    clip = root / "utterances_final" / "1_5.mp4"
    replicas.clip(clip, 5, seconds=8.0, fast_start=True)
    Mustard.prepare(root)
    assert "1_5" in by_id(root, "train", "val")
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    later = clip.stat().st_mtime + 100
    os.utime(clip, (later, later))
    Mustard.prepare(root)
    assert "1_5" not in by_id(root, "train", "val")


def test_what_is_missing_is_listed(tmp_path):
    with pytest.raises(DataError) as caught:
        Mustard.prepare(tmp_path / "nowhere")
    message = str(caught.value)
    assert "does not exist. There belong" in message
    assert f"to    {tmp_path / 'nowhere' / 'utterances_final'}" in message
    assert "mmsd_raw_data.zip" in message


def test_an_utterance_without_a_label_is_named(root):
    (root / "sarcasm_data.json").write_text('{"1_1": {"utterance": "Hi", "context": []}}')
    with pytest.raises(DataError, match="'1_1' lacks 'sarcasm'"):
        Mustard.prepare(root)


def test_the_extra_is_named_where_it_is_missing(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"fusionkit\[video\]"):
        Mustard.prepare(root)
