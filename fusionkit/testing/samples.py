"""Raw values to run the contract on, for encoders that bring none."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fusionkit.encoders.base import ComplementEncoder, Modality
from fusionkit.testing.case import Case

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


def made_up_case(cls: type[ComplementEncoder], arguments: Mapping[str, Any]) -> Case:
    """An encoder built with ``arguments``, on samples of its modality.

    A vector is as long as its ``in_dim`` or ``dim`` says, a table has the columns that its lists
    name.

    Raises:
        ValueError: No samples can be made up.
    """
    width = arguments.get("in_dim", arguments.get("dim", 8))
    listed = [value for value in arguments.values() if isinstance(value, list)]
    columns = [str(column) for each in listed for column in each]
    raw = samples(getattr(cls, "modality", "other"), width, columns)

    def make() -> ComplementEncoder:
        encoder = cls(**copy.deepcopy(dict(arguments)))
        if torch.get_default_device().type != "meta":
            encoder.fit_statistics(raw)
        return encoder

    return Case(make, raw)


def _sound(random: np.random.Generator, length: int) -> np.ndarray[Any, Any]:
    """A tone under noise, (length,) float32 within -1..1."""
    time = np.arange(length) / RATE
    tone = 0.3 * np.sin(2 * np.pi * random.uniform(200, 2000) * time)
    return (tone + random.uniform(-0.1, 0.1, length)).astype(np.float32)
