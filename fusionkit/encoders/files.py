"""What stands for a file: a local path, a URL that fsspec knows, or its bytes."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from fusionkit.errors import DataError, FusionkitError, MissingExtraError

# Two letters or more, so that C://x is a path; archives are chained: zip://a.png::s3://b/c.zip.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

_KINDS = (str, Path, bytes, bytearray, memoryview)


def is_url(text: str) -> bool:
    """Whether fsspec is to open it: ``s3://...``, ``https://...``, ``zip://a.png::b.zip``, ..."""
    return _URL.match(text) is not None


def is_file(raw: Any) -> bool:
    """Whether a raw value stands for a file: a path, a URL, bytes, or ``{"bytes", "path"}``.

    The last is how Hugging Face's features Image, Audio and Video store a file: its bytes, or
    else its path.
    """
    if isinstance(raw, Mapping):
        return raw.keys() == {"bytes", "path"} and not (raw["bytes"] is raw["path"] is None)
    return isinstance(raw, _KINDS)


def file_name(raw: Any) -> str:
    """How a message calls it: its path or URL, or how many bytes it is."""
    if isinstance(raw, Mapping):
        path, content = raw["path"], raw["bytes"]
        if path is None or content is None:
            return file_name(path if content is None else content)
        return f"{path} ({len(content):,} bytes)"
    return str(raw) if isinstance(raw, (str, Path)) else f"of {len(raw):,} bytes"


def local_path(raw: Any) -> str | None:
    """The path of a file on this machine; None for a URL or bytes."""
    if isinstance(raw, Mapping):
        return None if raw["bytes"] is not None else local_path(raw["path"])
    if isinstance(raw, (str, Path)) and not is_url(str(raw)):
        return str(raw)
    return None


def open_file(raw: Any) -> BinaryIO:
    """Open what :func:`is_file` says stands for a file, to read and to seek in.

    A file at a URL is fetched whole: decoders seek to and fro.

    Raises:
        OSError: A local file is missing or cannot be opened.
        DataError: What is at the URL cannot be read.
        MissingExtraError: The URL's protocol needs a library that is not installed.
    """
    if isinstance(raw, Mapping):
        raw = raw["path"] if raw["bytes"] is None else raw["bytes"]
    if not isinstance(raw, (str, Path)):
        return io.BytesIO(raw)
    if not is_url(str(raw)):
        return open(raw, "rb")
    with open_url(str(raw)) as file:
        return io.BytesIO(file.read())


@contextmanager
def open_url(url: str) -> Iterator[IO[bytes]]:
    """A file at a URL, read as it comes; with the errors of :func:`open_file`."""
    import fsspec  # late: most tables hold local paths

    with url_errors(url), fsspec.open(url, "rb") as file:
        yield file


@contextmanager
def url_errors(url: str) -> Iterator[None]:
    """What storage libraries raise, as an error that names the URL."""
    try:
        yield
    except FusionkitError:
        raise
    except ImportError as error:
        raise MissingExtraError(
            f"{url}: {url.partition('://')[0]}:// needs a library that is not installed: "
            f"{error}. Install it with pip, or give a path on this machine."
        ) from error
    except Exception as error:  # each storage has errors of its own
        why = "it does not exist" if isinstance(error, FileNotFoundError) else _describe(error)
        raise DataError(
            f"{url} cannot be read: {why}. Check the address and your access to it."
        ) from error


def url_version(url: str) -> str:
    """What the store of a URL says of the file there: size, times, checksum where it has one.

    Raises:
        DataError: It says nothing, as of a file that does not exist.
    """
    from fsspec.core import url_to_fs  # late: most tables are local

    with url_errors(url):
        system, path = url_to_fs(url)
        return repr(sorted(map(str, system.info(path).items())))


def join(folder: str, path: str) -> str:
    """A path that is relative to a folder, either of which may be a URL; others as they are."""
    if is_url(path) or os.path.isabs(path):
        return path
    if not is_url(folder):
        return os.path.join(folder, path)
    inner, chain, archive = folder.partition("::")
    return f"{inner if inner.endswith('/') else f'{inner}/'}{path}{chain}{archive}"


def parent(file: str) -> str:
    """The folder of a file, either of which may be a URL."""
    if not is_url(file):
        return os.path.dirname(file)
    inner, chain, archive = file.partition("::")
    protocol, _, path = _without_query(inner).partition("://")
    return f"{protocol}://{path.rpartition('/')[0]}{chain}{archive}"


def base_name(file: str) -> str:
    """The last part of a path or URL: ``"products.csv"``."""
    inner = file.partition("::")[0]
    path = _without_query(inner) if is_url(inner) else inner
    return re.split(r"[/\\]", path.rstrip("/"))[-1]


def _without_query(url: str) -> str:
    """``https://host/t.csv`` of ``https://host/t.csv?raw=true``."""
    return re.split(r"[?#]", url)[0] if url.startswith(("http://", "https://")) else url


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).rstrip('.')}"
