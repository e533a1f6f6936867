"""What a raw value is, in 16 bytes: the same for the same content, in any process on any day."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sqlite3
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor

SIZE = 16  # bytes of a digest

_IN_FILES = ("image", "audio", "video", "vector")  # modalities whose text values are paths
_SETTLED = 2.0  # seconds after which a change to a file must show in its times


def digest(*parts: bytes) -> bytes:
    """The digest of some bytes, their division into parts included."""
    found = hashlib.blake2b(digest_size=SIZE)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()


def digest_object(value: Any) -> bytes:
    """The digest of anything that can be pickled: text, bytes, an image, an array, a mapping, ...

    Raises:
        pickle.PicklingError: It cannot be pickled.
    """
    if isinstance(value, str):
        return digest(b"text", value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes):
        return digest(b"bytes", value)
    return digest(b"object", pickled(value))


def pickled(value: Any) -> bytes:
    """A pickle that is the same for equal values, tensors among them."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        # torch pickles a tensor with addresses and uninitialised bytes.
        array = value.detach().cpu().contiguous().view(-1)
        content = array.numpy().tobytes() if array.numel() else b""
        return tuple, ((str(value.dtype), tuple(value.shape), content),)


class FileDigests:
    """Digests of files by content, each read once for as long as it does not change.

    They are remembered by path, size and times in an SQLite file, which several processes may
    use.

    Args:
        memory: That file; made with its folder if it does not exist.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, tuple[str, bytes]] = {}
        self._new: dict[str, tuple[str, bytes]] = {}
        memory.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._open()) as connection, connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, state TEXT, digest BLOB)"
            )
            rows = connection.execute("SELECT path, state, digest FROM files")
            self._known = {path: (state, found) for path, state, found in rows}

    def __call__(self, path: str) -> bytes:
        """The digest of a file, or of all files in a folder.

        Raises:
            OSError: There is none, or it cannot be read.
        """
        if "://" in path:
            return _digest_remote(path)
        path = os.path.abspath(path)
        if os.path.isdir(path):
            inside = sorted(os.scandir(path), key=lambda entry: entry.name)
            return digest(*(part for e in inside for part in (e.name.encode(), self(e.path))))
        before = os.stat(path)
        state = f"{before.st_size} {before.st_mtime_ns} {before.st_ctime_ns} {before.st_ino}"
        known = self._new.get(path) or self._known.get(path)
        if known is not None and known[0] == state:
            return known[1]
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=SIZE)).digest()
        if time.time() - max(before.st_mtime, before.st_ctime) > _SETTLED:
            self._new[path] = state, content
        return content

    def keep(self) -> None:
        """Write down what was read since."""
        if self._new:
            with closing(self._open()) as connection, connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?)",
                    [(path, *known) for path, known in self._new.items()],
                )
            self._known |= self._new
            self._new = {}

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._memory, timeout=60)


def _digest_remote(url: str) -> bytes:
    """By what its store says of a file: size, time, checksum where it has one."""
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url)
    return digest(b"remote", url.encode(), str(system.ukey(path)).encode())


def digest_value(value: Any, modality: str, files: FileDigests) -> bytes:
    """The digest of a sample's raw value.

    Args:
        value: Not None.
        modality: Of its field; texts in fields of images, sound, video and vectors are paths.
        files: Reads those.

    Raises:
        OSError: A file cannot be read.
    """
    if isinstance(value, Path) or (isinstance(value, str) and modality in _IN_FILES):
        return files(str(value))
    return digest_object(value)


def digest_sources(classes: Iterable[type[Any]]) -> bytes:
    """The digest of the source files beside those that define the classes and their bases.

    So that a change to a class, or to what its package does for it, shows.
    """
    found: set[Path] = set()
    for cls in classes:
        for base in cls.__mro__:
            module = sys.modules.get(base.__module__)
            file = getattr(module, "__file__", None)
            if file is not None and base.__module__.partition(".")[0] not in ("torch", "builtins"):
                found.update(_beside(Path(file)))
    return digest(*(file.read_bytes() for file in sorted(found)))


def _beside(file: Path) -> list[Path]:
    """The modules of a module's package; a module without one is alone."""
    return list(file.parent.glob("*.py")) if (file.parent / "__init__.py").exists() else [file]
