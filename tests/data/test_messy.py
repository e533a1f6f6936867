"""Reading files as copies of published data sets have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import replicas
import torch
from PIL import Image

from fusionkit.data.messy import check_images, complete, decode, image_problem, unique
from fusionkit.data.prepare import Findings, silent
from fusionkit.encoders.images import ImagePreprocessor


@pytest.mark.parametrize(
    ("raw", "text", "regular"),
    [
        (b"plain", "plain", True),
        ("naïve".encode(), "naïve", True),
        (b"\xef\xbb\xbfmarked", "marked", True),
        ("“à la”".encode("cp1252"), "“à la”", False),
        (b"caf\xe9 \x81", "caf\u00e9 \x81", False),  # 81 is nothing in Windows-1252
    ],
)
def test_text_of_any_encoding_is_decoded(raw, text, regular):
    assert decode(raw) == (text, regular)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    for i in range(8):
        replicas.picture(tmp_path / f"a_{i}.jpg", i)
    replicas.odd_pictures(tmp_path, "a")
    return tmp_path


def test_images_of_any_kind_are_told_from_broken_ones(odd: Path):
    (odd / "a_0.jpg").write_bytes(b"")
    (odd / "a_8.jpg").mkdir()
    Image.new("I;16", (8, 8)).save(odd / "a_9.jpg", "PNG")
    names = [f"a_{i}.jpg" for i in range(11)]
    found = check_images(odd, names * 2, silent)
    assert found == {
        "a_0.jpg": "unreadable",  # empty
        "a_2.jpg": "unreadable",  # truncated
        "a_7.jpg": "unreadable",  # a page of the web
        "a_8.jpg": "unreadable",  # a folder
        "a_10.jpg": "missing",
    }


def test_what_passes_is_what_image_encoders_read(odd: Path):
    read = ImagePreprocessor((8, 8), [0.0] * 3, [1.0] * 3)
    for i in range(8):
        path = odd / f"a_{i}.jpg"
        if image_problem(path) is None:
            assert read(path)["pixels"].shape == (3, 8, 8)
        else:
            with pytest.raises(Exception, match="cannot be read"):
                read(path)
    red = torch.tensor([1.0, 0.0, 0.0])
    for i in (4, 5, 6):  # palette, first frame of an animation, turned
        pixels = read(odd / f"a_{i}.jpg")["pixels"].mean(dim=(1, 2))
        assert torch.allclose(pixels, red, atol=0.02), i


def rows(*names: str, **more: str) -> list[dict]:
    return [{"id": name, "image": f"{name}.jpg", "text": name, **more} for name in names]


def test_ids_become_unique():
    findings = Findings()
    other = {"id": "b", "image": "c.jpg", "text": "other"}
    found = unique({"train": [*rows("a", "b", "b"), other, other], "test": rows("a")}, findings)
    assert [row["id"] for row in found["train"]] == ["b", "b#2", "b#3"]
    assert [row["id"] for row in found["test"]] == ["a"]
    assert findings.summary() == [
        ("also in test", 1, "dropped from train", "a"),
        ("listed twice", 1, "dropped", "b"),
        ("id used twice", 2, "kept under a new id", "b#2"),
    ]


@pytest.mark.parametrize("keep", [False, True])
def test_rows_without_an_image_are_dropped_or_kept_without_it(keep):
    findings = Findings()
    given = [*rows("a", "b"), {"id": "c", "image": "c.jpg", "text": ""}]
    found = complete(given, {"b.jpg": "missing"}, keep, findings)
    images = {row["id"]: row["image"] for row in found}
    assert images == {"a": "a.jpg", "c": "c.jpg"} | ({"b": None} if keep else {})
    outcome = "kept without image" if keep else "dropped"
    assert findings.rows() == [("image missing", outcome, "b.jpg"), ("text empty", "kept", "c")]
    assert given[1]["image"] == "b.jpg"
