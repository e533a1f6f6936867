"""Dividing rows into splits that have the same mix of labels."""

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
