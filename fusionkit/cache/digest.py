"""What a raw value is, in 16 bytes: the same for the same content, in any process on any day."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sqlite3
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fusionkit.encoders.files import is_file, is_url, url_version

SIZE = 16  # bytes of a digest

_IN_FILES = ("image", "audio", "video", "vector")  # modalities whose text values are paths
# Packages that encoders build on, whose versions belong to the key.
_BY_VERSION = {"abc", "builtins", "open_clip", "timm", "torch", "torchaudio", "torchvision",
               "transformers", "typing"}  # fmt: skip
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
        memory.parent.mkdir(parents=True, exist_ok=True)
        self._memory = sqlite3.connect(memory, timeout=60)
        with self._memory:
            self._memory.execute(
                "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, state TEXT, digest BLOB)"
            )
        self._new: dict[str, tuple[str, bytes]] = {}

    def __call__(self, path: str) -> bytes:
        """The digest of a file, or of all files in a folder; of a URL, what is said of it there.

        Raises:
            OSError: There is none, or it cannot be read.
            DataError: The same of a URL.
        """
        if is_url(path):
            return digest(b"remote", path.encode(), url_version(path).encode())
        path = os.path.abspath(path)
        if os.path.isdir(path):
            inside = sorted(os.scandir(path), key=lambda entry: entry.name)
            return digest(*(part for e in inside for part in (e.name.encode(), self(e.path))))
        before = os.stat(path)
        state = f"{before.st_size} {before.st_mtime_ns} {before.st_ctime_ns} {before.st_ino}"
        known = self._new.get(path) or self._remembered(path)
        if known is not None and known[0] == state:
            return known[1]
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=SIZE)).digest()
        if time.time() - max(before.st_mtime, before.st_ctime) > _SETTLED:
            self._new[path] = state, content
        return content

    def keep(self) -> None:
        """Write down what was read since."""
        with self._memory:
            self._memory.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?)",
                [(path, *known) for path, known in self._new.items()],
            )
        self._new = {}

    def close(self) -> None:
        """Write down what was read, and forget it here."""
        self.keep()
        self._memory.close()

    def _remembered(self, path: str) -> tuple[str, bytes] | None:
        found = self._memory.execute("SELECT state, digest FROM files WHERE path = ?", (path,))
        row: tuple[str, bytes] | None = found.fetchone()
        return row


def digest_value(value: Any, modality: str, files: FileDigests) -> bytes:
    """The digest of a sample's raw value.

    Args:
        value: Not None.
        modality: Of its field; texts in fields of images, sound, video and vectors are paths.
        files: Reads those.

    Raises:
        OSError: A file cannot be read.
        DataError: A file at a URL cannot be read.
    """
    if isinstance(value, Mapping) and is_file(value):  # {"bytes": ..., "path": ...}
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if isinstance(value, Path) or (isinstance(value, str) and modality in _IN_FILES):
        return files(str(value))
    if isinstance(value, list | tuple) and any(isinstance(part, str | Path) for part in value):
        return digest(b"list", *(digest_value(part, modality, files) for part in value))
    return digest_object(value)


def digest_sources(classes: Iterable[type[Any]]) -> bytes:
    """The digest of the source files of classes and of their bases.

    Of fusionkit, all files in the same room count; of others, all of their package. So a change to
    what a class calls shows as well. Libraries whose versions are looked at do not count.
    """
    found: set[Path] = set()
    for base in {base for cls in classes for base in cls.__mro__}:
        top = base.__module__.partition(".")[0]
        file = getattr(sys.modules.get(base.__module__), "__file__", None)
        if file is None or top in _BY_VERSION:
            continue
        if top == "fusionkit":
            found.update(Path(file).parent.glob("*.py"))
            continue
        package = getattr(sys.modules[top], "__file__", None) or file
        whole = Path(package).name == "__init__.py"
        found.update(Path(package).parent.rglob("*.py") if whole else [Path(file)])
    return digest(*(file.read_bytes() for file in sorted(found)))
