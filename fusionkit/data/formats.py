"""Table files into record batches of bounded size."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fusionkit.data.cells import Kinds
from fusionkit.data.places import is_packed, suffix_of
from fusionkit.encoders.files import base_name, is_url, open_url
from fusionkit.errors import DataError, suggest

_CSV_BLOCK = 1 << 20  # bytes; Arrow reads a dozen ahead
_LONGEST = 1 << 24  # bytes; the longest row that a CSV file may have
_BLOCK = 1 << 23  # bytes of text or of cells that become a batch; JSON takes five times as much

Needed = Mapping[str, str]  # what asks for it, by column


class StartAgain(Exception):
    """What was read so far has to be read anew, in another way; iterate once more."""


class Stream:
    """The batches of one file, all of one schema; each iteration reads it from its beginning.

    Args:
        file: A path or URL.
        needed: What asks for it, by column: ``{"title": "field 'text'"}``; None for all columns.
    """

    def __init__(self, file: str, needed: Needed | None) -> None:
        self.file = file
        self.name = base_name(file)
        self._needed = needed
        suffix = suffix_of(file)
        readers: dict[str, Callable[[ExitStack], Iterator[pa.RecordBatch]]] = {
            ".csv": self._csv,
            ".tsv": self._csv,
            ".parquet": self._parquet,
            ".arrow": self._arrow,
            ".feather": self._arrow,
        }
        self._read = readers.get(suffix, self._json_lines)
        self._delimiter = "\t" if suffix == ".tsv" else ","
        self._kinds: dict[str, Kinds] = {}
        self._block = _CSV_BLOCK

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Batches of the needed columns.

        Raises:
            DataError: The file or a column is missing, or a row is malformed.
            StartAgain: JSON turned out to hold wider kinds of values, or CSV longer rows.
        """
        rows, schema = 0, None
        with ExitStack() as stack:
            try:
                for batch in self._read(stack):
                    if schema is not None and batch.schema != schema:
                        raise StartAgain
                    rows, schema = rows + len(batch), batch.schema
                    yield batch
            # Arrow's own OSError is that of a file which ends too early.
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError) as error:
                if "straddl" in str(error) and self._block < _LONGEST:
                    self._block = _LONGEST
                    raise StartAgain from error
                raise DataError(self._malformed(str(error), rows)) from error

    def check_columns(self, known: Sequence[str]) -> list[str]:
        """Those to read, of those that there are.

        Raises:
            DataError: One that is needed is missing or there twice.
        """
        check_columns(self.name, known, self._needed or {})
        if self._needed is None:
            check_columns(self.name, known, dict.fromkeys(known, ""))
            return list(known)
        return list(self._needed)

    def _open(self, stack: ExitStack) -> Any:
        """What Arrow reads from: a path, or a file that is fetched as it is read."""
        if is_url(self.file):
            file: IO[bytes] = stack.enter_context(open_url(self.file))
            return gzip.GzipFile(fileobj=file) if is_packed(self.file) else file
        return self.file  # Arrow unpacks what ends in .gz by itself

    def _csv(self, stack: ExitStack) -> Iterator[pa.RecordBatch]:
        # Cells stay text, exactly as written: none turns into a number, a date or a missing value.
        # One thread: only then does Arrow count rows across blocks, for its messages.
        options = {
            "parse_options": pa.csv.ParseOptions(
                delimiter=self._delimiter, newlines_in_values=True
            ),
            "read_options": pa.csv.ReadOptions(use_threads=False, block_size=self._block),
        }
        with pa.csv.open_csv(self._open(stack), **options) as head:
            names = head.schema.names
        wanted = self.check_columns(names)
        convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), include_columns=wanted
        )
        last = names[-1]
        if last not in wanted:  # it would hold what follows an unclosed quote
            convert.include_columns = [*wanted, last]
        batch, rows = None, 0
        with pa.csv.open_csv(self._open(stack), **options, convert_options=convert) as stream:
            for batch in stream:
                rows += len(batch)
                yield batch.select(wanted)
        if batch is not None and len(batch) and "\n" in batch.column(last)[-1].as_py():
            self._check_closed(rows)

    def _check_closed(self, rows: int) -> None:
        """Arrow takes all that follows an unclosed quote into the last cell, without a word."""
        end = b""
        with ExitStack() as stack:
            file = _readable(stack, self._open(stack), is_packed(self.file))
            if not is_packed(self.file):
                file.seek(max(0, file.seek(0, 2) - 4096))
            while block := file.read(_CSV_BLOCK):
                end = (end + block)[-4096:]
        if not end.rstrip(b"\r\n").endswith(b'"'):
            raise DataError(
                f"{self.name}, row {rows}: a quote is opened and never closed. Close it, or double "
                f'a quote that belongs to the text ("").'
            )

    def _parquet(self, stack: ExitStack) -> Iterator[pa.RecordBatch]:
        opened = pa.parquet.ParquetFile(self._open(stack), buffer_size=1 << 20)
        with opened as file:
            wanted = self.check_columns(file.schema_arrow.names)
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            width = sum(group.total_byte_size for group in groups) / max(file.metadata.num_rows, 1)
            size = max(1, min(1 << 16, int(_BLOCK / max(width, 1))))
            for batch in file.iter_batches(batch_size=size, columns=wanted):
                yield batch.select(wanted)

    def _arrow(self, stack: ExitStack) -> Iterator[pa.RecordBatch]:
        reader = open_arrow(stack, self._open(stack))
        wanted = self.check_columns(reader.schema.names)
        if isinstance(reader, pa.RecordBatchFileReader):
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number).select(wanted)
        else:
            for batch in reader:
                yield batch.select(wanted)

    def _json_lines(self, stack: ExitStack) -> Iterator[pa.RecordBatch]:
        # The standard library, not Arrow: on 500,000 lines of 1.5 kB twice as fast with one thread,
        # exact about the row, and it turns no text that looks like a date into one.
        file = _readable(stack, self._open(stack), is_packed(self.file))
        rows: list[dict[str, Any]] = []
        keys: dict[str, None] = {}  # a set that keeps its order
        number = size = 0
        for line in file:
            line = line if number else line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            number += 1
            try:
                row = json.loads(line)
            except ValueError as error:  # also of an encoding other than UTF-8
                raise DataError(self._not_json(number, str(error))) from error
            if not isinstance(row, dict):
                raise DataError(self._not_json(number, f"it is a {type(row).__name__}"))
            keys.update(dict.fromkeys(row))
            rows.append(row)
            size += len(line)
            if size > _BLOCK:
                yield self._batch(rows, keys)
                rows, size = [], 0
        if rows:
            yield self._batch(rows, keys)
        if number:
            self.check_columns(list(keys))

    def _batch(self, rows: list[dict[str, Any]], keys: Mapping[str, None]) -> pa.RecordBatch:
        names = [*dict.fromkeys([*self._kinds, *keys])] if self._needed is None else self._needed
        arrays = {}
        for name in names:
            kinds = self._kinds.setdefault(name, Kinds(f"{self.name}: column {name!r}"))
            arrays[name] = kinds.to_array([row.get(name) for row in rows])
        return pa.RecordBatch.from_pydict(arrays)

    def _not_json(self, row: int, why: str) -> str:
        return (
            f"{self.name}, row {row}: not a JSON object: {why}. "
            f"Write one object per line, all of it on that line."
        )

    def _malformed(self, error: str, rows: int) -> str:
        """Arrow's message with the data row, which starts below the header of a CSV file."""
        if "straddl" in error:
            return (
                f"{self.name}: after row {rows:,} comes a row of more than {_LONGEST >> 20} MB. Is "
                f"a quote opened and never closed? Close it, or save longer cells as Parquet."
            )
        found = re.search(r"Row #(\d+): ", error)
        if found is None:
            after = f" after row {rows:,}" if rows else ""
            return f"{self.file} cannot be read{after}: {error}. Repair or replace the file."
        remedy = (
            "Save the file as UTF-8."
            if "UTF8" in error
            else "Quote cells that contain the separator, or remove the row."
        )
        return f"{self.name}, row {int(found[1]) - 1}: {error[found.end() :]}. {remedy}"


