"""Shards: tar files of samples, wherever they are, read from front to back."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

from fusionkit.encoders.files import base_name, is_url, url_errors
from fusionkit.errors import DataError
from fusionkit.registry import require

Files = dict[str, bytes]  # what a sample holds, by extension

_BLOCK = 512  # bytes of a block of a tar, the last of which is empty


def find_shards(stated: str | Sequence[str]) -> tuple[str, ...]:
    """The shards that paths or URLs stand for.

    Args:
        stated: One or several: ``data/train-000000.tar``, with a range,
            ``train-{000000..000099}.tar``, with ``*``, or a URL of a protocol that fsspec knows.

    Raises:
        DataError: There is no such file; of a range at a URL, the first is looked for.
        MissingExtraError: webdataset is not installed, or what the URL's protocol needs.
    """
    require("webdataset", "webdataset")
    from braceexpand import braceexpand  # what webdataset brings

    found: list[str] = []
    for pattern in [stated] if isinstance(stated, str) else stated:
        try:
            names = [os.path.expanduser(name) for name in braceexpand(pattern)]
        except ValueError as error:
            raise DataError(f"{pattern!r} has a brace that is not closed. {_REMEDY}") from error
        for number, name in enumerate(names):
            if "*" in name:
                found += _glob(name)
            else:
                if number == 0 or not is_url(name):
                    _check_there(name, pattern)
                found.append(name)
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise DataError(f"{twice} is named twice. {_REMEDY}")
    return tuple(found)


_REMEDY = "Correct `shards` in the config."


def _glob(pattern: str) -> list[str]:
    files, names = _look(pattern)
    names = sorted(names)
    if not names:
        raise DataError(f"No shard is called {pattern}. {_REMEDY}")
    head, chain, archive = pattern.partition("::")
    if chain:
        protocol = head.partition("://")[0]
        return [f"{protocol}://{name}{chain}{archive}" for name in names]
    return [files.unstrip_protocol(name) if is_url(pattern) else name for name in names]


def _check_there(name: str, pattern: str) -> None:
    if not _look(name)[1]:
        more = f", of {pattern}" if pattern != name else ""
        raise DataError(f"The shard {name}{more} does not exist. {_REMEDY}")


def _look(name: str) -> tuple[Any, list[str]]:
    """The file system of a path or URL, and what of that name is there."""
    from fsspec.core import url_to_fs  # late: few data sets need it

    with url_errors(name):
        files, path = url_to_fs(name)
        return files, files.glob(path) if "*" in path else [path] * bool(files.exists(path))


def read_shard(shard: str) -> Iterator[tuple[str, Files]]:
    """Key and files of each sample in a shard, one after the other.

    Args:
        shard: Its path or URL.

    Raises:
        DataError: It cannot be opened, is no tar, is cut off, or names a file twice.
    """
    import fsspec
    from webdataset.tariterators import group_by_keys, tar_file_iterator  # imports torch, as we do

    name = base_name(shard)
    packed = name.endswith((".gz", ".tgz"))  # tarfile does not notice where its end is cut off
    try:
        with fsspec.open(shard, "rb", compression="gzip" if packed else None) as file:
            tail = _Tail(file)
            members = ({**member, "__url__": name} for member in tar_file_iterator(tail))
            for group in group_by_keys(members):
                yield group["__key__"], {k: v for k, v in group.items() if k[:2] != "__"}
            tail.check()
    except DataError:
        raise
    except tarfile.ReadError as error:
        raise DataError(
            f"{shard} is cut off or no tar: {_why(error)}. Write or copy it again."
        ) from error
    except Exception as error:  # each protocol has errors of its own
        raise DataError(f"{shard} cannot be read: {_why(error)}. Replace it.") from error


class _Tail:
    """A file that remembers its end: tarfile takes one that is cut between two files for whole."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._last = b""
        self._packed: bool | None = None

    def read(self, size: int = -1) -> bytes:
        content: bytes = self._file.read(size)
        if self._packed is None:
            self._packed = content[257:262] != b"ustar"  # in another way: its end looks different
        self._last = (self._last + content)[-_BLOCK:]
        return content

    def check(self) -> None:
        """Raise ReadError unless what was read ends in an empty block, as a tar does."""
        if not self._packed and self._last.strip(b"\0"):
            raise tarfile.ReadError("it ends without the mark of its end")

    def __str__(self) -> str:
        return "its end"


def _why(error: Exception) -> str:
    text = str(error.args[0]) if error.args else ""
    return text.removesuffix(" @ its end").rstrip(".") or type(error).__name__
