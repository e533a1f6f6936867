"""Table files into columns."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from fusionkit.errors import DataError, suggest

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")

_BLOCK = 1 << 24  # bytes; the longest cell that a CSV file may have


@dataclass(frozen=True, slots=True)
class Source:
    """A table that was read; ``root`` is what its paths are relative to."""

    name: str
    root: Path
    table: pa.Table

    def cell(self, column: str, row: int) -> Any:
        """One cell as a Python value."""
        return self.table.column(column)[row].as_py()

    def origin(self, row: int) -> str:
        """``"products.csv, row 17"``, counted from 1."""
        return f"{self.name}, row {row + 1}"


def check_suffix(file: str) -> None:
    """Raise DataError unless the suffix is one of :data:`SUFFIXES`."""
    if Path(file).suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{file!r} is not a table that can be read: its name ends in "
            f"{Path(file).suffix!r}. Known: {', '.join(SUFFIXES)}."
        )


def read_columns(path: Path, needed: Mapping[str, str] | None = None) -> pa.Table:
    """Some columns of a table file, or all.

    Cells of CSV and TSV stay text, exactly as written: no cell turns into a number, a date or
    a missing value on its way.

    Args:
        path: Where the file is; its suffix decides how it is read.
        needed: What asks for it, by column: ``{"title": "field 'text'"}``; None for all columns.

    Raises:
        DataError: The file or a column is missing, or a row is malformed.
    """
    check_suffix(str(path))
    if not path.is_file():
        raise DataError(_not_found(path.absolute()))
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            names = pa.parquet.read_schema(path).names
            _check_columns(path, names, needed or {})
            table = pa.parquet.read_table(path, columns=None if needed is None else list(needed))
        elif suffix in (".csv", ".tsv"):
            table = _read_csv(path, "," if suffix == ".csv" else "\t")
            _check_columns(path, table.column_names, needed or {})
        else:
            table = _read_json_lines(path, needed)
    except pa.ArrowInvalid as error:
        raise DataError(_malformed(path, str(error))) from error
    if not len(table):
        raise DataError(f"{path.absolute()} has no rows. Write at least one row.")
    return table.select(table.column_names if needed is None else list(needed)).combine_chunks()


def missing(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """(N,) bool, True = the cell is null or an empty string."""
    found = pc.is_null(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        found = pc.or_(found, pc.equal(pc.fill_null(column, ""), ""))
    return np.asarray(found.to_numpy(), dtype=bool)


def label_name(value: Any) -> str | None:
    """A label cell as a class name; None if the cell is empty.

    ``true`` and ``True`` of JSON and Parquet read ``"true"``, the number 3.0 reads ``"3"``.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() or None


def _read_csv(path: Path, delimiter: str) -> pa.Table:
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    # One thread: only then does Arrow count rows across blocks, for its messages.
    read = pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK)
    with pa.csv.open_csv(path, read_options=read, parse_options=parse) as stream:
        names = stream.schema.names
    text = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    table = pa.csv.read_csv(path, read_options=read, parse_options=parse, convert_options=text)
    if len(table) and "\n" in table.column(table.num_columns - 1)[-1].as_py():
        _check_closed(path, len(table))
    return table


def _check_closed(path: Path, rows: int) -> None:
    """Arrow takes all that follows an unclosed quote into the last cell, without a word."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        if not file.read().rstrip(b"\r\n").endswith(b'"'):
            raise DataError(
                f"{path.name}, row {rows}: a quote is opened and never closed. Close it, or double "
                f'a quote that belongs to the text ("").'
            )


def _read_json_lines(path: Path, needed: Mapping[str, str] | None) -> pa.Table:
    # The standard library, not Arrow: on 500,000 lines of 1.5 kB twice as fast with one thread,
    # exact about the row, and it turns no text that looks like a date into one.
    rows: list[dict[str, Any]] = []
    keys: dict[str, None] = {}  # a set that keeps its order
    with path.open("rb") as file:
        for line in file:
            line = line if rows else line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            number = len(rows) + 1
            try:
                row = json.loads(line)
            except ValueError as error:  # also of an encoding other than UTF-8
                raise DataError(_not_json(path, number, str(error))) from error
            if not isinstance(row, dict):
                raise DataError(_not_json(path, number, f"it is a {type(row).__name__}"))
            keys.update(dict.fromkeys(row))
            rows.append(row if needed is None else {name: row.get(name) for name in needed})
    if rows:
        _check_columns(path, list(keys), needed or {})
    names = keys if needed is None else needed
    return pa.table(
        {name: _to_array(path, name, [row.get(name) for row in rows]) for name in names}
    )


def _to_array(path: Path, name: str, values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1:
        if kinds & {list, dict}:
            mixed = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise DataError(f"{path.name}: column {name!r} mixes {mixed}. Write all of one kind.")
        values = [label_name(value) if not isinstance(value, str) else value for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise DataError(
            f"{path.name}: column {name!r} mixes kinds of values: {error}. Write all of one kind."
        ) from error


def _not_json(path: Path, row: int, why: str) -> str:
    return (
        f"{path.name}, row {row}: not a JSON object: {why}. "
        f"Write one object per line, all of it on that line."
    )


def _malformed(path: Path, error: str) -> str:
    """Arrow's message with the data row, which starts below the header."""
    found = re.search(r"Row #(\d+): ", error)
    if found is None:
        return f"{path.absolute()} cannot be read: {error}. Repair or replace the file."
    remedy = (
        "Save the file as UTF-8."
        if "UTF8" in error
        else "Quote cells that contain the separator, or remove the row."
    )
    return f"{path.name}, row {int(found[1]) - 1}: {error[found.end() :]}. {remedy}"


def _not_found(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path} does not exist, nor does its folder. Correct `files` in the config."
    near = difflib.get_close_matches(path.name, [file.name for file in path.parent.iterdir()])
    hint = f" Close names in that folder: {', '.join(near)}." if near else ""
    return f"{path} does not exist.{hint} Correct `files` in the config."


def _check_columns(path: Path, known: Sequence[str], needed: Mapping[str, str]) -> None:
    for name, who in needed.items():
        if name not in known:
            raise DataError(
                f"{path.name} has no column {name!r}, which {who} asks for."
                f"{suggest(name, known)} Columns: {', '.join(known)}."
            )
        if known.count(name) > 1:
            raise DataError(
                f"{path.name} has {known.count(name)} columns {name!r}. Rename all but one."
            )
