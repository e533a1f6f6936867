"""UPMC Food-101 on a small replica."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import replicas

from fusionkit.data.food101 import Food101, _hold_out
from fusionkit.errors import ConfigError, DataError
from fusionkit.registry import load


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return replicas.food101(tmp_path_factory.mktemp("food101") / "replica")


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "food101"))


def by_id(samples) -> dict:
    return {sample.id: sample for sample in samples}


def everything(root: Path, **arguments) -> dict:
    data = Food101(str(root), **arguments)
    return by_id(data.split("train")) | by_id(data.split("val"))


def test_registry_and_config_know_it_before_any_file_exists():
    data = load("dataset", "food101")("no/where")
    assert isinstance(data, Food101)
    assert data.fields == {"image": "image", "text": "text"}
    assert (data.task, data.outputs) == ("single_label", 101)
    assert len(set(data.classes)) == 101
    assert sorted(data.classes)[:2] == ["apple_pie", "baby_back_ribs"]


def test_it_says_which_command_prepares_it(tmp_path):
    folder = tmp_path / "my food"
    with pytest.raises(DataError) as caught:
        Food101(str(folder)).split("train")
    assert f"{folder} is not prepared" in str(caught.value)
    assert f"Run: fusionkit data prepare food101 --root '{folder}'" in str(caught.value)


def test_rows_are_those_of_the_csv(root):
    report = Food101.prepare(root)
    found = everything(root)
    assert found["apple_pie_0"].fields == {
        "image": str(root / "images" / "train" / "apple_pie" / "apple_pie_0.jpg"),
        "text": "How to make apple_pie no. 0",
    }
    labels = Food101.labels
    assert all(labels[s.target] == name.rpartition("_")[0] for name, s in found.items())
    texts = {name: sample.fields["text"] for name, sample in found.items()}
    assert texts["baklava_0"] == ""
    assert texts["baklava_1"] == 'Baklava, the "real" one'
    assert texts["baklava_2"] == "Baklava of my aunt"
    assert texts["baklava_3"] == "Crème “à la” baklava"
    assert texts["waffles_2"] == "Waffles, eggs, and all"
    assert texts["waffles_4"] == "Waffles"
    assert texts["waffles_5"] == "Waffles 5"
    assert texts["waffles_6"] == "How to make waffles no. 6"
    assert texts["waffles_8"] == '8" waffles'
    # Missing, truncated, no picture; in test as well; without a title.
    gone = {"apple_pie_1", "apple_pie_2", "apple_pie_7", "waffles_0", "waffles_1"}
    listed = {f"{dish}_{i}" for dish in replicas.DISHES for i in range(replicas.TRAIN)}
    assert set(found) == listed - gone
    assert len(Food101(str(root)).split("test")) == 19
    counts = {c.split: (c.listed, c.kept) for c in report.counts}
    assert counts["title: train"] == (57, 50)
    assert counts["title: val"] == (5, 5)
    assert counts["title: in all"] == (81, 74)


def test_all_that_is_irregular_is_found(root):
    found = {(what, count) for what, count, *_ in Food101.prepare(root).findings.summary()}
    assert {(what, n) for what, n in found if what.startswith("title")} == {
        ("title: not UTF-8", 1),
        ("title: title with commas but no quotes", 1),
        ("title: label none of the 101", 1),
        ("title: row of fewer than three cells", 1),
        ("title: quote never closed", 1),
        ("title: photo without a title", 1),
        ("title: listed twice", 1),
        ("title: also in test", 1),
        ("title: image missing", 1),
        ("title: image unreadable", 2),
        ("title: text empty", 1),
    }
    assert {(what, n) for what, n in found if what.startswith("page")} == {
        ("page: not UTF-8", 1),
        ("page: photo without a page", 1),
        ("page: also in test", 1),
        ("page: image unreadable", 2),
    }
    lines = (root / "fusionkit" / "findings.csv").read_text().splitlines()
    assert len(lines) == 1 + sum(n for _, n in found)
    assert "title: image missing,dropped,images/train/apple_pie/apple_pie_1.jpg" in lines


def test_pages_are_the_other_text(root):
    Food101.prepare(root)
    found = everything(root, text="page")
    assert found["baklava_5"].fields["text"] == "baklava_5 Take flour, and the rest."
    assert found["waffles_2"].fields["text"] == "Crème \x81"
    assert "waffles_1" in found  # no title, but a page
    assert "waffles_3" not in found


def test_a_copy_without_pages_or_without_titles(root):
    shutil.rmtree(root / "texts_txt")
    assert "No pages were found" in Food101.prepare(root).remarks[0]
    assert len(everything(root)) == 55
    with pytest.raises(DataError, match="without texts_txt, which data.text: page reads") as error:
        Food101(str(root), text="page").split("test")
    assert str(root / "texts_txt") in str(error.value)
    assert "fusionkit data prepare food101" in str(error.value)
    replicas.food101_pages(root)
    shutil.rmtree(root / "texts")
    assert "use data.text: page" in Food101.prepare(root).remarks[0]
    assert not (root / "fusionkit" / "title" / "train.parquet").exists()  # of the first run
    with pytest.raises(DataError, match="or set data.text: page"):
        Food101(str(root)).split("test")


def test_copies_with_other_folders_give_the_same_rows(root):
    Food101.prepare(root)
    expected = by_id(Food101(str(root)).split("val"))
    (root / "images").rename(root / "inner")
    (root / "images").mkdir()
    (root / "inner").rename(root / "images" / "images")
    (root / "texts").rename(root / "meta_data")
    (root / "meta_data" / "train_titles.csv").write_bytes(
        b"image,title,label\n" + (root / "meta_data" / "train_titles.csv").read_bytes()[3:]
    )
    Food101.prepare(root)
    found = by_id(Food101(str(root)).split("val"))
    assert found.keys() == expected.keys()
    assert all(Path(sample.fields["image"]).is_file() for sample in found.values())


def test_preparing_again_changes_nothing(root):
    Food101.prepare(root)
    files = [p for p in sorted((root / "fusionkit").rglob("*")) if p.is_file()]
    before = {path: path.read_bytes() for path in files}
    assert len(before) == 8
    Food101.prepare(root)
    assert {p: p.read_bytes() for p in sorted((root / "fusionkit").rglob("*")) if p.is_file()} == (
        before
    )


def test_an_interrupted_run_counts_as_none(root, monkeypatch):
    Food101.prepare(root)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fusionkit.data.prepare.write_table", stop)
    with pytest.raises(KeyboardInterrupt):
        Food101.prepare(root)
    with pytest.raises(DataError, match="is not prepared"):
        Food101(str(root)).split("train")


def test_incomplete_rows_can_be_kept(root):
    Food101.prepare(root, keep_incomplete=True)
    found = everything(root)
    assert found["apple_pie_1"].fields["image"] is None
    assert found["apple_pie_7"].fields["image"] is None
    assert found["apple_pie_1"].fields["text"] == "How to make apple_pie no. 1"
    assert len(found) == 58


def test_validation_is_stratified_seeded_and_5000_of_a_whole_copy():
    rows = [{"id": f"{dish}_{i}", "label": dish} for dish in Food101.labels for i in range(670)]
    train, val = _hold_out(rows)
    assert len(val) == 5000
    assert len(train) == len(rows) - 5000
    assert {r["id"] for r in train}.isdisjoint(r["id"] for r in val)
    counts = Counter(row["label"] for row in val)
    assert len(counts) == 101
    assert max(counts.values()) - min(counts.values()) <= 1
    again = _hold_out(rows[::-1])[1]
    assert again == val


@pytest.mark.parametrize("gone", [["images"], ["texts", "texts_txt"], ["images/test"]])
def test_what_is_missing_is_listed_with_source_and_place(root, gone):
    for folder in gone:
        shutil.rmtree(root / folder)
    with pytest.raises(DataError) as caught:
        Food101.prepare(root)
    message = str(caught.value)
    for folder in gone:
        assert f"to    {root / folder.partition('/')[0]}" in message
    assert "UPMC_Food101.tar.gz" in message
    assert "Nothing is downloaded" in message
    assert not (root / "fusionkit").exists()


def test_a_folder_that_cannot_be_written_to_is_said_before_the_work(root):
    (root / "fusionkit").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written to .*/fusionkit: File exists"):
        Food101.prepare(root)


def test_links_to_files_elsewhere_will_do(root, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for folder in ("images", "texts"):
        (mine / folder).symlink_to(root / folder)
    Food101.prepare(mine)
    assert len(everything(mine)) == 55
    assert not (root / "fusionkit").exists()


def test_a_split_without_rows_is_empty(root):
    for photo in (root / "images" / "test").glob("*/*.jpg"):
        photo.unlink()
    Food101.prepare(root)
    assert len(Food101(str(root)).split("test")) == 0
    assert len(Food101(str(root)).split("val")) == 5


def test_nothing_left_is_an_error_with_its_reasons(root):
    for photo in (root / "images" / "train").glob("*/*.jpg"):
        photo.write_bytes(replicas.HTML)
    with pytest.raises(DataError) as caught:
        Food101.prepare(root)
    assert "no training row is left" in str(caught.value)
    assert "title: image unreadable, dropped: 57 (images/train" in str(caught.value)


def test_further_fields_are_columns_or_templates(root):
    Food101.prepare(root)
    data = Food101(str(root), more_fields={"audio": "sounds/{id}.wav"})
    assert data.fields == {"image": "image", "text": "text", "audio": "audio"}
    sample = data.split("test")[0]
    assert sample.fields["audio"] == str(root / "sounds" / f"{sample.id}.wav")
    with pytest.raises(ConfigError, match="food101 has a field 'text' already"):
        Food101(str(root), more_fields={"text": "id"})


def test_a_folder_of_another_data_set_or_version_is_refused(root):
    Food101.prepare(root)
    notes = root / "fusionkit" / "prepared.json"
    good = notes.read_text()
    notes.write_text(good.replace("food101", "mmimdb"))
    with pytest.raises(DataError, match="holds mmimdb, not food101. Correct data.root"):
        Food101(str(root)).split("train")
    notes.write_text(good.replace('"version": 1', '"version": 0'))
    with pytest.raises(DataError, match="another version of fusionkit. Run: fusionkit data"):
        Food101(str(root)).split("train")
