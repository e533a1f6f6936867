"""Which samples lack a field, and when that is an error."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from fusionkit.data.base import Sample
from fusionkit.data.missing import (
    Unreadable,
    blank_of,
    count_missing,
    ids_of,
    is_empty,
    lacks,
)
from fusionkit.data.table import Table
from fusionkit.encoders.images import ImagePreprocessor
from fusionkit.errors import ConfigError, DataError


def sample(number: int, **fields) -> Sample:
    return Sample(f"id{number}", fields, 0, f"t.csv, row {number + 1}")


SAMPLES = [sample(0, a=1, t="x"), sample(1, a=None, t=""), sample(2, t="y"), sample(3, a=0, t=None)]


class Slow(Sequence):
    """Samples that are costly to make, as those of a stream of images."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise AssertionError("nobody asked for this sample")


@pytest.mark.parametrize(
    ("value", "empty"),
    [
        (None, True), ("", True), ({}, True), (float("nan"), True),
        ({"a": float("nan")}, True), ({"a": None, "b": None}, True),
        (" ", False), (0, False), ({"a": None, "b": 0}, False), (np.zeros(0), False), ([], False),
    ],
)  # fmt: skip
def test_what_says_nothing(value, empty):
    assert is_empty(value) is empty


def test_samples_in_memory_are_looked_at():
    assert lacks(SAMPLES, "a", empty=False).tolist() == [False, True, True, False]
    assert lacks(SAMPLES, "t", empty=False).tolist() == [False, False, False, True]
    assert lacks(tuple(SAMPLES), "t", empty=True).tolist() == [False, True, False, True]
    assert ids_of(SAMPLES) == ["id0", "id1", "id2", "id3"]


def test_samples_that_are_costly_to_make_are_left_alone():
    assert lacks(Slow(), "a", empty=True) is None
    assert count_missing(Slow(), {"main": "a"}, []) == {}


def test_counts_by_role():
    fields = {"main": "t", "complement": "a", "complement_2": "t"}
    roles = ["main", "complement", "complement_2"]
    assert count_missing(SAMPLES, fields, roles) == {"main": 2, "complement": 2, "complement_2": 2}


