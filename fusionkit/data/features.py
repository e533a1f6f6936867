"""What Hugging Face's datasets say of a column in the metadata of Arrow and Parquet files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the classes by column, for columns of ClassLabel or of lists of it."""
    content = (schema.metadata or {}).get(b"huggingface")
    if content is None:
        return {}
    features = json.loads(content).get("info", {}).get("features", {})
    found = {name: _names(feature) for name, feature in features.items()}
    return {name: names for name, names in found.items() if names and name in schema.names}


def decode(table: pa.Table) -> pa.Table:
    """Class numbers by their names (less than 0 by null), view types by those Arrow computes with.

    Columns of neither kind stay as they are, mapped files mapped.
    """
    for name, names in class_names(table.schema).items():
        place = table.schema.get_field_index(name)
        column = table.column(place)
        if pa.types.is_integer(column.type) or _holds_integers(column.type):
            named = pa.chunked_array([_named(chunk, pa.array(names)) for chunk in column.chunks])
            table = table.set_column(place, name, named) if column.num_chunks else table
    for place, field in enumerate(table.schema):
        if kind := _VIEWS.get(str(field.type)):
            table = table.set_column(place, field.name, table.column(place).cast(kind))
    return table


_VIEWS = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}


def _names(feature: Any) -> list[str]:
    if isinstance(feature, list) and len(feature) == 1:  # how old versions write a list
        return _names(feature[0])
    if not isinstance(feature, Mapping):
        return []
    if feature.get("_type") == "ClassLabel":
        return list(feature.get("names") or [])
    return _names(feature.get("feature"))


def _holds_integers(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(listed and pa.types.is_integer(kind.value_type))


def _named(chunk: pa.Array, names: pa.Array) -> pa.Array:
    if pa.types.is_integer(chunk.type):
        known = pc.if_else(pc.greater_equal(chunk, 0), chunk, None)
        return pa.DictionaryArray.from_arrays(pc.cast(known, pa.int32()), names)
    starts = pc.if_else(pc.is_valid(chunk), chunk.offsets[:-1], None)
    offsets = pa.concat_arrays([starts, chunk.offsets[-1:]])
    make = pa.ListArray if pa.types.is_list(chunk.type) else pa.LargeListArray
    return make.from_arrays(offsets, _named(chunk.values, names))
