"""Label cells into targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fusionkit.data.base import Task
from fusionkit.data.cells import encode, label_name
from fusionkit.data.read import Source
from fusionkit.data.splits import Indices
from fusionkit.data.targets import Read, Targets, starts_of
from fusionkit.errors import DataError, RowsError

_SHOWN = 20  # classes in a message
_BLOCK = 1 << 16  # cells that are Python objects at a time


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

    def read(self, source: Source, rows: Indices) -> Read:
        """Those of the rows that are kept.

        Raises:
            RowsError: Labels are missing or malformed.
            DataError: The column holds no labels.
        """
        if isinstance(self.column, list):
            read = self._flags(source, rows, self.column)
        elif self.task == "regression":
            read = Read(rows, [], Targets(self._numbers(source, rows, self.column)))
        elif _is_list(source.table.column(self.column).type):
            read = self._lists(source, rows, self.column)
        else:
            read = self._texts(source, rows, self.column)
        return self._without_others(read) if self.drop and read.names else read

    def targets(self, source: Source, read: Read, classes: Sequence[str] | None) -> Targets:
        """Class index, sorted class indices or number of each row.

        Raises:
            RowsError: Labels are not among the classes.
        """
        if classes is None:
            return read.labels
        index = {name: number for number, name in enumerate(classes)}
        number = np.array([index.get(name, -1) for name in read.names], dtype=np.int64)
        values, starts = number[read.labels.values], read.labels.starts
        if (values < 0).any():
            wrong = np.flatnonzero(values < 0)
            at = wrong if starts is None else np.searchsorted(starts, wrong, "right") - 1
            raise RowsError(
                [
                    self._unknown(source.origin(row), read.names[code], classes)
                    for row, code in zip(
                        read.rows[at].tolist(), read.labels.values[wrong].tolist(), strict=True
                    )
                ]
            )
        if starts is None:
            return Targets(values)
        row = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        return Targets(values[np.lexsort((values, row))], starts)

    def _texts(self, source: Source, rows: Indices, column: str) -> Read:
        """One cell, one label or several with a separator."""
        codes, values = self._encoded(source, column)
        codes = codes[rows]
        parsed: list[Any] = [()] * (len(values) + 1)
        wrong = {}
        for code in np.unique(codes).tolist():
            try:
                cell = None if code < 0 else values[code]
                parsed[code] = read_label(cell, self.task, self.separator)
            except DataError as error:
                wrong[code] = error
        self._stop(source, rows, codes, column, wrong)
        if self.task == "single_label":
            names = sorted({name for name in parsed if name})
            code_of = {name: code for code, name in enumerate(names)}
            number = np.array([code_of.get(name, -1) for name in parsed], dtype=np.int64)
            return Read(rows, names, Targets(number[codes]))
        names = sorted({name for several in parsed for name in several})
        code_of = {name: code for code, name in enumerate(names)}
        starts = starts_of(np.array([len(several) for several in parsed]))
        flat = [code_of[name] for several in parsed for name in several]
        distinct = Targets(np.array(flat, dtype=np.int64), starts)
        return Read(rows, names, distinct.take(np.where(codes < 0, len(values), codes)))

    def _lists(self, source: Source, rows: Indices, column: str) -> Read:
        """One cell, a list of labels."""
        if self.task != "multi_label":
            raise DataError(
                f"{source.name}: label column {column!r} holds lists, but task is {self.task}. "
                f"Set task: multi_label."
            )
        chosen = source.table.column(column).take(pa.array(rows))
        null = np.asarray(pc.is_null(chosen).to_numpy(), dtype=bool)
        self._stop(source, rows, null, column, {True: DataError(_NULL)} if null.any() else {})
        counts = pc.list_value_length(chosen).to_numpy().astype(np.int64)
        codes, values = encode(pc.list_flatten(chosen))
        named = [*map(label_name, values), None]
        names = sorted({name for name in named if name is not None})
        code_of: dict[str | None, int] = {name: code for code, name in enumerate(names)}
        codes = np.array([code_of.get(name, -1) for name in named], dtype=np.int64)[codes]
        row = np.repeat(np.arange(len(rows)), counts)
        pairs = np.unique(row[codes >= 0] * max(len(names), 1) + codes[codes >= 0])
        row, codes = np.divmod(pairs, max(len(names), 1))
        starts = starts_of(np.bincount(row, minlength=len(rows)))
        return Read(rows, names, Targets(codes, starts))

    def _flags(self, source: Source, rows: Indices, columns: list[str]) -> Read:
        """A cell for each label."""
        chosen = np.zeros((len(rows), len(columns)), dtype=bool)
        for place, column in enumerate(columns):
            codes, values = self._encoded(source, column)
            codes = codes[rows]
            flag = np.zeros(len(values) + 1, dtype=bool)
            wrong = {}
            for code in np.unique(codes).tolist():
                try:
                    flag[code] = read_flag(None if code < 0 else values[code])
                except DataError as error:
                    wrong[code] = error
            self._stop(source, rows, codes, column, wrong)
            chosen[:, place] = flag[codes]
        starts = starts_of(chosen.sum(axis=1))
        return Read(rows, columns, Targets(np.nonzero(chosen)[1], starts))

    def _numbers(self, source: Source, rows: Indices, column: str) -> NDArray[np.float64]:
        cells = source.table.column(column)
        numbers = np.full(len(source), np.nan)
        if pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type):
            numbers = cells.cast(pa.float64(), safe=False).to_numpy()
        else:
            for start in range(0, len(cells), _BLOCK):
                block = cells.slice(start, _BLOCK).to_pylist()
                numbers[start : start + _BLOCK] = [_number(label_name(cell)) for cell in block]
        wrong = ~np.isfinite(numbers[rows])
        if wrong.any():
            raise RowsError(
                [
                    _at(source, row, column, _no_number(source.cell(column, row)))
                    for row in rows[wrong].tolist()
                ]
            )
        return numbers[rows]

    def _encoded(self, source: Source, column: str) -> tuple[NDArray[np.int64], list[Any]]:
        try:
            return source.encoded(column)
        except pa.ArrowNotImplementedError as error:
            kind = source.table.column(column).type
            raise DataError(
                f"{source.name}: label column {column!r} holds {kind}; give text or numbers, or "
                f"for multi_label lists of them."
            ) from error

    def _stop(
        self,
        source: Source,
        rows: Indices,
        codes: NDArray[Any],
        column: str,
        wrong: dict[Any, DataError],
    ) -> None:
        """Raise what is wrong with every row that has one of the wrong codes."""
        if wrong:
            places = np.flatnonzero(np.isin(codes, list(wrong)))
            raise RowsError(
                [
                    _at(source, row, column, str(wrong[code]))
                    for row, code in zip(rows[places].tolist(), codes[places].tolist(), strict=True)
                ]
            )

    def _without_others(self, read: Read) -> Read:
        """Without what is not declared: the row, or in multi_label the label."""
        wanted = set(self.declared or ())
        known = np.array([name in wanted for name in read.names])[read.labels.values]
        starts = read.labels.starts
        if starts is None:
            return replace(read, rows=read.rows[known], labels=read.labels.take(known))
        before = np.concatenate([[0], np.cumsum(known)])
        return replace(read, labels=Targets(read.labels.values[known], before[starts]))

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


_EMPTY = "is empty; fill it in or remove the row."
_NULL = "is null; write an empty text or list where no label applies."


def read_label(value: Any, task: Task, separator: str) -> str | tuple[str, ...] | float:
    """The label in one cell: a class name, class names, or a number.

    Raises:
        DataError: The cell is empty or no number; the caller says in which row.
    """
    if task == "multi_label":
        if value is None:
            raise DataError(_NULL)
        parts = value.split(separator) if isinstance(value, str) else value
        parts = parts if isinstance(parts, list) else [parts]
        names = [label_name(part) for part in parts]
        return tuple(dict.fromkeys(name for name in names if name is not None))
    name = label_name(value)
    if name is None:
        raise DataError(_EMPTY)
    if task == "single_label":
        return name
    number = _number(name)
    if not math.isfinite(number):
        raise DataError(_no_number(value))
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


def _number(name: str | None) -> float:
    try:
        return math.nan if name is None else float(name)
    except ValueError:
        return math.nan


def _at(source: Source, row: int, column: str, why: str) -> str:
    return f"{source.origin(row)}: label column {column!r} {why}"


def _no_number(value: Any) -> str:
    if label_name(value) is None:
        return _EMPTY
    return f"is {value!r}, not a number; correct it or remove the row."


def _is_list(kind: pa.DataType) -> bool:
    checks: tuple[Callable[[pa.DataType], bool], ...] = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
    )
    return any(check(kind) for check in checks)