def test_a_field_that_may_not_be_missing_names_its_row_and_the_remedy():
    message = (
        "t.csv, row 2: field 'a' is missing in 2 samples, this one first, and complement reads it. "
        "Fill it in, remove the rows, or let a learned stand-in take its place: "
        "missing.allow: [main, complement]."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        count_missing(SAMPLES, {"main": "t", "complement": "a"}, ["main"])
    with pytest.raises(DataError, match=r"row 4: field 't' is missing, and main reads it\. Fill"):
        count_missing(SAMPLES, {"main": "t"}, [])


def rows(tmp_path, text: str, fields, name="t.csv", **arguments):
    (tmp_path / name).write_text(text)
    return Table(files=str(tmp_path / name), fields=fields, **arguments).split("predict")


def agree(samples, field: str) -> list[bool]:
    """What the table says without making samples is what the samples say."""
    for empty in (False, True):
        values = [sample.fields[field] for sample in samples]
        expected = [is_empty(value) if empty else value is None for value in values]
        assert lacks(samples, field, empty).tolist() == expected, empty
    return expected


@pytest.mark.parametrize("modality", ["image", "audio", "video", "vector", "other"])
def test_an_empty_cell_is_a_missing_field(tmp_path, modality):
    samples = rows(tmp_path, "x,y\n1,1\n,1\n3,1\n", {modality: "x"})
    assert agree(samples, modality) == [False, True, False]


def test_a_template_lacks_its_field_where_any_of_its_columns_is_empty(tmp_path):
    samples = rows(tmp_path, "x,y\n1,a\n,b\n3,\n", {"image": "{y}/{x}.png"})
    assert agree(samples, "image") == [False, True, True]


def test_an_empty_text_is_missing_only_for_those_who_can_do_without(tmp_path):
    text = "x,y\na,b\n,b\na,\n,\n"
    samples = rows(tmp_path, text, {"text": "x"})
    assert [sample.fields["text"] for sample in samples] == ["a", "", "a", ""]
    assert lacks(samples, "text", empty=False).tolist() == [False] * 4
    assert agree(samples, "text") == [False, True, False, True]
    assert agree(rows(tmp_path, text, {"text": "{x}{y}"}), "text") == [False, False, False, True]
    assert agree(rows(tmp_path, text, {"text": "{x} {y}"}), "text") == [False] * 4
    assert agree(rows(tmp_path, text, {"text": "{x:>3}"}), "text") == [False] * 4


def test_a_table_is_missing_where_all_its_cells_are_empty(tmp_path):
    text = 'x,y\n1,a\n,b\n3,\n," "\n'
    samples = rows(tmp_path, text, {"table": {"columns": ["x", "y"]}})
    assert agree(samples, "table") == [False, False, False, True]


@pytest.mark.parametrize("modality", ["image", "text", "table", "vector"])
def test_a_column_may_say_whether_the_field_is_there(tmp_path, modality):
    said = ["1", "0", "", "yes", "No", "false", "TRUE", "2"]
    text = "".join(["x,has\n", *(f"5,{cell}\n" for cell in said)])
    samples = rows(tmp_path, text, {modality: {"column": "x", "present": "has"}})
    assert agree(samples, modality) == [False, True, True, False, True, True, False, False]
    assert lacks(samples, modality, empty=False).sum() == 4
    lines = "".join(json.dumps({"x": "5", "has": cell}) + "\n" for cell in (True, False, None))
    samples = rows(tmp_path, lines, {modality: {"column": "x", "present": "has"}}, "t.jsonl")
    assert agree(samples, modality) == [False, True, True]


def test_a_presence_column_that_is_not_there_is_named(tmp_path):
    message = "no column 'hass', which field 'text' asks for. Did you mean 'has'"
    with pytest.raises(DataError, match=message):
        rows(tmp_path, "x,has\n1,1\n", {"text": {"column": "x", "present": "hass"}})


def test_ids_without_making_samples(tmp_path):
    text = "x,name\n1,b\n2,\n3, a \n"
    for arguments, ids in (({}, ["1", "2", "3"]), ({"id": "name"}, ["b", "2", "a"])):
        samples = rows(tmp_path, text, {"text": "x"}, **arguments)
        assert ids_of(samples) == [sample.id for sample in samples] == ids


def test_several_files_at_once(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text(f"x,y\n,0\n{name},1\n")
    files = {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    samples = Table(files=files, fields={"image": "x"}, id="x").split("predict")
    samples = pickle.loads(pickle.dumps(samples))
    assert agree(samples, "image") == [True, False, True, False]
    assert ids_of(samples) == ["1", "train", "1", "test"]


def test_values_that_say_nothing():
    assert blank_of("text") == ""
    assert blank_of("image").getextrema() == ((0, 0),) * 3
    array, rate = blank_of("audio")
    assert (array.shape, array.dtype, array.any()) == ((rate,), np.float32, False)
    assert [type(frame) for frame in blank_of("video")] == [Image.Image]
    assert ImagePreprocessor((8, 8), [0.5], [0.5], channels=1)(blank_of("image"))["pixels"].shape
    message = "a main encoder of modality table cannot do without its field; make it the complement"
    with pytest.raises(ConfigError, match=message):
        blank_of("table")


def test_what_could_not_be_read_is_counted_once_however_often_it_was_tried():
    found = Unreadable()
    for _ in range(2):
        found.add([("image", f"t.csv, row {i}") for i in range(1, 6)], ["image"])
    found.merge({"image": ["t.csv, row 5", "t.csv, row 9"], "sound": ["t.csv, row 2"]})
    assert found.describe("train") == [
        "train: unreadable and taken for missing, field 'image': 6 "
        "(t.csv, row 1; t.csv, row 2; t.csv, row 3; ...)",
        "train: unreadable and taken for missing, field 'sound': 1 (t.csv, row 2)",
    ]


def test_a_field_of_which_nothing_can_be_read_stops():
    found = Unreadable()
    found.add([("image", f"row {i}") for i in range(99)], [])
    found.check()
    found.add([("image", "row 99")], ["sound"])
    with pytest.raises(DataError, match=r"^Not one of the first 100 values of field 'image' can"):
        found.check()
    found.add([], ["image"])
    found.check()
