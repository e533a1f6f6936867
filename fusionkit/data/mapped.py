"""Tables that stay on disk: Arrow files mapped into memory, and copies of what is none.

A table is read as a stream. What fits into a small part of memory stays there; of anything
larger, the columns that are needed are written once, as a stream, to an Arrow file in the cache
folder, which every later run maps. An uncompressed Arrow file is mapped where it is.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock

from fusionkit.data.folders import cache_folder
from fusionkit.data.formats import Needed, StartAgain, Stream, check_columns, open_arrow
from fusionkit.data.places import suffix_of
from fusionkit.encoders.files import is_url, url_version
from fusionkit.errors import DataError

IN_MEMORY = 1 << 26  # bytes of cells of one data set that are kept in memory rather than mapped

_FORMAT = "1"  # of the files in the cache folder


def load(file: str, needed: Needed | None, room: int) -> tuple[pa.Table, str | None]:
    """Some columns of a table file, or all.

    Args:
        file: A path or URL of one file.
        needed: What asks for it, by column; None for all columns.
        room: Bytes it may take in memory.

    Returns:
        The table, and the Arrow file that it is a map of; None if it is in memory.

    Raises:
        DataError: The file or a column is missing, a row is malformed, or the cache folder cannot
            be written to.
    """
    if suffix_of(file) in (".arrow", ".feather") and not is_url(file):
        table = _try_to_map(file, needed)
        if table is not None:
            return table, file
    stream = Stream(file, needed)
    place = _place(file, needed)
    while True:
        try:
            if place.is_file():
                return _select(map_arrow(str(place)), needed), str(place)
            kept, rest = _take(stream, room)
            if rest is None:
                if not kept:
                    return pa.table({name: pa.nulls(0) for name in needed or ()}), None
                return pa.Table.from_batches(kept).combine_chunks(), None
            with _shown(f"{stream.name} is large: copied once to the cache folder"):
                _write(chain(_drain(kept), rest), place)
        except StartAgain:
            continue


def _shown(what: str) -> AbstractContextManager[Any]:
    """What goes on, in a terminal."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console  # late: large tables are rare
    from rich.markup import escape

    return Console(stderr=True).status(escape(what))


def map_arrow(file: str) -> pa.Table:
    """An uncompressed Arrow file as a table that takes no memory."""
    with ExitStack() as stack:
        return open_arrow(stack, pa.memory_map(file)).read_all()


def _try_to_map(file: str, needed: Needed | None) -> pa.Table | None:
    """An Arrow file as a map; None if it is compressed, so that only a copy can be mapped."""
    try:
        source = pa.memory_map(file)
        whole = source.read_buffer()
        source.seek(0)
        with ExitStack() as stack:
            reader = open_arrow(stack, source)
            names = reader.schema.names
            asked = dict.fromkeys(names, "") if needed is None else needed
            check_columns(os.path.basename(file), names, asked)
            if not _is_mapped(reader, whole):
                return None
            source.seek(0)
            table = open_arrow(stack, source).read_all()
        table.validate()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{file} cannot be read: {str(error).rstrip('.')}. Repair or replace the file."
        ) from error
    return _select(table, needed)


def _select(table: pa.Table, needed: Needed | None) -> pa.Table:
    return table if needed is None else table.select(list(needed))


def _is_mapped(reader: Any, whole: pa.Buffer) -> bool:
    """Whether the cells of the first batch lie within the file itself."""
    if isinstance(reader, pa.RecordBatchFileReader):
        first = reader.get_batch(0) if reader.num_record_batches else None
    else:
        first = next(iter(reader), None)
    if first is None:
        return True
    end = whole.address + whole.size
    return all(
        whole.address <= buffer.address < end
        for column in first.columns
        for buffer in column.buffers()
        if buffer is not None and buffer.size
    )


def _take(
    stream: Iterable[pa.RecordBatch], room: int
) -> tuple[list[pa.RecordBatch], Iterator[pa.RecordBatch] | None]:
    """Batches up to ``room`` bytes, and an iterator of the others; None if there are none."""
    kept: list[pa.RecordBatch] = []
    batches = map(_without_dictionaries, stream)
    for batch in batches:
        kept.append(batch)
        room -= batch.nbytes
        if room < 0:
            return kept, batches
    return kept, None


def _drain(kept: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Each once, given up as it is used."""
    kept.reverse()
    while kept:
        yield kept.pop()


def _without_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """An Arrow file holds one dictionary for all its batches, which they do not have."""
    schema = pa.schema(
        [field.with_type(_plain(field.type)) for field in batch.schema], batch.schema.metadata
    )
    if schema == batch.schema:
        return batch
    return pa.RecordBatch.from_arrays(
        [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)],
        schema=schema,
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    return kind


def _write(batches: Iterator[pa.RecordBatch], place: Path) -> None:
    """Write a file whole or not at all, once if several processes want it."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):
            if place.is_file():
                return
            unfinished = place.with_suffix(".unfinished")
            try:
                first = next(batches)
                with pa.ipc.new_file(unfinished, first.schema) as writer:
                    for batch in chain([first], batches):
                        writer.write_batch(batch)
                os.replace(unfinished, place)
            finally:
                unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"The cache folder cannot be written to: {error}. Make room in it, or set "
            f"FUSIONKIT_CACHE to another folder."
        ) from error


def _place(file: str, needed: Needed | None) -> Path:
    """Where the copy of these columns of this version of a file is."""
    if is_url(file):
        version = url_version(file)
    else:
        file = os.path.abspath(file)
        status = os.stat(file)
        version = f"{status.st_size} {status.st_mtime_ns}"
    columns = None if needed is None else sorted(needed)
    key = hashlib.sha256(repr((_FORMAT, file, version, columns)).encode()).hexdigest()
    return cache_folder() / "tables" / f"{key[:32]}.arrow"
