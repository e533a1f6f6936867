"""Tables to files, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fusionkit.data.places import check_suffix, is_packed, suffix_of
from fusionkit.encoders.files import is_url
from fusionkit.errors import DataError

LIST_SEPARATOR = "|"  # what the Table data set takes apart by default

_BLOCK = 1 << 14  # rows that are Python objects at a time


def check_output(file: str) -> None:
    """Raise DataError unless a table can be written there."""
    if is_url(file):
        raise DataError(f"{file!r} is a URL. Write to a path on this machine, and copy it there.")
    check_suffix(file)


def check_types(schema: pa.Schema, file: str) -> None:
    """Raise DataError if the format of ``file`` cannot hold a column of this schema."""
    suffix = suffix_of(file)
    if suffix in (".parquet", ".arrow", ".feather"):
        return
    for field in schema:
        flat = suffix in (".csv", ".tsv") and pa.types.is_nested(field.type)
        if _has_bytes(field.type) or (flat and not _is_list_of_cells(field.type)):
            raise DataError(
                f"Column {field.name!r} holds {field.type}, which {suffix} cannot hold. Write "
                f".parquet or .arrow, or leave the column out of the table."
            )


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table by its suffix; lists become text with ``|`` in CSV and TSV.

    Raises:
        DataError: The suffix is no table's, or the format cannot hold one of the columns.
    """
    check_output(str(path))
    check_types(table.schema, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    suffix = suffix_of(str(path))
    if suffix == ".parquet":
        pa.parquet.write_table(table, unfinished)
    elif suffix in (".arrow", ".feather"):
        table = table.unify_dictionaries()
        with pa.ipc.new_file(unfinished, table.schema) as writer:
            writer.write_table(table)
    else:
        packed = "gzip" if is_packed(str(path)) else None
        with pa.output_stream(str(unfinished), compression=packed) as file:
            if suffix in (".csv", ".tsv"):
                options = pa.csv.WriteOptions(delimiter="," if suffix == ".csv" else "\t")
                pa.csv.write_csv(_flat(table), file, options)
            else:
                for batch in table.to_batches(_BLOCK):
                    for row in batch.to_pylist():
                        line = json.dumps(row, ensure_ascii=False, default=str)
                        file.write(f"{line}\n".encode())
    os.replace(unfinished, path)


def _flat(table: pa.Table) -> pa.Table:
    for number, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            cells = table.column(number).to_pylist()
            text = [None if c is None else LIST_SEPARATOR.join(map(str, c)) for c in cells]
            table = table.set_column(number, field.name, pa.array(text, pa.string()))
    return table


def _is_list_of_cells(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) and not pa.types.is_nested(kind.value_type))


def _has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return any(_has_bytes(kind.field(i).type) for i in range(kind.num_fields))
