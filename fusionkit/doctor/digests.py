"""Hashes of what values hold, so that equal ones are found without keeping them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fusionkit.encoders.files import local_path, open_file

_SIZE = 16  # bytes
_WHOLE = 1 << 26  # bytes; of larger files, videos mostly, the ends and the size are hashed
_END = 1 << 20


def digest_file(raw: Any) -> bytes:
    """Hash of the bytes of what stands for a file; of a folder's files.

    Raises:
        OSError: It cannot be read.
        DataError: What is at a URL cannot be read.
    """
    found = hashlib.blake2b(digest_size=_SIZE)
    path = local_path(raw)
    folder = path is not None and Path(path).is_dir()
    for file in sorted(Path(path).iterdir()) if path is not None and folder else [raw]:
        with open_file(file) as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            if size <= _WHOLE:
                found.update(stream.read())
                continue
            found.update(stream.read(_END) + size.to_bytes(8, "little"))
            stream.seek(-_END, io.SEEK_END)
            found.update(stream.read())
    return found.digest()


def digest_text(text: str) -> bytes:
    """Hash of a text; case and white space do not count."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=_SIZE).digest()


def digest_value(raw: Any) -> bytes:
    """Hash of a value that is no path: an image, an array, a mapping, a list, ..."""
    found = hashlib.blake2b(digest_size=_SIZE)
    _update(found, raw)
    return found.digest()


def _update(found: Any, raw: Any) -> None:
    if isinstance(raw, Tensor):
        raw = raw.detach().cpu().numpy()
    if isinstance(raw, Image.Image):
        found.update(f"image {raw.mode} {raw.size}".encode() + raw.tobytes())
    elif isinstance(raw, np.ndarray):
        found.update(f"array {raw.dtype} {raw.shape}".encode())
        found.update(np.ascontiguousarray(raw).tobytes())
    elif isinstance(raw, Mapping):
        for key in sorted(raw, key=str):
            found.update(f"key {key!r}".encode())
            _update(found, raw[key])
    elif isinstance(raw, list | tuple):
        found.update(f"list {len(raw)}".encode())
        for item in raw:
            _update(found, item)
    else:
        found.update(f"{type(raw).__name__} {raw!r}".encode())
