"""Tables from Python: pandas DataFrames, Arrow tables, data sets of Hugging Face.

None of these libraries is imported here: an object of theirs exists only where it was.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from fusionkit.data.cells import Kinds
from fusionkit.data.formats import Needed, check_columns
from fusionkit.data.read import Part, Source
from fusionkit.data.splits import SPLIT_NAMES
from fusionkit.errors import DataError

_WAS = "(in memory) "  # how a config that was written begins where a file would stand

_KNOWN = (
    "a pandas DataFrame, a pyarrow Table, a Dataset of Hugging Face's datasets, or a mapping of "
    "train, val and test to them"
)


def is_table(data: Any) -> bool:
    """Whether :func:`to_source` takes it."""
    if isinstance(data, pa.RecordBatchReader):  # it can be read once only
        return False
    return _is_of(data, "datasets", "Dataset") or hasattr(data, "__arrow_c_stream__")


def by_split(data: Any) -> dict[str, Any]:
    """``{"all": data}``, or what a mapping of splits holds, under the names of our splits.

    Raises:
        DataError: It is no table, or a mapping of something else.
    """
    if not isinstance(data, Mapping):
        return {"all": _checked(data)}
    found: dict[str, Any] = {}
    for name, part in data.items():
        split = SPLIT_NAMES.get(str(name).lower())
        if split is None or split in found:
            what = "is no split" if split is None else f"is a second split {split}"
            raise DataError(
                f"{name!r} {what}; given {', '.join(map(str, data))}. Give one for each of train, "
                f"val and test: {{'train': ..., 'val': ..., 'test': ...}}."
            )
        found[split] = part if isinstance(part, str) else _checked(part)
    return found


def to_source(data: Any, split: str, root: str, needed: Needed) -> Source:
    """Some columns of an object as a source.

    Args:
        data: A DataFrame, an Arrow table, a Dataset.
        split: ``train``, ..., or ``all``; for messages.
        root: What paths in its cells are relative to.
        needed: What asks for it, by column.

    Raises:
        DataError: It lacks a column, holds no rows, or values that make no column.
    """
    name = type(data).__name__ + ("" if split == "all" else f" ({split})")
    again = None
    if _is_of(data, "datasets", "Dataset"):
        check_columns(name, data.column_names, needed)
        chosen = data.select_columns(list(needed))
        table, again = _of_dataset(chosen), (_of_dataset, (chosen,))  # pickles as paths of files
    elif _is_of(data, "pandas", "DataFrame"):
        check_columns(name, [str(column) for column in data.columns], needed)
        columns = {column: data.iloc[:, _place(data, column)] for column in needed}
        table = pa.table({c: _to_array(name, c, cells) for c, cells in columns.items()})
    else:
        table = pa.table(data)
        check_columns(name, table.column_names, needed)
    if not len(table):
        raise DataError(f"{name} has no rows. Give at least one row.")
    return Source(name, root, [Part(name, table.select(list(needed)), again)])


def describe(data: Any) -> str | dict[str, str]:
    """What a config says in the place of files: what the data was, by split if there are some."""
    parts = by_split(data)
    texts = {
        name: part if isinstance(part, str) else f"{_WAS}{type(part).__name__}, {_size(part)}"
        for name, part in parts.items()
    }
    return texts.get("all", texts)


def was_in_memory(file: str) -> bool:
    """Whether this is what :func:`describe` says of data in the place of a file."""
    return file.startswith(_WAS)


def gone(described: str) -> DataError:
    """The error of data that was in memory in another process."""
    return DataError(
        f"The config was made for data in memory, which no file holds: "
        f"{described.removeprefix(_WAS)}. Name files of the same columns: --data.files "
        f"'{{train: FILE, test: FILE}}', or only {{test: FILE}} to test; from Python, hand the "
        f"data to fusionkit.fit or to Predictor.predict."
    )


def _checked(data: Any) -> Any:
    if is_table(data):
        return data
    if _is_of(data, "datasets", "IterableDataset"):
        raise DataError(
            "A streamed data set was given, whose rows cannot be looked up. Load it without "
            "streaming, or save it as Parquet and name the files."
        )
    raise DataError(f"Data is {_KNOWN}, given {type(data).__name__}.")


def _is_of(data: Any, library: str, name: str) -> bool:
    module = sys.modules.get(library)
    return module is not None and isinstance(data, getattr(module, name))


def _of_dataset(data: Any) -> pa.Table:
    """The cells as they are stored, mapped if they are, with what the features say of them."""
    table = data.with_format("arrow")[:]
    return table.replace_schema_metadata(data.features.arrow_schema.metadata)


def _place(frame: Any, column: str) -> int:
    return [str(name) for name in frame.columns].index(column)


def _to_array(name: str, column: str, cells: Any) -> Any:
    try:
        return pa.array(cells, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # values of several kinds
        values = [_plain(cell) for cell in cells]
        for cell in {type(value): value for value in values}.values():
            _check_kind(name, column, cell)
        return Kinds(f"{name}: column {column!r}").to_array(values)


def _check_kind(name: str, column: str, cell: Any) -> None:
    try:
        pa.array([cell])
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise DataError(
            f"{name}: column {column!r} holds {type(cell).__name__}, which is no cell of a table: "
            f"{error}. Give paths, URLs or bytes of files, text, numbers, or lists of these."
        ) from error


def _plain(cell: Any) -> Any:
    if isinstance(cell, os.PathLike):
        return os.fspath(cell)
    if isinstance(cell, float) and cell != cell:  # what pandas has in an empty cell
        return None
    return cell


def _size(data: Any) -> str:
    if _is_of(data, "datasets", "Dataset"):
        rows, columns = len(data), data.column_names
    elif _is_of(data, "pandas", "DataFrame"):
        rows, columns = len(data), list(data.columns)
    else:
        table = pa.table(data)
        rows, columns = len(table), table.column_names
    return f"{rows:,} rows, {len(columns)} columns"
