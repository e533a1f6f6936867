"""Features of samples in memory-mapped files: computed once, read by any number of processes.

A store is a folder of Arrow files. Each is written whole, renamed into place and never changed,
so a reader sees all of a row or none, and whoever adds rows disturbs nobody.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fusionkit.cache.digest import SIZE
from fusionkit.encoders.base import ENTERING, KEEP, POOLED, TOKENS
from fusionkit.errors import DataError

Dtype = Literal["float32", "float16"]
Digests = NDArray[np.bytes_]  # (N,) of type DIGEST
Places = NDArray[np.int64]  # rows of a store, -1 where there is none
StoredRow = Mapping[str, NDArray[Any]]

_SUFFIX = ".arrow"
_UNFINISHED = ".unfinished"
DIGEST = np.dtype(f"S{SIZE}")


class FeatureStore:
    """The rows of a folder, as they were when it was opened.

    A row holds arrays by name: ``pooled`` (C,), ``tokens`` (T, C) or ``entering``, (L, D) or
    (H, W, D). Nothing is read before it is asked for.

    Args:
        folder: It need not exist.
        names: Its files to open, in this order; None for all that are there.

    Raises:
        DataError: A file is damaged.
    """

    def __init__(self, folder: Path, names: Sequence[str] | None = None) -> None:
        self.folder = folder
        if names is None:
            names = sorted(path.name for path in folder.glob(f"*{_SUFFIX}"))
        self._names = tuple(names)
        self._files = [_StoredFile(folder / name) for name in self._names]
        sizes = [len(file.digests) for file in self._files]
        self._starts = np.cumsum([0, *sizes])
        found = [file.digests for file in self._files]
        digests = np.concatenate(found) if found else np.empty(0, dtype=DIGEST)
        self._order = np.argsort(digests, kind="stable")
        self._sorted = digests[self._order]

    def __reduce__(self) -> tuple[Any, ...]:  # to workers: which files, not what is in them
        return FeatureStore, (self.folder, self._names)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum((self.folder / name).stat().st_size for name in self._names)

    def find(self, digests: Digests) -> Places:
        """(N,), the row of each digest, -1 where there is none."""
        if not len(self) or not len(digests):
            return np.full(len(digests), -1)
        near = np.minimum(np.searchsorted(self._sorted, digests), len(self) - 1)
        return np.where(self._sorted[near] == digests, self._order[near], -1)

    def __getitem__(self, place: int) -> dict[str, NDArray[Any]]:
        """One row; its arrays are read-only views of the file."""
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._files[number].row(place - int(self._starts[number]))


class _StoredFile:
    def __init__(self, path: Path) -> None:
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path} is damaged: {error}. Delete it; what it held is computed again."
            ) from error
        self.digests = np.frombuffer(batch.column(0).buffers()[1], dtype=DIGEST)[: len(batch)]
        self._columns = {
            field.name: (
                json.loads(field.metadata[b"shape"]),
                batch.column(number).offsets.to_numpy(),
                batch.column(number).values.to_numpy(),
            )
            for number, field in enumerate(batch.schema)
            if number > 0
        }

    def row(self, place: int) -> dict[str, NDArray[Any]]:
        return {
            name: values[offsets[place] : offsets[place + 1]].reshape(shape)
            for name, (shape, offsets, values) in self._columns.items()
        }


class StoreWriter:
    """Adds rows to a store, a file at a time.

    Args:
        folder: Of the store; made if it does not exist.
        dtype: What values are kept as.
        most_bytes: A file is written when so much has come together.
        most_seconds: Or when so much time has passed: no more than that is lost with a crash.
    """

    def __init__(
        self,
        folder: Path,
        dtype: Dtype = "float32",
        most_bytes: int = 1 << 26,
        most_seconds: float = 60.0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._dtype = np.dtype(dtype)
        self._most_bytes, self._most_seconds = most_bytes, most_seconds
        self._rows: list[tuple[bytes, StoredRow]] = []
        self._bytes, self._since = 0, time.monotonic()
        self.written = 0

    @property
    def waiting(self) -> int:
        """Rows that are not written yet."""
        return len(self._rows)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()  # what is there is right, whatever ends this

    def add(self, digest: bytes, row: StoredRow) -> None:
        """Add a row; arrays of the same name differ in their first dimension at most.

        Raises:
            DataError: A value does not fit ``dtype``.
        """
        with np.errstate(over="ignore"):
            kept = {name: np.asarray(array).astype(self._dtype) for name, array in row.items()}
        if self._dtype == np.float16 and not all(np.isfinite(a).all() for a in kept.values()):
            raise DataError(
                "A feature is too large for 16 bits (above 65,504). Set cache.dtype: float32."
            )
        self._rows.append((digest.ljust(SIZE, b"\0"), kept))  # numpy takes zeros off the end
        self._bytes += sum(array.nbytes for array in kept.values())
        if self._bytes >= self._most_bytes or time.monotonic() - self._since >= self._most_seconds:
            self.flush()

    def flush(self) -> None:
        """Write down what has come together; it is on the disk when this returns."""
        if self._rows:
            name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
            unfinished = self._folder / f"{name}{_UNFINISHED}"
            with unfinished.open("wb") as file:
                batch = _to_arrow(self._rows)
                with pa.ipc.new_file(file, batch.schema) as writer:
                    writer.write_batch(batch)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, self._folder / name)
            self.written += len(self._rows)
        self._rows, self._bytes, self._since = [], 0, time.monotonic()


def remove_unfinished(folder: Path) -> None:
    """Remove what a process left that died while it was writing; nobody may be writing now."""
    for path in folder.glob(f"*{_UNFINISHED}"):
        path.unlink()


def _to_arrow(rows: Sequence[tuple[bytes, StoredRow]]) -> pa.RecordBatch:
    digests = pa.array([digest for digest, _ in rows], pa.binary(SIZE))
    arrays, fields = [digests], [pa.field("digest", digests.type)]
    for name, first in rows[0][1].items():
        column = [row[name] for _, row in rows]
        shape = [-1, *first.shape[1:]] if first.ndim > 1 else [-1]
        offsets = np.cumsum([0, *(array.size for array in column)])
        values = np.concatenate([array.reshape(-1) for array in column])
        arrays.append(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)))
        fields.append(pa.field(name, arrays[-1].type, metadata={"shape": json.dumps(shape)}))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


@dataclass(frozen=True, slots=True)
class StoredRows:
    """What a role has in a store, for the samples of one split.

    Attributes:
        store: The rows.
        places: (N,), the row of each sample, -1 where it has none.
        layer: The layer that stored tokens enter; None where features are stored.
        padded: Whether samples differ in their number of tokens.
    """

    store: FeatureStore
    places: Places
    layer: int | None = None
    padded: bool = False

    def __getitem__(self, index: int) -> StoredRow | None:
        """What sample ``index`` has; None if nothing."""
        place = int(self.places[index])
        return None if place < 0 else self.store[place]

    def collate(self, rows: Sequence[StoredRow]) -> dict[str, Tensor]:
        """Rows to the inputs that stand for raw ones, see :data:`~fusionkit.encoders.base.POOLED`.

        Token sequences of different lengths are padded with zeros on the right.
        """
        inputs: dict[str, Tensor] = {}
        for name in rows[0]:
            tensors = [torch.from_numpy(row[name].astype(np.float32)) for row in rows]
            key = {"pooled": POOLED, "tokens": TOKENS}.get(name, f"{ENTERING}{self.layer}")
            if name == "pooled" or not self.padded:
                inputs[key] = torch.stack(tensors)
                continue
            inputs[key] = pad_sequence(tensors, batch_first=True)
            lengths = torch.tensor([len(tensor) for tensor in tensors])
            inputs[KEEP] = torch.arange(inputs[key].shape[1]) < lengths[:, None]
        return inputs
