"""Where files go that can be made again."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """``$FUSIONKIT_CACHE``, else ``fusionkit`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    It may not exist yet. What is in it may be deleted whenever no run uses it.
    """
    own = os.environ.get("FUSIONKIT_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "fusionkit"


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that no reader ever finds half of it."""
    replace_whole(path, lambda place: place.write_text(text, encoding="utf-8"))


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill another place, and put that in the place of ``path`` when it has.

    Several processes may do so at once, also on several machines; the last one holds.
    """
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.unfinished")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
