"""Cells of a table: values into Arrow columns, and what is in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fusionkit.errors import DataError


class Kinds:
    """What kinds of values a column of Python values has had so far, and its Arrow type.

    Args:
        where: The column, as messages call it.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._found: set[type] = set()
        self._type: pa.DataType = pa.null()

    def to_array(self, values: list[Any]) -> pa.Array:
        """The values as Arrow has them; text, where numbers and texts are mixed.

        Raises:
            DataError: They cannot be one column.
        """
        self._found |= {type(value) for value in values if value is not None}
        if len(self._found) > 1:
            if self._found & {list, dict}:
                mixed = ", ".join(sorted(kind.__name__ for kind in self._found))
                raise DataError(f"{self._where} mixes {mixed}. Write all of one kind.")
            values = [v if isinstance(v, str) else label_name(v) for v in values]
            self._type = pa.string()
        try:
            array = pa.array(values)
            schemas = [pa.schema([("it", kind)]) for kind in (self._type, array.type)]
            wide = pa.unify_schemas(schemas, promote_options="permissive").field("it").type
            self._type = wide
            return array if array.type == wide else pa.array(values, wide)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise DataError(
                f"{self._where} mixes kinds of values: {error}. Write all of one kind."
            ) from error


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


def encode(column: Any) -> tuple[NDArray[np.int64], list[Any]]:
    """The different values of a column and which of them each cell has.

    Args:
        column: A column of a table; not of lists or mappings.

    Returns:
        (N,) place of each cell's value, -1 = null; and the values, in no order.

    Raises:
        pa.ArrowNotImplementedError: Arrow cannot compare such values.
    """
    chunks = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    if pa.types.is_dictionary(chunks.type):
        whole = chunks.unify_dictionaries().combine_chunks()
    else:
        whole = pc.dictionary_encode(chunks).combine_chunks()
    codes = pc.fill_null(pc.cast(whole.indices, pa.int64()), -1)
    return codes.to_numpy(zero_copy_only=False), whole.dictionary.to_pylist()


def flag_cells(column: Any, says: Callable[[Any], bool]) -> NDArray[np.bool_]:
    """(N,) bool, what is said of each cell, asked once for each different value."""
    codes, values = encode(column)
    return np.array([*map(says, values), says(None)], dtype=bool)[codes]


def missing(column: Any, file: bool = False) -> NDArray[np.bool_]:
    """(N,) bool, True = the cell is null, an empty text or no bytes.

    Args:
        column: A column of a table.
        file: Whether ``{"bytes", "path"}`` stands for a file, which is missing if both are.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return flag_cells(column, lambda cell: cell in (None, "", b""))
    found = pc.is_null(column)
    if any(check(kind) for check in _WITH_LENGTH):
        found = pc.or_(found, pc.equal(pc.fill_null(pc.binary_length(column), 0), 0))
    flags = np.asarray(found.to_numpy(zero_copy_only=False), dtype=bool)
    if file and pa.types.is_struct(kind):
        parts = [missing(pc.struct_field(column, [i])) for i in range(kind.num_fields)]
        flags = flags | np.all(parts, axis=0)
    return flags


_WITH_LENGTH = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
)
