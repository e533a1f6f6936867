"""Labels by columns, against what one row after another gives."""

import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from fusionkit.data.labels import Labels
from fusionkit.data.read import Part, Source
from fusionkit.data.targets import Targets, strata
from fusionkit.errors import DataError


def source(column, name="y"):
    return Source("t", "", [Part("t", pa.table({name: column}))])


def labels(column="y", task="multi_label", declared=None, drop=False):
    return Labels(column, task, "|", declared, drop)


def targets(column, task="multi_label", classes=None, rows=None):
    table = source(column)
    chosen = np.arange(len(table)) if rows is None else np.asarray(rows)
    read = labels(task=task).read(table, chosen)
    return list(labels(task=task).targets(table, read, classes or sorted(read.found())))


TAGS = [["b", "a"], [], ["c"], ["a", "a", " b "], ["b"]]
LIST = pa.array(TAGS)


@pytest.mark.parametrize(
    "column",
    [
        LIST,
        LIST.cast(pa.large_list(pa.large_string())),
        pa.array(["|".join(row) for row in TAGS]),
        pa.array(["|".join(row) for row in TAGS]).dictionary_encode(),
        pa.chunked_array([LIST.slice(0, 2), LIST.slice(2)]),
        pa.ListArray.from_arrays(LIST.offsets, LIST.values.dictionary_encode()),
        pa.array([np.array(row, dtype=object) for row in TAGS], pa.list_(pa.string())),
    ],
    ids=["list", "large list", "text", "categories", "chunks", "list of categories", "numpy"],
)
def test_several_labels_read_the_same_however_they_are_stored(column):
    assert targets(column) == [(0, 1), (), (2,), (0, 1), (1,)]
    assert targets(column, rows=[3, 2]) == [(0, 1), (2,)]


def test_fixed_size_lists_and_numbers_are_labels_too():
    column = pa.array([[2, 1], [3, 3]], pa.list_(pa.int64(), 2))
    assert targets(column) == [(0, 1), (2,)]
    assert targets(pa.array([[10, 9], [9, 9]])) == [(0, 1), (1,)]


@pytest.mark.parametrize(
    ("column", "task", "message"),
    [
        (pa.array([["a"], None]), "multi_label", "t, row 2: label column 'y' is null; write an"),
        (pa.array(["a", None, ""]), "single_label", "t, row 2: label column 'y' is empty; fill"),
        (pa.array([1.0, float("nan")]), "regression", "t, row 2: label column 'y' is empty"),
        (pa.array([1.0, float("inf")]), "regression", "row 2: label column 'y' is inf, not a num"),
        (pa.array(["1", " 2.5e1 ", "x"]), "regression", "t, row 3: label column 'y' is 'x', not"),
        (pa.array([["a"]]), "single_label", "t: label column 'y' holds lists, but task is single"),
        (pa.array([{"a": 1}]), "single_label", "t: label column 'y' holds struct<a: int64>; give"),
    ],
)
def test_labels_that_are_none(column, task, message):
    with pytest.raises(DataError, match=re.escape(message)):
        targets(column, task)


def test_numbers_of_any_type_are_targets():
    numbers = [1.0, -25.0, 3.0]
    for column in (
        pa.array(["1", "-2.5e1", " 3"]),
        pa.array([1, -25, 3]),
        pa.array(numbers, pa.float32()),
        pa.array([1, -25, 3]).cast(pa.decimal128(25, 2)),
    ):
        read = labels(task="regression").read(source(column), np.arange(3))
        assert list(labels(task="regression").targets(source(column), read, None)) == numbers


def test_the_first_row_of_an_unknown_label_is_named():
    table = source(pa.array([["a"], [], ["b", "x"], ["y"]]))
    read = labels().read(table, np.arange(4))
    with pytest.raises(DataError, match=r"t, row 3: label 'x' is not in the training split"):
        labels().targets(table, read, ["a", "b"])


def test_other_labels_are_dropped():
    table = source(pa.array([["a"], [], ["b", "x"], ["y"]]))
    some = labels(declared=["b", "a"], drop=True)
    read = some.read(table, np.arange(4))
    assert list(some.targets(table, read, ["b", "a"])) == [(1,), (), (0,), ()]
    table = source(pa.array(["a", "x", "b"]))
    some = labels(task="single_label", declared=["b", "a"], drop=True)
    read = some.read(table, np.arange(3))
    assert read.rows.tolist() == [0, 2]
    assert list(some.targets(table, read, ["b", "a"])) == [1, 0]


def brute_strata(rows):
    """The rarest class of each row; the first by name where several are."""
    counts = Counter(name for names in rows for name in names)
    rarest = [min(names, key=lambda name: (counts[name], name), default="") for names in rows]
    return np.unique(np.asarray(rarest), return_inverse=True)[1].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_strata_are_those_of_one_row_after_another(seed):
    rng = np.random.default_rng(seed)
    names = np.array(["z", "B", "a", "ä", "10", "9"])
    rows = [sorted(set(rng.choice(names, rng.integers(0, 4)))) for _ in range(60)]
    read = labels().read(source(pa.array(rows, pa.list_(pa.string()))), np.arange(60))
    assert read.strata().tolist() == brute_strata(rows)
    single = rng.choice(names, 60)
    read = labels(task="single_label").read(source(pa.array(single.tolist())), np.arange(60))
    assert read.strata().tolist() == np.unique(single, return_inverse=True)[1].tolist()


def test_strata_of_numbers_are_quantiles_and_of_no_labels_one():
    read = labels(task="regression").read(source(pa.array([5.0, 1.0, 4.0, 0.5])), np.arange(4))
    assert read.strata(bins=2).tolist() == [1, 0, 1, 0]
    read = labels().read(source(pa.array([[], []], pa.list_(pa.string()))), np.arange(2))
    assert read.strata().tolist() == [0, 0]


def test_targets_are_indexed_sliced_and_taken_like_tuples():
    rows = [(0, 2), (), (1,), (0, 1, 2)]
    starts = np.cumsum([0, *map(len, rows)])
    some = Targets(np.array([i for row in rows for i in row]), starts)
    assert (list(some), some[-1], some[1:3], len(some)) == (rows, rows[-1], rows[1:3], 4)
    assert list(some.take(np.array([3, 1, 0]))) == [rows[3], rows[1], rows[0]]
    assert list(Targets(np.array([4, 5])).take(np.array([1]))) == [5]
    assert type(Targets(np.array([4, 5]))[0]) is int


def test_strata_of_labels_one_by_one_are_the_same():
    rows = [["a", "b"], ["a"], ["b", "a"], []]
    assert strata(rows, "multi_label").tolist() == brute_strata(rows)
    assert strata([3, 1, 3], "single_label").tolist() == [1, 0, 1]
    assert strata([5.0, 1.0, 4.0, 0.5], "regression", bins=2).tolist() == [1, 0, 1, 0]
    assert strata([], "multi_label").tolist() == []
