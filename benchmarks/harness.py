"""Timing side by side: what is compared takes turns in one process."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

WARM_UP = 2  # rounds: optimizer states are made, caches are filled


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison.

    Attributes:
        name: What was compared.
        ratio: What is divided by what it is compared with.
        target: The most, or under ``at_least`` the least, that the ratio shall be; None for none.
        at_least: Whether more is better.
        amounts: What each side took, the median of its turns.
        unit: Of the amounts: ``s`` or ``bytes``.
        rounds: How many turns each side had.
    """

    name: str
    ratio: float
    target: float | None
    at_least: bool = False
    amounts: Mapping[str, float] = field(default_factory=dict)
    unit: str = "s"
    rounds: int = 1

    @classmethod
    def of(
        cls, name: str, taken: Mapping[str, float], ours: str, theirs: str, target: float | None,
        rounds: int,
    ) -> Row:  # fmt: skip
        """Of two sides that took turns."""
        return cls(name, taken[ours] / taken[theirs], target, amounts=taken, rounds=rounds)

    @property
    def met(self) -> bool | None:
        """Whether the ratio keeps to its target."""
        if self.target is None:
            return None
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target


def take_turns(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each side.

    In every round each side runs once, in an order of its own: a machine that slows down slows
    all of them.

    Args:
        sides: What is timed, by name.
        rounds: Timed rounds, after :data:`WARM_UP`.
    """
    order, rng = list(sides), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(WARM_UP + rounds):
        rng.shuffle(order)
        for name in order:
            before = _now()
            sides[name]()
            if number >= WARM_UP:
                times[name].append(_now() - before)
    return {name: statistics.median(taken) for name, taken in times.items()}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
