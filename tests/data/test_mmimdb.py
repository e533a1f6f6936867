"""MM-IMDB on a small replica."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import replicas

from fusionkit.data.mmimdb import MMIMDB
from fusionkit.errors import DataError
from fusionkit.registry import load


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return replicas.mmimdb(tmp_path / "mmimdb")


def by_id(root: Path, split: str = "train") -> dict:
    return {sample.id: sample for sample in MMIMDB(str(root)).split(split)}


def test_config_is_known_before_any_file_exists():
    data = load("dataset", "mmimdb")("no/where")
    assert (data.task, data.outputs) == ("multi_label", 23)
    assert data.fields == {"image": "image", "text": "text"}
    assert " ".join(data.classes) == (
        "Drama Family Comedy Biography Romance War Thriller History Crime Music Action Animation "
        "Adventure Musical Horror Western Documentary Sport Mystery Short Sci-Fi Film-Noir Fantasy"
    )


def test_films_have_poster_longest_plot_and_genres(root):
    MMIMDB.prepare(root)
    found = by_id(root)
    assert found["0000013"].fields == {
        "image": str(root / "dataset" / "0000013.jpeg"),
        "text": "The longer plot of film 13.",
    }
    assert found["0000013"].target == (0, 2)
    assert found["0000014"].target == (10, 20)  # Action, Sci-Fi: in the order of the classes
    assert found["0000000"].fields["text"] == "One plot, no list."
    assert found["0000001"].fields["text"] == ""
    assert found["0000004"].target == (0,)
    assert found["0000006"].fields["text"] == "Café"
    gone = {f"{i:07d}" for i in (2, 3, 5, 7, 8, 9, 10)}
    assert set(found) == {f"{i:07d}" for i in range(40)} - gone
    assert set(by_id(root, "val")) == {f"{i:07d}" for i in range(40, 52)}
    assert set(by_id(root, "test")) == {f"{i:07d}" for i in range(52, 64)}


def test_all_that_is_irregular_is_found(root):
    report = MMIMDB.prepare(root)
    assert {(what, count, outcome) for what, count, outcome, _ in report.findings.summary()} == {
        ("tagged News", 1, "dropped, as published"),
        ("tagged Talk-Show", 1, "dropped, as published"),
        ("genre Adult, none of the 23", 2, "genre left out"),
        ("no genre of the 23", 1, "dropped"),
        ("not UTF-8", 1, "read as Windows-1252"),
        ("film data unreadable", 1, "dropped"),
        ("film data missing", 1, "dropped"),
        ("listed twice", 1, "dropped"),
        ("text empty", 1, "kept"),
        ("image missing", 1, "dropped"),
        ("image unreadable", 1, "dropped"),
    }
    last = report.counts[-1]
    assert (last.split, last.listed, last.kept) == ("in all", 65, 57)
    assert "25,956" in last.published


def test_posters_may_stand_apart_from_the_films_data(root):
    (root / "images").mkdir()
    for poster in (root / "dataset").glob("*.jpeg"):
        poster.rename(root / "images" / poster.with_suffix(".jpg").name)
    (root / "dataset").rename(root / "labels")
    assert MMIMDB.prepare(root).counts[-1].kept == 57
    assert by_id(root)["0000013"].fields["image"] == str(root / "images" / "0000013.jpg")


def test_an_archive_unpacked_with_its_own_folder(root):
    outer = root.parent / "outer"
    outer.mkdir()
    root.rename(outer / "mmimdb")
    assert MMIMDB.prepare(outer).counts[-1].kept == 57
    assert Path(by_id(outer)["0000013"].fields["image"]).is_file()


def test_what_is_missing_is_listed(root):
    (root / "split.json").unlink()
    with pytest.raises(DataError) as caught:
        MMIMDB.prepare(root)
    assert f"to    {root / 'split.json'}" in str(caught.value)
    assert "mmimdb.tar.gz" in str(caught.value)
    assert "dataset" not in str(caught.value).replace("data sets", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "split.json is not JSON"), (json.dumps({"train": []}), "has no list 'dev' of film ids")],
)
def test_a_broken_division_is_named(root, content, message):
    (root / "split.json").write_text(content)
    with pytest.raises(DataError, match=message):
        MMIMDB.prepare(root)
