"""Reading what copies of published data sets really hold."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from fusionkit.data.prepare import Findings, Row, Track
from fusionkit.errors import DataError

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")


def decode(raw: bytes) -> tuple[str, bool]:
    """Text of bytes that may have a byte order mark and may be in an older encoding.

    Returns:
        The text, and whether it is UTF-8. Other bytes are read as Windows-1252, which is what
        pages of the web that say nothing are read as, and where that fails as Latin-1.
    """
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return raw.decode(encoding), encoding == "utf-8-sig"
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1"), False  # which has a character for every byte


def read_text(path: Path, findings: Findings) -> str:
    """Decode a file, and take note if it is not UTF-8."""
    text, regular = decode(path.read_bytes())
    if not regular:
        findings.add("not UTF-8", "read as Windows-1252", path.name)
    return text


def read_json(path: Path, findings: Findings) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: It is not JSON.
    """
    try:
        return json.loads(read_text(path, findings))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}. Fetch it again.") from error


def check_images(root: Path, paths: Iterable[str], track: Track) -> dict[str, str]:
    """Decode every image.

    Args:
        root: What the paths are relative to.
        paths: Each is read once, however often it is named.
        track: Shows progress.

    Returns:
        ``"missing"`` or ``"unreadable"`` by path, for those that are.
    """
    found = in_threads(
        lambda path: image_problem(root / path), list(dict.fromkeys(paths)), track, "images"
    )
    return {path: problem for path, problem in found.items() if problem}


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], track: Track, what: str
) -> dict[Item, Result]:
    """What a function that reads files gives for each item.

    Args:
        function: Spends its time where other threads can run: reading and decoding.
        items: Each once.
        track: Shows progress.
        what: What the items are.
    """
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        results = track(pool.map(function, items), len(items), what)
        return dict(zip(items, results, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C the rest is not waited for


def image_problem(path: Path) -> str | None:
    """``"missing"`` or ``"unreadable"``, or None for an image."""
    try:
        with Image.open(path) as image:
            # A JPEG at an eighth of its size: all of the file is read in a fraction of the time.
            image.draft(None, (64, 64))
            image.load()
    except FileNotFoundError:
        return "missing"
    # PIL raises these for truncated, broken and far too large files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "unreadable"
    return None


def unique(splits: Mapping[str, Iterable[Row]], findings: Findings) -> dict[str, list[Row]]:
    """Rows whose ``id`` is unique in all splits, in their order.

    Args:
        splits: Rows by split. Where two splits share a row, the later split keeps it.
        findings: Takes note of what changes.
    """
    owner: dict[str, tuple[str, Row]] = {}
    result: dict[str, list[Row]] = {name: [] for name in splits}
    for split in reversed(list(splits)):
        for row in splits[split]:
            known = owner.get(row["id"])
            if known is not None and known[0] != split:
                findings.add(f"also in {known[0]}", f"dropped from {split}", row["id"])
                continue
            if known is not None and known[1] == row:
                findings.add("listed twice", "dropped", row["id"])
                continue
            if known is not None:
                row = {**row, "id": _fresh(row["id"], owner)}
                findings.add("id used twice", "kept under a new id", row["id"])
            owner[row["id"]] = (split, row)
            result[split].append(row)
    return result


def _fresh(name: str, known: Mapping[str, Any]) -> str:
    number = 2
    while f"{name}#{number}" in known:
        number += 1
    return f"{name}#{number}"


def complete(
    rows: Iterable[Row], problems: Mapping[str, str], keep_incomplete: bool, findings: Findings
) -> list[Row]:
    """Rows with an image that can be read.

    Args:
        rows: With ``image``, a path.
        problems: By path, see :func:`check_images`.
        keep_incomplete: Whether to keep the others, without their image.
        findings: Takes note of them, and of empty texts, which are kept.
    """
    kept = []
    for row in rows:
        problem = problems.get(row["image"])
        if problem:
            outcome = "kept without image" if keep_incomplete else "dropped"
            findings.add(f"image {problem}", outcome, row["image"])
            if not keep_incomplete:
                continue
            row = {**row, "image": None}
        if not row["text"]:
            findings.add("text empty", "kept", row["id"])
        kept.append(row)
    return kept
