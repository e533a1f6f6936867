"""Shards for tests, written by the standard library."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = ("bags", "shirts", "shoes")


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def files_of(number: int) -> dict[str, bytes]:
    """A sample with a picture, a text, a label, and a .json."""
    kind = KINDS[number % 3]
    content = {"title": f"number {number}", "kind": kind, "deep": {"age": number, "on": True}}
    return {
        "png": png(number),
        "txt": f"number {number}".encode(),
        "cls": str(number % 3).encode(),
        "json": json.dumps(content).encode(),
    }


def write_shard(
    path: Path | io.BytesIO, samples: Iterable[tuple[str, Mapping[str, bytes]]]
) -> None:
    plain = isinstance(path, io.BytesIO) or path.suffix == ".tar"
    target = {"fileobj": path} if isinstance(path, io.BytesIO) else {"name": path}
    with tarfile.open(mode="w" if plain else "w:gz", **target) as shard:  # type: ignore[call-overload]
        for key, files in samples:
            for ext, content in files.items():
                info = tarfile.TarInfo(f"{key}.{ext}")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))


def write_shards(folder: Path, sizes: Iterable[int], split: str = "train") -> list[str]:
    """Shards of that many samples, numbered through."""
    number, names = 0, []
    for shard, size in enumerate(sizes):
        path = folder / f"{split}-{shard:03d}.tar"
        write_shard(path, ((f"{n:04d}", files_of(n)) for n in range(number, number + size)))
        number += size
        names.append(str(path))
    return names


def write_table(folder: Path, count: int) -> None:
    """The same samples as a table with pictures beside it."""
    rows = ["image,text,label"]
    for n in range(count):
        (folder / f"{n:04d}.png").write_bytes(png(n))
        rows.append(f"{n:04d}.png,number {n},{KINDS[n % 3]}")
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