def open_arrow(stack: ExitStack, source: Any) -> Any:
    """A reader of an Arrow IPC file or stream.

    Args:
        stack: What closes it.
        source: A path, a file or a memory map.

    Raises:
        pa.ArrowInvalid: It is neither.
    """
    file = source
    if isinstance(source, str):
        file = stack.enter_context(pa.OSFile(source))
    head = file.read(8)
    file.seek(0)
    if head[:4] == b"FEA1":
        raise pa.ArrowInvalid("it is Feather of version 1; save it again with a newer library")
    make = pa.ipc.open_file if head[:6] == b"ARROW1" else pa.ipc.open_stream
    return stack.enter_context(make(file))


def check_columns(name: str, known: Sequence[str], needed: Needed) -> None:
    """Raise DataError unless each needed column is there, once.

    Args:
        name: Of the table, for messages.
        known: Its columns.
        needed: What asks for it, by column.
    """
    for column, who in needed.items():
        if column not in known:
            raise DataError(
                f"{name} has no column {column!r}, which {who} asks for."
                f"{suggest(column, known)} Columns: {', '.join(known)}."
            )
        if known.count(column) > 1:
            raise DataError(
                f"{name} has {known.count(column)} columns {column!r}. Rename all but one."
            )


def _readable(stack: ExitStack, source: Any, packed: bool) -> Any:
    """What Python reads from, of what Arrow reads from."""
    if not isinstance(source, str):
        return source
    if packed:
        return stack.enter_context(gzip.open(source))
    return stack.enter_context(open(source, "rb"))
