"""Tables as the data sets see them: columns of one or several files, or of objects in memory."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fusionkit.data.cells import encode
from fusionkit.data.features import class_names, decode
from fusionkit.data.formats import Needed
from fusionkit.data.mapped import IN_MEMORY, load, map_arrow
from fusionkit.data.places import find_files
from fusionkit.encoders.files import base_name, is_url, parent
from fusionkit.errors import DataError


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one file, or of one object in memory.

    Attributes:
        name: What messages call it.
        table: Its columns.
        again: Gives the table anew in another process, where it is not in this one's memory:
            pickled instead of the cells.
    """

    name: str
    table: pa.Table
    again: tuple[Callable[..., pa.Table], tuple[Any, ...]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.again is None:
            return Part, (self.name, self.table)
        return _part_again, (self.name, self.again, self.table.column_names)


def _part_again(name: str, again: Any, columns: list[str]) -> Part:
    make, arguments = again
    return Part(name, make(*arguments).select(columns), again)


class Source:
    """A table that was read, in one part or several of the same columns.

    Where it is mapped or comes from a data set that is, pickling it takes no more than its path.

    Attributes:
        name: What messages call it.
        root: Folder or URL that paths in its cells are relative to.
        parts: Whose rows it has, in order.
        table: All rows.
        class_names: Names of the classes by column, where the table itself states them.

    Raises:
        DataError: The parts have columns of different types.
    """

    def __init__(self, name: str, root: str, parts: Sequence[Part]) -> None:
        self.name = name
        self.root = root
        self.parts = tuple(parts)
        tables = [part.table for part in parts]
        self.class_names = class_names(tables[0].schema)
        self.table = decode(_joined(name, self.parts))
        self._columns: dict[str, Any] = {}
        self._encoded: dict[str, tuple[NDArray[np.int64], list[Any]]] = {}
        self._starts = [0, *accumulate(len(table) for table in tables)]

    def __len__(self) -> int:
        return len(self.table)

    def __reduce__(self) -> tuple[Any, ...]:
        return Source, (self.name, self.root, self.parts)

    def cell(self, column: str, row: int) -> Any:
        """One cell as a Python value."""
        cells = self._columns.get(column)
        if cells is None:
            cells = self.table.column(column)  # slower than a cell: hence kept
            cells = self._columns[column] = cells.chunk(0) if cells.num_chunks == 1 else cells
        return cells[row].as_py()

    def origin(self, row: int) -> str:
        """``"products.csv, row 17"``, counted from 1 in each file."""
        if len(self.parts) == 1:
            return f"{self.name}, row {row + 1}"
        number = bisect_right(self._starts, row) - 1
        return f"{self.parts[number].name}, row {row - self._starts[number] + 1}"

    def encoded(self, column: str) -> tuple[NDArray[np.int64], list[Any]]:
        """As :func:`fusionkit.data.cells.encode`; kept."""
        if column not in self._encoded:
            self._encoded[column] = encode(self.table.column(column))
        return self._encoded[column]


def read_source(given: str, root: str | None, needed: Needed | None) -> Source:
    """Some columns of one entry of ``files``, or all.

    Args:
        given: See :func:`fusionkit.data.places.find_files`.
        root: What paths in cells are relative to; None for the folder of the first file.
        needed: What asks for it, by column: ``{"title": "field 'text'"}``; None for all columns.

    Raises:
        DataError: A file or a column is missing, or a row is malformed.
    """
    room, parts = IN_MEMORY, []
    files = find_files(given)
    for file in files:
        table, mapped = load(file, needed, room)
        again = None if mapped is None else (map_arrow, (os.path.abspath(mapped),))
        room = max(0, room - (table.nbytes if mapped is None else 0))
        parts.append(Part(base_name(file), table, again))
    if not any(len(part.table) for part in parts):
        where = given if is_url(given) else os.path.abspath(os.path.expanduser(given))
        raise DataError(f"{where} has no rows. Write at least one row.")
    name = parts[0].name if len(parts) == 1 else base_name(given)
    return Source(name, parent(files[0]) if root is None else root, parts)


def read_columns(file: str | Path, needed: Needed | None = None) -> pa.Table:
    """Some columns of a table file, or all; as :func:`read_source`."""
    return read_source(str(file), None, needed).table


def _joined(name: str, parts: Sequence[Part]) -> pa.Table:
    first = parts[0]
    for part in parts[1:]:
        if set(part.table.column_names) != set(first.table.column_names):
            here, there = part.table.column_names, first.table.column_names
            raise DataError(
                f"{name}: {part.name} has the columns {', '.join(here)}, {first.name} has "
                f"{', '.join(there)}. Give all files the same columns."
            )
        if class_names(part.table.schema) != class_names(first.table.schema):
            raise DataError(
                f"{name}: {part.name} names other classes than {first.name}. Save them as one "
                f"data set."
            )
    try:
        joined = pa.concat_tables([part.table for part in parts], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"{name}: the files have columns of different types: {error}. Save each column with "
            f"one type."
        ) from error
    return joined.replace_schema_metadata(first.table.schema.metadata)
