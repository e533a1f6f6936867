"""Tables to files, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fusionkit.data.read import check_suffix

LIST_SEPARATOR = "|"  # what the Table data set takes apart by default


def write_table(table: pa.Table, path: Path) -> None:
    """Write CSV, TSV, JSONL or Parquet, by suffix; lists become text with ``|`` in CSV and TSV.

    Raises:
        DataError: The suffix is none of these.
    """
    check_suffix(str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        pa.parquet.write_table(table, unfinished)
    elif suffix in (".csv", ".tsv"):
        options = pa.csv.WriteOptions(delimiter="," if suffix == ".csv" else "\t")
        pa.csv.write_csv(_flat(table), unfinished, options)
    else:
        with unfinished.open("w", encoding="utf-8") as file:
            for row in table.to_pylist():
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    os.replace(unfinished, path)


def _flat(table: pa.Table) -> pa.Table:
    for number, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            cells = table.column(number).to_pylist()
            text = [None if c is None else LIST_SEPARATOR.join(map(str, c)) for c in cells]
            table = table.set_column(number, field.name, pa.array(text, pa.string()))
    return table
