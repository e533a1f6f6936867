"""What the preparation of published data sets shares: reading messy copies, once."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from fusionkit.data.write import write_table
from fusionkit.errors import DataError

FOLDER = "fusionkit"  # under the root of a data set: the index, and what was found
NOTES = "prepared.json"  # written last, so that what was interrupted counts as not prepared
FINDINGS = "findings.csv"
VERSION = 1  # of the index; raised when a data set reads other columns

Row = dict[str, Any]
Item = TypeVar("Item")


class Track(Protocol):
    """Passes items on, and shows how far it is."""

    def __call__(self, items: Iterable[Item], total: int, what: str) -> Iterable[Item]:
        """The items, in order."""
        ...


def silent(items: Iterable[Item], total: int, what: str) -> Iterable[Item]:
    """A :class:`Track` that shows nothing."""
    return items


@dataclass(frozen=True, slots=True)
class Piece:
    """A file or folder of the official layout.

    Attributes:
        path: Where it belongs, relative to the root.
        what: What it is, in a few words.
        source: The archive or file that it comes in, and the page that has it.
        also: Where copies have it instead.
    """

    path: str
    what: str
    source: str
    also: tuple[str, ...] = ()

    def find(self, root: Path) -> Path | None:
        """Where it is; the inner one of two, where it was unpacked into a folder of its name."""
        for path in (self.path, *self.also):
            found = root / path
            if found.exists():
                inner = found / found.name
                return inner if inner.exists() else found
        return None


def lacking(name: str, root: Path, pieces: Iterable[Piece]) -> DataError:
    """The error of a folder that lacks what cannot be done without."""
    state = "lacks" if root.is_dir() else "does not exist. There belong"
    lines = [f"{name} cannot be prepared: {root.absolute()} {state}"]
    for piece in pieces:
        lines += [
            f"  {piece.path}: {piece.what}",
            f"      from  {piece.source}",
            f"      to    {(root / piece.path).absolute()}",
        ]
    lines.append("Nothing is downloaded. Fetch and unpack what is listed, then run this again.")
    return DataError("\n".join(lines))


def find_all(name: str, root: Path, pieces: Sequence[Piece]) -> list[Path]:
    """Where each piece is, of a data set that cannot do without any of them.

    Raises:
        DataError: Some are not there; lists them.
    """
    found = [(piece, piece.find(root)) for piece in pieces]
    if gone := [piece for piece, path in found if path is None]:
        raise lacking(name, root, gone)
    return [path for _, path in found if path is not None]


def open_folder(root: Path) -> None:
    """Make the folder of the index, before the work rather than after it.

    Raises:
        DataError: It cannot be written to.
    """
    try:
        (root / FOLDER).mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=root / FOLDER):
            pass
    except OSError as error:
        raise DataError(
            f"The index cannot be written to {root / FOLDER}: {error.strerror}. Where the official "
            f"files are not yours to write beside, make a folder with links to them (ln -s) and "
            f"prepare that."
        ) from error


class Findings:
    """What a copy has that it should not."""

    def __init__(self, subject: str = "") -> None:
        self._subject = subject
        self._places: dict[tuple[str, str], list[str]] = {}

    def about(self, subject: str) -> Findings:
        """The same findings; what is added there begins with a subject: ``"page: ..."``."""
        scoped = Findings(f"{subject}: ")
        scoped._places = self._places
        return scoped

    def add(self, what: str, outcome: str, where: str) -> None:
        """Take note of one.

        Args:
            what: What was found: ``"image missing"``.
            outcome: What becomes of the row: ``"dropped"``.
            where: Names the row or file.
        """
        self._places.setdefault((f"{self._subject}{what}", outcome), []).append(where)

    def summary(self) -> list[tuple[str, int, str, str]]:
        """What was found, how often, what became of it, and the first one."""
        return [
            (what, len(places), outcome, places[0])
            for (what, outcome), places in self._places.items()
        ]

    def rows(self) -> list[tuple[str, str, str]]:
        """All of them: what, outcome, where."""
        return [
            (what, outcome, place)
            for (what, outcome), places in self._places.items()
            for place in places
        ]


@dataclass(frozen=True, slots=True)
class Count:
    """A line of the closing table.

    Attributes:
        split: Which rows.
        listed: How many the official files list.
        kept: How many are in the index.
        published: What publications say, with a word on it where needed.
    """

    split: str
    listed: int
    kept: int
    published: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What :meth:`fusionkit.data.published.Published.prepare` did.

    Attributes:
        folder: Where the index is.
        counts: Rows by split.
        findings: What was irregular.
        remarks: What else a user wants to know.
    """

    folder: Path
    counts: Sequence[Count]
    findings: Findings
    remarks: Sequence[str] = ()


def total(counts: Sequence[Count], published: str) -> Count:
    """The line below the splits."""
    return Count("in all", sum(c.listed for c in counts), sum(c.kept for c in counts), published)


def write_pairs(
    root: Path, name: str, splits: Mapping[str, Sequence[Row]], report: Prepared
) -> None:
    """Write an index of images and texts, a file for each split.

    Raises:
        DataError: No training row is left.
    """
    check_any(name, splits["train"], report.findings)
    columns = ("id", "image", "text", "label")
    write_index(root, name, {s: to_table(rows, columns) for s, rows in splits.items()}, report)


def check_any(name: str, train: Sequence[Row], findings: Findings) -> None:
    """Raise DataError if no training row is left."""
    if train:
        return
    found = "; ".join(
        f"{what}, {outcome}: {count:,} ({first})"
        for what, count, outcome, first in findings.summary()
    )
    raise DataError(
        f"{name} cannot be prepared: no training row is left. Found: {found or 'empty files'}. "
        f"Compare the folders with the layout in docs/datasets.md."
    )


def write_index(
    root: Path,
    name: str,
    tables: Mapping[str, pa.Table],
    report: Prepared,
) -> None:
    """Write the index: each file whole or not at all, the one that makes it valid last.

    Args:
        root: Of the data set.
        name: Of the data set.
        tables: By path in the index, without suffix.
        report: What is said of it.
    """
    folder = root / FOLDER
    (folder / NOTES).unlink(missing_ok=True)
    written = {folder / f"{path}.parquet" for path in tables}
    for old in set(folder.rglob("*.parquet")) - written:
        old.unlink()
    for path, table in tables.items():
        write_table(table, folder / f"{path}.parquet")
    with (folder / FINDINGS).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("found", "outcome", "where"))
        writer.writerows(report.findings.rows())
    notes = {
        "data_set": name,
        "version": VERSION,
        "rows": {count.split: count.kept for count in report.counts},
        "findings": {what: count for what, count, *_ in report.findings.summary()},
    }
    unfinished = folder / f"{NOTES}.unfinished"
    unfinished.write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / NOTES)


def to_table(rows: Sequence[Row], columns: Sequence[str]) -> pa.Table:
    """Rows as columns of text (or lists of text); of 64 bits, for the text of many pages."""
    lists = {name for name in columns if any(isinstance(row[name], list) for row in rows[:1])}
    kinds = {
        name: pa.list_(pa.string()) if name in lists else pa.large_string() for name in columns
    }
    return pa.table({name: pa.array([row[name] for row in rows], kinds[name]) for name in columns})
