"""Labels of many rows as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionkit.data.base import Task
from fusionkit.data.splits import Indices


@dataclass(frozen=True, slots=True)
class Targets(Sequence[Any]):
    """Class index, sorted class indices or number of each row, without an object for each.

    Attributes:
        values: (N,) class indices or numbers; in multi_label those of all rows, one after another.
        starts: (N + 1,) where each row's begin in ``values``; None where each row has one.
    """

    values: NDArray[Any]
    starts: Indices | None = None

    def __len__(self) -> int:
        return len(self.values) if self.starts is None else len(self.starts) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self.starts is None:
            return self.values[index].item()
        if index < 0:
            index += len(self)
        return tuple(self.values[self.starts[index] : self.starts[index + 1]].tolist())

    def take(self, rows: Indices | NDArray[np.bool_]) -> Targets:
        """Those of some rows."""
        if self.starts is None:
            return Targets(self.values[rows])
        counts = np.diff(self.starts)
        first, count = self.starts[:-1][rows], counts[rows]
        starts = starts_of(count)
        places = np.repeat(first - starts[:-1], count) + np.arange(starts[-1])
        return Targets(self.values[places], starts)


@dataclass(frozen=True, slots=True)
class Read:
    """The labels of some rows.

    Attributes:
        rows: (N,) which rows of the source.
        names: The class of each code, in no order; empty for numbers.
        labels: Codes, or numbers.
    """

    rows: Indices
    names: list[str]
    labels: Targets

    def found(self) -> set[str]:
        """The classes that these rows have."""
        return {self.names[code] for code in np.unique(self.labels.values).tolist()}

    def strata(self, bins: int = 10) -> NDArray[np.int64]:
        """(N,) stratum of each row: its class, its rarest class, or its quantile of ``bins``."""
        values, starts = self.labels.values, self.labels.starts
        if values.dtype.kind == "f":
            rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
            return np.asarray(rank * bins // max(len(values), 1), dtype=np.int64)
        order = np.argsort(np.asarray(self.names), kind="stable")  # of code points
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        if starts is None:
            return np.unique(place[values], return_inverse=True)[1].astype(np.int64)
        counts = np.bincount(values, minlength=len(self.names))
        rarity = np.empty_like(order)
        rarity[np.lexsort((place, counts))] = np.arange(len(order))
        rarest = np.full(len(starts) - 1, -1, dtype=np.int64)  # without labels
        some = np.diff(starts) > 0
        if some.any():
            rarest[some] = np.minimum.reduceat(rarity[values], starts[:-1][some])
        by_rarity = np.append(place[np.argsort(rarity)], -1)
        return np.unique(by_rarity[rarest], return_inverse=True)[1].astype(np.int64)


def strata(labels: Sequence[Any], task: Task, bins: int = 10) -> Indices:
    """As :meth:`Read.strata`, of labels one by one: a class, a sequence of classes or a number."""
    rows: Indices = np.arange(len(labels))
    if task == "regression":
        return Read(rows, [], Targets(np.asarray(labels, dtype=np.float64))).strata(bins)
    several = [labels[i] if task == "multi_label" else (labels[i],) for i in range(len(labels))]
    names, codes = np.unique([str(n) for names in several for n in names], return_inverse=True)
    starts = starts_of(np.array([len(names) for names in several], dtype=np.int64))
    return Read(rows, names.tolist(), Targets(codes.astype(np.int64), starts)).strata()


def starts_of(counts: NDArray[Any]) -> Indices:
    """(N + 1,) where rows of these lengths begin, one after another."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
