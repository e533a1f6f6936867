"""Every row whose label cannot be used is named."""

from __future__ import annotations

import pickle

import pytest

from fusionkit.data.table import Table
from fusionkit.errors import RowsError


@pytest.mark.parametrize(
    ("task", "label", "cells", "wrong"),
    [
        ("single_label", "y", ["a", "", "b", " "], {2: "is empty", 4: "is empty"}),
        ("regression", "y", ["1", "many", "2", ""], {2: "is 'many'", 4: "is empty"}),
        ("multi_label", ["y"], ["1", "2", "0", "x"], {2: "is '2'", 4: "is 'x'"}),
    ],
)
def test_malformed_labels(tmp_path, task, label, cells, wrong):
    (tmp_path / "t.csv").write_text("t,y\n" + "".join(f"t{i},{c}\n" for i, c in enumerate(cells)))
    table = Table(str(tmp_path / "t.csv"), {"text": "t"}, label, task)
    with pytest.raises(RowsError) as raised:
        table.split("train")
    assert len(raised.value.errors) == len(wrong)
    for error, (row, why) in zip(raised.value.errors, wrong.items(), strict=True):
        assert error.startswith(f"t.csv, row {row}: label column 'y' {why}")
    assert str(raised.value) == (
        raised.value.errors[0]
        + " The same goes for another row; `fusionkit data doctor` lists them."
    )


@pytest.mark.parametrize(("task", "cells"), [("single_label", "cad"), ("multi_label", "cad")])
def test_labels_of_other_classes(tmp_path, task, cells):
    (tmp_path / "train.csv").write_text("t,y\nt,a\nt,b\n")
    (tmp_path / "test.csv").write_text("t,y\n" + "".join(f"t,{cell}\n" for cell in cells))
    files = {split: str(tmp_path / f"{split}.csv") for split in ("train", "test")}
    with pytest.raises(RowsError) as raised:
        Table(files, {"text": "t"}, "y", task).split("test")
    one, two = raised.value.errors
    assert one.startswith("test.csv, row 1: label 'c' is not in the training split, which has: a")
    assert two.startswith("test.csv, row 3: label 'd' is not")


def test_it_survives_workers_and_says_no_more_than_there_is():
    error = pickle.loads(pickle.dumps(RowsError(["row 1: wrong.", "row 2: wrong.", "row 9."])))
    assert error.errors == ("row 1: wrong.", "row 2: wrong.", "row 9.")
    assert str(error).startswith("row 1: wrong. The same goes for 2 other rows;")
    assert str(RowsError(["row 1: wrong."])) == "row 1: wrong."
