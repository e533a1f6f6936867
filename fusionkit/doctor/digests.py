"""Hashes of what values hold, so that equal ones are found without keeping them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

_SIZE = 16  # bytes
_WHOLE = 1 << 26  # bytes; of larger files, videos mostly, the ends and the size are hashed
_END = 1 << 20


def digest_file(path: Path) -> bytes:
    """Hash of a file's bytes, or of a folder's files.

    Raises:
        OSError: It cannot be read.
    """
    found = hashlib.blake2b(digest_size=_SIZE)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as stream:
            if size <= _WHOLE:
                found.update(stream.read())
                continue
            found.update(stream.read(_END) + size.to_bytes(8, "little"))
            stream.seek(-_END, 2)
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
