"""SNLI-VE on a small replica."""

from __future__ import annotations

from pathlib import Path

import pytest
import replicas

from fusionkit.data.snli_ve import SnliVe
from fusionkit.errors import DataError
from fusionkit.registry import load


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "snli_ve"
    folder.mkdir()
    return replicas.snli_ve(folder)


def by_id(root: Path, split: str = "train") -> dict:
    return {sample.id: sample for sample in SnliVe(str(root)).split(split)}


def test_config_is_known_before_any_file_exists():
    data = load("dataset", "snli_ve")("no/where")
    assert data.task == "single_label"
    assert data.fields == {"image": "image", "text": "text"}
    assert list(data.classes) == ["entailment", "neutral", "contradiction"]


def test_pairs_are_picture_and_hypothesis(root):
    SnliVe.prepare(root)
    found = by_id(root)
    sample = found["1002.jpg#0r1n"]
    assert sample.fields == {
        "image": str(root / "flickr30k_images" / "1002.jpg"),
        "text": "Someone sleeps, 1.",  # and never sentence1, the textual premise
    }
    assert sample.target == 1
    assert found["1004.jpg#0r9n"].fields["text"] == "Someone naïve sleeps."
    assert found["1000.jpg#0r2n"].fields["text"] == ""
    assert found["1003.jpg#0r0n#2"].fields["text"] == "Someone else sleeps."
    # Of the authors' older script, and of a line without a picture's id.
    for name in ("1001.jpg#1r1n", "1001.jpg#0r0n"):
        assert found[name].fields["image"].endswith("flickr30k_images/1001.jpg")
    assert not any(name.startswith(("1005", "1006")) for name in found)
    assert len(by_id(root, "val")) == len(by_id(root, "test")) == 9


def test_all_that_is_irregular_is_found(root):
    report = SnliVe.prepare(root)
    assert {(what, count) for what, count, *_ in report.findings.summary()} == {
        ("label none of the three", 1),
        ("no JSON object with the official keys", 1),
        ("not UTF-8", 1),
        ("listed twice", 1),
        ("id used twice", 1),
        ("text empty", 1),
        ("image missing", 3),
        ("image unreadable", 3),
    }
    assert [(c.split, c.listed, c.kept, c.published) for c in report.counts] == [
        ("train", 34, 25, "529,527"),
        ("val", 9, 9, "17,858"),
        ("test", 9, 9, "17,901"),
        ("in all", 52, 43, "565,286"),
    ]


@pytest.mark.parametrize(
    "folder", ["flickr30k-images", "images", "flickr30k_images/flickr30k_images"]
)
def test_other_places_of_the_official_files(root, folder):
    (root / "annotations").mkdir()
    for file in root.glob("*.jsonl"):
        file.rename(root / "annotations" / file.name)
    (root / "flickr30k_images").rename(root / "pictures")
    (root / folder).parent.mkdir(exist_ok=True)
    (root / "pictures").rename(root / folder)
    assert SnliVe.prepare(root).counts[-1].kept == 43
    assert Path(by_id(root)["1002.jpg#0r1n"].fields["image"]).is_file()


def test_what_is_missing_is_listed(root):
    (root / "snli_ve_dev.jsonl").unlink()
    (root / "flickr30k_images").rename(root / "pictures")
    with pytest.raises(DataError) as caught:
        SnliVe.prepare(root)
    message = str(caught.value)
    assert f"to    {root / 'snli_ve_dev.jsonl'}" in message
    assert f"to    {root / 'flickr30k_images'}" in message
    assert "flickr30k-images.tar.gz" in message
    assert "snli_ve_train.jsonl" not in message
