"""From samples to what is kept of them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fusionkit.data.base import Sample
from fusionkit.doctor.look import Examiner, walk
from fusionkit.doctor.study import Reader
from fusionkit.errors import DataError, EncoderError


class Stream:
    """What data sets give that are read from beginning to end."""

    def __init__(self, count, broken=None):
        self.count, self.broken = count, broken

    def read(self, part, parts, shuffle):
        for number in range(self.count):
            if number == self.broken:
                raise DataError("train-0.tar is cut off.")
            if number % parts == part:
                yield Sample(str(number), {"x": [number]}, 0, f"row {number}")


EXAMINER = Examiner({"x": ("other", [])})


def rows(samples, workers=0):
    return [row for some in walk(samples, EXAMINER, workers) for row in some]


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_are_read_by_all_workers_each_row_once(workers):
    seen = rows(Stream(150), workers)
    assert sorted(int(row.id) for row in seen) == list(range(150))
    assert len({row.seen["x"].digest for row in seen}) == 150


def test_a_stream_that_breaks_off_says_so():
    *seen, last = rows(Stream(20, broken=9))
    assert [row.id for row in seen] == [str(i) for i in range(9)]
    assert last.broken == "train-0.tar is cut off. What follows it was not read."


def test_a_sample_that_cannot_be_made_is_a_broken_row():
    class Samples(list):
        def __getitem__(self, index):
            if index == 1:
                raise DataError("t.csv, row 2: field 'x' is 'a', no list of numbers.")
            return super().__getitem__(index)

    seen = rows(Samples(Sample(str(i), {"x": i}, 0, f"row {i}") for i in range(3)))
    assert [row.broken for row in seen] == [
        "",
        "t.csv, row 2: field 'x' is 'a', no list of numbers.",
        "",
    ]


class Reads:
    """A preprocessor of a plug-in."""

    def __init__(self, error=None):
        self.error, self.calls = error, 0

    def __call__(self, raw):
        self.calls += 1
        if self.error is not None:
            raise self.error

    def collate(self, rows):
        return {}


def look(raw, modality, *readers):
    sample = Sample("0", {"x": raw}, 0, "row 1")
    return Examiner({"x": (modality, list(readers))})(sample).seen["x"]


@pytest.mark.parametrize(
    ("error", "lenient", "reason", "fatal"),
    [
        (DataError("It is cut off."), False, "It is cut off.", True),
        (DataError("It is cut off."), True, "It is cut off.", False),
        (OSError("gone"), True, "OSError: gone", False),
        (KeyError("size"), True, "KeyError: 'size'", True),  # the preprocessor's own fault
        (EncoderError("Not a text."), True, "Not a text.", True),
    ],
)
def test_what_a_preprocessor_raises_is_a_fault(error, lenient, reason, fatal):
    reader = Reader("main 'own'", "main", Reads(error), lenient, lenient)
    (fault,) = look("value", "text", reader).faults
    assert (fault.who, fault.reason, fault.fatal) == ("main 'own'", reason, fatal)


def test_every_encoder_reads_the_value():
    readers = [Reader("main 'a'", "main", Reads()), Reader("complement 'b'", "complement", Reads())]
    look(np.zeros((4, 4, 3), np.uint8), "image", *readers)
    assert [reader.preprocessor.calls for reader in readers] == [1, 1]


def test_an_image_is_measured_whatever_holds_it(tmp_path):
    image = Image.new("L", (6, 3), 7)
    image.save(tmp_path / "a.png")
    path, pil, array, content = (
        look(raw, "image")
        for raw in (
            str(tmp_path / "a.png"),
            image,
            np.full((3, 6), 7, np.uint8),
            (tmp_path / "a.png").read_bytes(),
        )
    )
    assert path.facts == pil.facts == array.facts == content.facts == (6, 3, "L", True)
    assert path.digest == content.digest
    assert (path.shown, pil.shown) == (str(tmp_path / "a.png"), "")


def test_sound_is_measured_whatever_holds_it(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    wave = 0.5 * np.sin(np.arange(8000) / 10, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 8000)
    for raw in (str(tmp_path / "a.wav"), (tmp_path / "a.wav").read_bytes(), (wave, 8000),
                {"array": wave, "sampling_rate": 8000}):  # fmt: skip
        assert look(raw, "audio").facts == (1.0, 8000, False)
    assert look((0 * wave, 8000), "audio").facts == (1.0, 8000, True)


def test_tables_and_vectors_are_measured(tmp_path):
    cells = look({"age": 3, "size": " ", "kind": None}, "table").facts
    assert [bool(cells[name]) for name in ("age", "size", "kind")] == [True, False, False]
    np.save(tmp_path / "v.npy", np.ones((5, 3)))
    assert look(str(tmp_path / "v.npy"), "vector").facts == (5, 3, False)
    assert look([0.0, 0.0], "vector").facts == (1, 2, True)


def test_a_value_of_a_plugin_that_only_its_encoder_knows():
    seen = look(object, "image", Reader("main 'own'", "main", Reads()))
    assert (seen.faults, seen.facts) == ((), None)
    assert seen.digest
