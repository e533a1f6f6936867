"""A few of the training samples, and epochs in which classes are equally frequent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fusionkit.data.base import Sample, Task
from fusionkit.data.missing import Flags, ids_of, lacks, targets_of
from fusionkit.data.splits import Indices
from fusionkit.data.targets import strata
from fusionkit.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Subset(Sequence[Sample]):
    """Some of the samples, made on access.

    Attributes:
        samples: All of them.
        chosen: (n,) numbers of those that this has, in order.
    """

    samples: Sequence[Sample]
    chosen: Indices

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.samples[int(self.chosen[index])]

    @property
    def targets(self) -> Sequence[Any] | None:
        """(n,), the target of every sample."""
        every = targets_of(self.samples)
        return [every[number] for number in self.chosen.tolist()]

    def lacks(self, field: str, empty: bool) -> Flags | None:
        """As :func:`fusionkit.data.missing.lacks`."""
        flags = lacks(self.samples, field, empty)
        return None if flags is None else flags[self.chosen]

    def ids(self) -> list[str]:
        """The ``id`` of every sample."""
        every = ids_of(self.samples)
        return [every[number] for number in self.chosen.tolist()]


def few_shots(
    samples: Sequence[Sample],
    task: Task,
    seed: int,
    total: int | None = None,
    per_class: int | None = None,
) -> Subset:
    """A few of the training samples, of which fewer with the same seed are a part.

    Args:
        samples: The training split.
        task: The data set's.
        seed: Of the draw.
        total: How many, with classes in the proportions of the split; those of multi-label samples
            count by their rarest, numbers by ten quantiles.
        per_class: How many of each class instead, or all of a class that has fewer. Of multi-label
            samples, each class is in this many or more.

    Raises:
        ConfigError: Numbers have no classes.
        DataError: There are fewer samples than asked for.
    """
    if per_class is not None and task == "regression":
        raise ConfigError(
            "loader.shots_per_class: a regression has no classes; set loader.shots instead."
        )
    targets = targets_of(samples)
    rng = np.random.default_rng(seed)
    if per_class is not None:
        return Subset(samples, _each_class(_members(targets, task, rng), per_class))
    if total is None or total > len(samples):
        raise DataError(
            f"loader.shots is {total}, but there are {len(samples):,} training samples. Set it to "
            f"that or less, or to null for all."
        )
    return Subset(samples, np.sort(_spread(strata(targets, task), rng)[:total]))


def _spread(stratum: Indices, rng: np.random.Generator) -> Indices:
    """An order of which every beginning has the strata in about the proportions of the whole."""
    order = rng.permutation(len(stratum))
    of_row = stratum[order]
    counts = np.bincount(of_row)
    by_stratum = np.argsort(of_row, kind="stable")
    rank = np.empty(len(order))
    rank[by_stratum] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    sorted_: Indices = order[np.argsort((rank + 0.5) / counts[of_row], kind="stable")]
    return sorted_


def _members(targets: Sequence[Any], task: Task, rng: np.random.Generator) -> list[list[int]]:
    """The samples of each class in random order, the rarest class first."""
    members: dict[int, list[int]] = {}
    for number in rng.permutation(len(targets)).tolist():
        for name in targets[number] if task == "multi_label" else (targets[number],):
            members.setdefault(int(name), []).append(number)
    return [members[name] for name in sorted(members, key=lambda c: (len(members[c]), c))]


def _each_class(members: Sequence[Sequence[int]], count: int) -> Indices:
    """Go round the classes, each taking its next sample unless it has as many as rounds by then."""
    chosen: dict[int, None] = {}
    where = [set(of_class) for of_class in members]
    held = [0] * len(members)
    place = [0] * len(members)
    for turn in range(1, count + 1):
        for name, of_class in enumerate(members):
            while held[name] < turn and place[name] < len(of_class):
                number = of_class[place[name]]
                place[name] += 1
                if number in chosen:
                    continue
                chosen[number] = None
                for other, samples in enumerate(where):
                    held[other] += number in samples
    return np.sort(np.array(list(chosen), dtype=np.int64))


def balanced(classes: NDArray[Any], rng: np.random.Generator) -> Indices:
    """The draws of an epoch in which each class that occurs has the same number of them, up to one.

    As many as there are samples. No sample of a class is drawn again before all others of it were.

    Args:
        classes: (N,).
        rng: Of the order and the draw.

    Returns:
        (N,), in random order: the number of a sample, plus N for its second draw, 2 N for the
        third, ...
    """
    _, of_sample, counts = np.unique(classes, return_inverse=True, return_counts=True)
    total = len(of_sample)
    draws = np.full(len(counts), total // len(counts))
    draws[rng.permutation(len(counts))[: total % len(counts)]] += 1
    drawn = []
    for name, count in enumerate(draws.tolist()):
        members = np.flatnonzero(of_sample == name)
        rounds = -(-count // len(members))
        turns = [rng.permutation(members) + turn * total for turn in range(rounds)]
        drawn.append(np.concatenate(turns)[:count] if turns else members[:0])
    order: Indices = rng.permutation(np.concatenate(drawn))
    return order
