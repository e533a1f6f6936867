"""SNLI-VE: does a picture entail a sentence?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from fusionkit.data.messy import check_images, complete, decode, unique
from fusionkit.data.prepare import (
    FOLDER,
    Count,
    Findings,
    Piece,
    Prepared,
    Row,
    Track,
    find_all,
    open_folder,
    silent,
    total,
    write_pairs,
)
from fusionkit.data.published import Published
from fusionkit.data.rows import FieldSpec

# By split: the official file, and the pairs that its authors count.
_SPLITS = {"train": ("train", 529_527), "val": ("dev", 17_858), "test": ("test", 17_901)}
_PAGE = "https://github.com/necla-ml/SNLI-VE"
_PIECES = {
    split: Piece(
        f"snli_ve_{name}.jsonl",
        f"the pairs of {name}",
        f"linked as SNLI-VE {name} split at {_PAGE}",
        (f"annotations/snli_ve_{name}.jsonl",),
    )
    for split, (name, _) in _SPLITS.items()
}
_IMAGES = Piece(
    "flickr30k_images",
    "the pictures of Flickr30k, ID.jpg",
    "flickr30k-images.tar.gz, on request at http://shannon.cs.illinois.edu/DenotationGraph",
    ("flickr30k-images", "images"),
)
_IMAGE_KEYS = ("Flickr30K_ID", "Flickr30kID", "Flikr30kID")  # the last, with .jpg, is older


class SnliVe(Published):
    """SNLI-VE: does a picture entail a sentence, contradict it, or neither?

    Xie et al., arXiv 1901.06706. The picture is the premise; the textual premise, a caption of it,
    is not used. Run ``fusionkit data prepare snli_ve`` once.

    Args:
        root: Folder with the official files.
        more_fields: Further fields, as of ``table``, over the columns id, image, text and label;
            paths are relative to ``root``.
    """

    name: ClassVar[str] = "snli_ve"
    labels: ClassVar[tuple[str, ...]] = ("entailment", "neutral", "contradiction")
    augment: ClassVar = "none"  # the man to the left is on the right in a mirror

    def __init__(self, root: str, more_fields: dict[str, str | FieldSpec] | None = None) -> None:
        files = {name: name for name in _SPLITS}
        super().__init__(root, files, {"image": "image", "text": "text"}, more_fields)

    @classmethod
    def prepare(cls, root: Path, keep_incomplete: bool = False, track: Track = silent) -> Prepared:
        *texts, images = find_all(cls.name, root, [*_PIECES.values(), _IMAGES])
        found = dict(zip(_PIECES, texts, strict=True))
        open_folder(root)
        findings = Findings()
        folder = images.relative_to(root).as_posix()
        listed = {
            split: list(track(_read(path, folder, findings), _SPLITS[split][1], path.name))
            for split, path in found.items()
            if path is not None
        }
        splits = unique(
            {name: [row for row in rows if row] for name, rows in listed.items()}, findings
        )
        problems = check_images(root, (r["image"] for rows in splits.values() for r in rows), track)
        splits = {
            name: complete(rows, problems, keep_incomplete, findings)
            for name, rows in splits.items()
        }
        counts = [
            Count(name, len(listed[name]), len(rows), f"{_SPLITS[name][1]:,}")
            for name, rows in splits.items()
        ]
        report = Prepared(root / FOLDER, [*counts, total(counts, "565,286")], findings)
        write_pairs(root, cls.name, splits, report)
        return report


def _read(path: Path, folder: str, findings: Findings) -> Iterator[Row | None]:
    """A row for each line; None for those that are none."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip(b"\xef\xbb\xbf \r\n\t"):
                yield _row(raw, f"{path.name}, line {number}", folder, findings)


def _row(raw: bytes, where: str, folder: str, findings: Findings) -> Row | None:
    text, regular = decode(raw)
    if not regular:
        findings.add("not UTF-8", "read as Windows-1252", where)
    try:
        line: dict[str, Any] = json.loads(text)
        pair, label, hypothesis = line["pairID"], line["gold_label"], line["sentence2"]
        stem = next((str(line[key]) for key in _IMAGE_KEYS if line.get(key)), "")
    except (ValueError, KeyError, TypeError, AttributeError):
        findings.add("no JSON object with the official keys", "dropped", where)
        return None
    if label not in SnliVe.labels:
        findings.add("label none of the three", "dropped", f"{pair} ({label})")
        return None
    stem = (stem or str(pair).partition("#")[0]).removesuffix(".jpg")
    image = f"{folder}/{stem}.jpg"
    return {"id": str(pair), "image": image, "text": str(hypothesis or "").strip(), "label": label}
