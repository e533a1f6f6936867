from __future__ import annotations

import numpy as np
import pytest
import torch

from fusionkit.data.base import Sample
from fusionkit.data.lengths import is_quick, lengths_of
from fusionkit.data.values import RoleInput
from fusionkit.encoders.audio import AudioPreprocessor
from fusionkit.encoders.texts import TextPreprocessor, load_tokenizer
from fusionkit.encoders.vector import VectorPreprocessor
from fusionkit.errors import DataError

soundfile = pytest.importorskip("soundfile")


def text(max_length=9):
    return TextPreprocessor(load_tokenizer("fusionkit/claims-transformer"), max_length)


@pytest.mark.parametrize(
    "raw", ["it is even", "", None, "the number is even and it is odd and it is even"]
)
def test_texts_are_as_long_as_their_row(raw):
    assert text().length(raw) == len(text()(raw)["input_ids"])


def test_vectors_are_as_long_as_their_row(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((5, 3)))
    for raw in ([1, 2, 3], [[1, 2, 3]] * 4, str(tmp_path / "v.npy")):
        made = VectorPreprocessor(3)
        assert made.length(raw) == len(made(raw))


@pytest.mark.parametrize("rate", [8_000, 44_100])
@pytest.mark.parametrize("samples", [10, 3_000, 44_100, 500_000])
def test_sounds_are_measured_by_their_header(tmp_path, rate, samples):
    array = torch.rand(samples).numpy() - 0.5
    path = tmp_path / "a.wav"
    soundfile.write(path, array, rate)
    made = AudioPreprocessor(16_000, shortest=400, max_seconds=5.0)
    real = len(made(str(path))["waveform"])
    frames = (real - 400) // 320 + 1  # what wav2vec 2.0 makes of it
    for raw in (str(path), (array, rate), {"array": array, "sampling_rate": rate}):
        assert frames <= made.length(raw) <= frames + 2


def rows(*values):
    return [Sample(str(i), {"text": v}, 0, f"t.csv, row {i + 1}") for i, v in enumerate(values)]


def test_each_role_has_a_column_and_missing_fields_count_as_their_blank():
    samples = rows("it is even", None)
    may_lack, blank = (
        RoleInput("complement", "text", text(), may_lack=True, blank=b) for b in (None, "")
    )
    found = lengths_of(samples, [may_lack, blank])
    assert found is not None
    assert found.tolist() == [[5, 5], [0, 2]]
    assert lengths_of(samples, [may_lack], chosen=[1]).tolist() == [[0]]  # type: ignore[union-attr]


def test_a_broken_file_is_named_or_counts_as_missing(tmp_path):
    broken = tmp_path / "a.wav"
    broken.write_bytes(b"no sound")
    samples = rows(str(broken))
    audio = AudioPreprocessor(16_000, shortest=400, max_seconds=5.0)
    with pytest.raises(DataError, match=r"^t.csv, row 1: field 'text' .* cannot be read"):
        lengths_of(samples, [RoleInput("main", "text", audio)])
    lenient = RoleInput("main", "text", audio, may_lack=True, unreadable=True)
    assert lengths_of(samples, [lenient]).tolist() == [[0]]  # type: ignore[union-attr]


def test_lengths_that_cost_a_request_each_are_not_quick():
    roles = [RoleInput("main", "text", text())]
    assert is_quick(rows("it is even"), roles)
    assert not is_quick(rows("s3://bucket/1.wav"), roles)
