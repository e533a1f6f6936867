"""Raw values to run the contract on, for encoders that bring none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusionkit.encoders.base import Modality

RATE = 16_000  # Hz


def samples(
    modality: Modality, width: int = 8, columns: Sequence[str] = ("first", "second")
) -> list[Any]:
    """Four raw values as a data set would give them, of different lengths where there are any.

    Args:
        modality: What the encoder reads.
        width: Length of a vector.
        columns: Those of a table; each holds numbers, which may be categories too, and a None.

    Raises:
        ValueError: ``other``, which can be anything.
    """
    random = np.random.default_rng(0)
    match modality:
        case "text":
            return ["a tree", "a little tom-tit sang by a river", "on a tree by a river", ""]
        case "image":
            sizes = [(40, 32, 3), (32, 48, 3), (64, 64, 3), (48, 40)]
            return [random.integers(0, 256, size, dtype=np.uint8) for size in sizes]
        case "audio":
            lengths = [RATE // 2, RATE, RATE * 3 // 4, RATE * 4 // 5]
            return [(_sound(random, length), RATE) for length in lengths]
        case "video":
            frames = [random.integers(0, 256, (32, 40, 3), dtype=np.uint8) for _ in range(12)]
            return [np.stack(frames[:count]) for count in (3, 12, 8, 5)]
        case "vector":
            return random.normal(size=(4, width)).tolist()
        case "table":
            cells = random.integers(0, 10, (4, len(columns)))
            rows = [dict(zip(columns, row, strict=True)) for row in cells.tolist()]
            return [*rows[:3], dict.fromkeys(columns)]
        case _:
            raise ValueError(f"No samples can be made up for the modality {modality!r}.")


def _sound(random: np.random.Generator, length: int) -> np.ndarray[Any, Any]:
    """A tone under noise, (length,) float32 within -1..1."""
    time = np.arange(length) / RATE
    tone = 0.3 * np.sin(2 * np.pi * random.uniform(200, 2000) * time)
    return (tone + random.uniform(-0.1, 0.1, length)).astype(np.float32)
