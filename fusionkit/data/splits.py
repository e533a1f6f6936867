"""Dividing rows into splits that have the same mix of labels, and keep together what belongs so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionkit.data.base import Split
from fusionkit.data.cells import label_name
from fusionkit.data.read import Source
from fusionkit.errors import DataError

Indices = NDArray[np.int64]

SPLIT_NAMES: dict[str, Split] = {  # by what a column, a mapping or a folder calls them
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


def stratified_split(
    labels: Sequence[int] | NDArray[Any], shares: Sequence[float], seed: int
) -> list[Indices]:
    """Divide rows so that each part has the labels in about the same proportions.

    Not scikit-learn's splitter: that one refuses labels with a single row, and parts with fewer
    rows than there are labels.

    Args:
        labels: (N,) stratum of each row.
        shares: Share of each part, summing to 1. Parts get their share of all rows up to
            rounding, at least one row where there are enough, and of each label up to one row.
            Every label has a row in the first part, so that none is met there for the first
            time in another.
        seed: The same rows in the same order with the same seed are divided the same.

    Returns:
        One sorted array of row numbers per part; together each row once.
    """
    rng = np.random.default_rng(seed)
    of_row = np.asarray(labels)
    order = rng.permutation(len(of_row))
    order = order[np.argsort(of_row[order], kind="stable")]  # random within a label

    part = np.zeros(len(of_row), dtype=np.int64)
    some = int(len(of_row) >= len(shares))
    counts = [max(round(share * len(of_row)), some if share > 0 else 0) for share in shares[1:]]
    rest = order[_spaced(len(order), min(sum(counts), len(order)), rng)]
    for number, count in enumerate(counts, start=1):
        chosen = _spaced(len(rest), min(count, len(rest)), rng)
        part[rest[chosen]] = number
        rest = np.delete(rest, chosen)
    for stratum in np.setdiff1d(of_row, of_row[part == 0]):
        part[order[of_row[order] == stratum][0]] = 0
    return [np.flatnonzero(part == number) for number in range(len(shares))]


def grouped_split(
    labels: Sequence[int] | NDArray[Any],
    groups: Sequence[int] | NDArray[Any],
    shares: Sequence[float],
    seed: int,
) -> list[Indices]:
    """As :func:`stratified_split`, with all rows of a group in one part.

    Groups are dealt out one by one, each to the part that is furthest behind its share of the
    rows: at random, but those whose rows mostly have the same label one after another. So each
    part has its share of rows, and of such groups' rows, up to the size of a group.

    Not scikit-learn's StratifiedGroupKFold, whose parts are all of one size.

    Args:
        labels: (N,) stratum of each row.
        groups: (N,) group of each row.
        shares: As there. Every label has a row in the first part. Other parts are empty only
            where groups are too few, or each holds all rows of a label.
        seed: As there.

    Returns:
        One sorted array of row numbers per part; together each row once.
    """
    of_row = np.unique(np.asarray(labels), return_inverse=True)[1]
    group = np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes = np.bincount(group)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(sizes))
    order = order[np.argsort(_most_frequent(of_row, group)[order], kind="stable")]

    part = np.zeros(len(sizes), dtype=np.int64)
    behind = [0.0] * len(shares)
    for number, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        behind = [rows + share * size for rows, share in zip(behind, shares, strict=True)]
        chosen = behind.index(max(behind))
        behind[chosen] -= size
        part[number] = chosen

    for stratum in np.setdiff1d(of_row, of_row[part[group] == 0]):
        holders = np.unique(group[of_row == stratum])
        if part[holders].all():  # else one that was moved for another label has it
            part[holders[sizes[holders].argmin()]] = 0
    for number, share in enumerate(shares):
        if share > 0 and not (part == number).any():
            spare = _spare(of_row, group, part)
            if len(spare):
                part[spare[sizes[spare].argmin()]] = number
    return [np.flatnonzero(part[group] == number) for number in range(len(shares))]


def _most_frequent(of_row: NDArray[Any], group: NDArray[Any]) -> NDArray[np.int64]:
    """The label that most rows of each group have."""
    (owners, labels), counts = np.unique(np.stack([group, of_row]), axis=1, return_counts=True)
    first = np.lexsort((labels, -counts, owners))
    return labels[first[np.unique(owners[first], return_index=True)[1]]]


def _spare(of_row: NDArray[Any], group: NDArray[Any], part: NDArray[Any]) -> NDArray[np.int64]:
    """Groups of the first part without which it still has every label."""
    owners, labels = np.unique(np.stack([group, of_row]), axis=1)
    first = part[owners] == 0
    held_by = np.bincount(labels[first])
    needed = np.unique(owners[first][held_by[labels[first]] == 1])
    return np.setdiff1d(np.flatnonzero(part == 0), needed)


def groups_of(source: Source, column: str) -> Indices:
    """(N,) number of what each row is about, as a column says; an empty cell is like no other."""
    codes, values = source.encoded(column)
    empty = np.array([value in ("", None) for value in [*values, None]])[codes]
    return np.where(empty, -1 - np.arange(len(codes)), codes)


def stated_parts(source: Source, column: str) -> dict[Split, Indices]:
    """Sorted rows of each split, as a column says.

    Raises:
        DataError: A cell names no split.
    """
    codes, values = source.encoded(column)
    names = [SPLIT_NAMES.get((label_name(cell) or "").lower()) for cell in [*values, None]]
    wrong = np.array([name is None for name in names])[codes]
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{source.origin(row)}: split column {column!r} is {source.cell(column, row)!r}. "
            f"Write one of {', '.join(SPLIT_NAMES)}, or remove the row."
        )
    of_row = np.array([name or "" for name in names])[codes]
    return {name: np.flatnonzero(of_row == name) for name in names if name}


def _spaced(rows: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``count`` of ``rows`` positions at even distances from a random start."""
    return np.floor((np.arange(count) + rng.random()) * rows / max(count, 1)).astype(np.int64)
