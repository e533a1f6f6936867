"""Label cells into targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusionkit.data.base import Task
from fusionkit.data.read import Source, label_name
from fusionkit.data.splits import Indices
from fusionkit.errors import DataError, RowsError

Label = str | tuple[str, ...] | float  # a class, classes, or a number, by task

_SHOWN = 20  # classes in a message


@dataclass(frozen=True, slots=True)
class Labels:
    """Where labels stand and what they may be.

    Attributes:
        column: Their column, or one column of 0 and 1 per class.
        task: What they are.
        separator: Between the labels of one multi-label cell.
        declared: The classes that the config states.
        drop: Whether labels that are not declared are left out.
    """

    column: str | list[str]
    task: Task
    separator: str
    declared: Sequence[str] | None
    drop: bool

    @property
    def columns(self) -> list[str]:
        """Their columns."""
        return self.column if isinstance(self.column, list) else [self.column]

    def read(self, source: Source, rows: Indices) -> tuple[Indices, list[Label]]:
        """Those of the rows that are kept, and the label of each.

        Raises:
            RowsError: Labels are missing or malformed.
        """
        columns = [source.table.column(name).take(rows).to_pylist() for name in self.columns]
        wanted = set(self.declared or ())
        kept: list[int] = []
        labels: list[Label] = []
        wrong: list[str] = []
        for row, *cells in zip(rows.tolist(), *columns, strict=True):
            try:
                label = self._read_row(source, row, cells)
            except DataError as error:
                wrong.append(str(error))
                continue
            if self.drop and isinstance(label, tuple):
                label = tuple(name for name in label if name in wanted)
            elif self.drop and label not in wanted:
                continue
            kept.append(row)
            labels.append(label)
        if wrong:
            raise RowsError(wrong)
        return np.asarray(kept, dtype=np.int64), labels

    def targets(
        self, source: Source, rows: Indices, labels: Sequence[Label], classes: Sequence[str] | None
    ) -> list[int | tuple[int, ...] | float]:
        """Class index, sorted class indices or number of each row.

        Raises:
            RowsError: Labels are not among the classes.
        """
        if classes is None:
            return [label for label in labels if isinstance(label, float)]
        index = {name: number for number, name in enumerate(classes)}
        found: list[int | tuple[int, ...] | float] = []
        wrong: list[str] = []
        for row, label in zip(rows.tolist(), labels, strict=True):
            try:
                if isinstance(label, tuple):
                    found.append(tuple(sorted(index[name] for name in label)))
                else:
                    found.append(index[str(label)])
            except KeyError as error:
                wrong.append(self._unknown(source.origin(row), error.args[0], classes))
        if wrong:
            raise RowsError(wrong)
        return found

    def _read_row(self, source: Source, row: int, cells: Sequence[Any]) -> Label:
        column = self.columns[0]
        try:
            if not isinstance(self.column, list):
                return read_label(cells[0], self.task, self.separator)
            names = []
            for column, cell in zip(self.column, cells, strict=True):
                if read_flag(cell):
                    names.append(column)
            return tuple(names)
        except DataError as error:
            raise DataError(f"{source.origin(row)}: label column {column!r} {error}") from None

    def _unknown(self, origin: str, label: str, classes: Sequence[str]) -> str:
        known = ", ".join(classes[:_SHOWN])
        if len(classes) > _SHOWN:
            known += f" and {len(classes) - _SHOWN} more"
        if self.declared is None:
            return (
                f"{origin}: label {label!r} is not in the training split, which has: {known}. "
                f"Correct it, or declare `classes`, with other_labels: drop to leave out such rows."
            )
        return (
            f"{origin}: label {label!r} is not among the declared classes: {known}. Correct it, "
            f"add it to `classes`, or set other_labels: drop."
        )


def read_label(value: Any, task: Task, separator: str) -> str | tuple[str, ...] | float:
    """The label in one cell: a class name, class names, or a number.

    Raises:
        DataError: The cell is empty or no number; the caller says in which row.
    """
    if task == "multi_label":
        if value is None:
            raise DataError("is null; write an empty text or list where no label applies.")
        parts = value.split(separator) if isinstance(value, str) else value
        parts = parts if isinstance(parts, list) else [parts]
        names = [label_name(part) for part in parts]
        return tuple(dict.fromkeys(name for name in names if name is not None))
    name = label_name(value)
    if name is None:
        raise DataError("is empty; fill it in or remove the row.")
    if task == "single_label":
        return name
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"is {value!r}, not a number; correct it or remove the row.")
    return number


def read_flag(value: Any) -> bool:
    """Whether a 0/1 cell is set.

    Raises:
        DataError: It is something else; the caller says in which row.
    """
    name = (label_name(value) or "").lower()
    if name not in ("0", "1", "false", "true"):
        raise DataError(f"is {value!r}; a column of several labels holds 0 or 1.")
    return name in ("1", "true")
