"""The files of UPMC Food-101, as copies of it have them."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionkit.data.messy import decode, read_text
from fusionkit.data.prepare import Findings, Piece, Row

_SOURCE = "UPMC_Food101.tar.gz or a copy of it, see https://visiir.isir.upmc.fr/explore"
IMAGES = Piece(
    "images", "the photos, {train,test}/CLASS/CLASS_N.jpg", _SOURCE, ("images/images", ".")
)
TITLES = Piece(
    "texts",
    "the titles, train_titles.csv and test_titles.csv",
    _SOURCE,
    (".", "texts_txt", "texts/texts", "meta_data", "annotations"),
)
PAGES = Piece(
    "texts_txt",
    "instead of the titles or besides them, the pages, CLASS/CLASS_N.txt",
    _SOURCE,
    ("texts/texts_txt", "texts"),
)
_SPLITS = ("train", "test")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif")
_ROW_WITHIN = re.compile(r"\n\w+_[\d-]+\.\w+,")  # what an unclosed quote has swallowed


@dataclass(frozen=True, slots=True)
class Copy:
    """Where a copy has its parts.

    Attributes:
        root: What index paths are relative to.
        images: Folder with ``train`` and ``test``.
        titles: Folder with both CSV files, if there is one.
        pages: Folder with the pages of each class, if there is one.
        classes: The labels that count.
    """

    root: Path
    images: Path | None
    titles: Path | None
    pages: Path | None
    classes: Sequence[str]

    @classmethod
    def find(cls, root: Path, classes: Sequence[str]) -> Copy:
        """Look for the parts in all places where copies have them."""
        places = {
            piece.path: [root / path for path in (piece.path, *piece.also)]
            for piece in (IMAGES, TITLES, PAGES)
        }
        return cls(
            root,
            _first(places[IMAGES.path], lambda p: (p / "train").is_dir() and (p / "test").is_dir()),
            _first(places[TITLES.path], lambda p: all(_csv(p, s).is_file() for s in _SPLITS)),
            _first(places[PAGES.path], lambda p: any((p / label).is_dir() for label in classes)),
            classes,
        )

    def image_path(self, split: str, label: str, name: str) -> str:
        """Relative to the root."""
        assert self.images is not None
        return (self.images / split / label / name).relative_to(self.root).as_posix()

    def listed_images(self, split: str) -> list[tuple[str, str]]:
        """Class and name of every photo on disk, in order."""
        assert self.images is not None
        return [
            (label, file.name)
            for label in self.classes
            for file in sorted((self.images / split / label).glob("*"))
            if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")
        ]

    def read_titles(self, split: str, findings: Findings) -> Iterator[Row | None]:
        """A row for each one of the CSV; None for those that are none."""
        assert self.titles is not None
        path = _csv(self.titles, split)
        for number, cells in _records(path, findings):
            where = f"{path.name}, line {number}"
            if len(cells) < 3:
                findings.add("row of fewer than three cells", "dropped", where)
                yield None
                continue
            if len(cells) > 3:
                findings.add("title with commas but no quotes", "put together", where)
            name, title, label = cells[0], ",".join(cells[1:-1]), cells[-1]
            label = re.sub(r"[\s-]+", "_", label.strip().lower())
            if label not in self.classes:
                findings.add("label none of the 101", "dropped", f"{where} ({label})")
                yield None
                continue
            name = name.strip().rpartition("/")[2]
            image = self.image_path(split, label, name)
            yield {"id": Path(name).stem, "image": image, "text": _flat(title), "label": label}

    def read_pages(
        self, split: str, images: Iterable[tuple[str, str]], findings: Findings
    ) -> Iterator[Row | None]:
        """A row for each photo; None for those without a page."""
        assert self.pages is not None
        for label, name in images:
            image, stem = self.image_path(split, label, name), Path(name).stem
            page = self.pages / label / f"{stem}.txt"
            if not page.is_file():
                findings.add("photo without a page", "dropped", image)
                yield None
                continue
            text = _flat(read_text(page, findings))
            yield {"id": stem, "image": image, "text": text, "label": label}


def _first(paths: Iterable[Path], fits: Callable[[Path], bool]) -> Path | None:
    return next((path for path in paths if fits(path)), None)


def _csv(folder: Path, split: str) -> Path:
    return folder / f"{split}_titles.csv"


def _flat(text: str) -> str:
    """On one line, without the white space that pages are laid out with."""
    return " ".join(text.split())


def _records(path: Path, findings: Findings) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row, without a header."""
    # Row by row, since the encoding may change between two rows: pages of many sites.
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    limit = csv.field_size_limit(sys.maxsize)
    taken: list[str] = []  # lines of the row that is being read

    def lines() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            taken.append(line)
            yield line

    try:
        rows = csv.reader(lines())
        for place, cells in enumerate(rows):
            raw = "".join(taken)
            taken.clear()
            if not cells or (place == 0 and not Path(cells[0]).suffix):
                continue
            for row in _closed(cells, raw, f"{path.name}, line {rows.line_num}", findings):
                yield rows.line_num, [_text(c, path, rows.line_num, findings) for c in row]
    finally:
        csv.field_size_limit(limit)


def _closed(cells: list[str], raw: str, where: str, findings: Findings) -> Iterator[list[str]]:
    """The row; or all rows that a quote, opened and never closed, has made one of."""
    if not _ROW_WITHIN.search(raw):
        yield cells
        return
    findings.add("quote never closed", "rows put apart", where)
    for line in raw.splitlines():
        name, _, rest = line.partition(",")
        title, _, label = rest.rpartition(",")
        if title.startswith('"') and title.endswith('"'):
            title = title[:-1].replace('""', '"')
        yield [name, title.removeprefix('"'), label]


def _text(cell: str, path: Path, number: int, findings: Findings) -> str:
    """A cell whose bytes are in the encoding they turn out to be in."""
    text, regular = decode(cell.encode("utf-8", "surrogateescape"))
    if not regular:
        findings.add("not UTF-8", "read as Windows-1252", f"{path.name}, line {number}")
    return text
