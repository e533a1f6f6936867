"""Which samples make a batch, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from fusionkit.data.lengths import Lengths, padded_tokens
from fusionkit.data.subsets import balanced
from fusionkit.errors import DataError

Numbers = NDArray[np.int64]

_WIDTH = 1.1  # the longest of a bucket by its shortest
_LEAST = 2  # batches in a bucket, wider if need be, so that a sample meets others in each epoch


class Batches(Sampler[list[int]]):
    """Batches of sample numbers: a function of seed and epoch, whatever workers there are.

    Each process of a distributed run makes the same plan and takes its share: as many batches as
    every other, no sample twice.

    With lengths, training divides the samples into buckets of similar length, shuffles within each
    and shuffles the batches; evaluation sorts. The number of batches is the same in every epoch.

    A number beyond the last sample stands for another draw of ``number % samples``, which balanced
    epochs need: whatever is random of a sample may follow the number.

    Args:
        samples: How many there are.
        size: Samples per batch.
        train: Whether to shuffle, anew in each epoch.
        seed: Of the order.
        lengths: (N, R) tokens of each sample in each role; None for batches of any samples.
        tokens: Padded tokens that a batch has at most, instead of ``size``; needs lengths. None of
            the samples has more.
        classes: (N,) class of each sample, for epochs in which each class has the same number of
            draws; None for epochs of each sample once.
        shared: Whether the processes of a distributed run divide the batches among them.

    Attributes:
        epoch: Which one comes next.
        start: How many of this process's batches the next iteration leaves out; then 0 again.
    """

    def __init__(
        self,
        samples: int,
        size: int,
        train: bool,
        seed: int,
        lengths: Lengths | None = None,
        tokens: int | None = None,
        classes: Sequence[int] | NDArray[Any] | None = None,
        shared: bool = False,
    ) -> None:
        self.samples = samples
        self.size = size
        self.train = train
        self.seed = seed
        self.lengths = lengths
        self.tokens = tokens
        self.classes = None if classes is None else np.asarray(classes)
        self.shared = shared
        self.epoch = 0
        self.start = 0
        self._lengths_by_world: dict[int, int] = {}
        if lengths is not None and train:
            self._bucket, self._bounds = self._buckets(lengths)

    def __len__(self) -> int:
        """Batches of this process, in any epoch."""
        _, world = self.place
        if world not in self._lengths_by_world:
            self._lengths_by_world[world] = len(self.plan(world)) // world
        return self._lengths_by_world[world]

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = self.place
        start, self.start = self.start, 0
        for numbers in self.plan(world)[rank::world][start:]:
            yield numbers.tolist()

    def plan(self, world: int = 1) -> list[Numbers]:
        """The batches of all processes; process r of ``world`` takes every ``world``-th from r on.

        Raises:
            DataError: There are fewer samples than processes.
        """
        if self.samples < world and self.samples:
            raise DataError(
                f"A split of {self.samples} samples cannot be shared by {world} processes. Set "
                f"trainer.devices to {self.samples} or fewer."
            )
        rng = np.random.default_rng([self.seed, self.epoch if self.train else 0])
        batches = self._cut(self._drawn(rng))
        if self.tokens is not None and self.classes is not None:
            batches = self._as_many_as_at_first(batches, rng)
        _make_divisible(batches, world)
        if self.lengths is None:
            return batches
        # Processes wait for each other in every step: they get batches of about the same size.
        size = [padded_tokens(self.lengths[batch % self.samples]) for batch in batches]
        groups = np.argsort(size, kind="stable").reshape(-1, world)
        # Evaluation is shuffled as well, so that its first batches, a limit, are as good as others.
        return [batches[place] for place in rng.permutation(groups).ravel()]

    @property
    def place(self) -> tuple[int, int]:
        """Number of this process, and how many share the batches."""
        return process_place() if self.shared else (0, 1)

    def _drawn(self, rng: np.random.Generator) -> Numbers:
        """The numbers of an epoch, in random order in training."""
        if not self.train:
            return np.arange(self.samples)
        if self.classes is not None:
            return balanced(self.classes, rng)
        return rng.permutation(self.samples)

    def _cut(self, drawn: Numbers) -> list[Numbers]:
        if self.lengths is None:
            return _chunks(drawn, self.size)
        if not self.train:
            order = drawn[np.argsort(-self.lengths.sum(axis=1), kind="stable")]
            return self._pack(order, self.lengths[order])
        bucket = self._bucket[drawn % self.samples]
        batches, rest = [], []
        for number in range(len(self._bounds) - 1, -1, -1):
            members = drawn[bucket == number]
            room = self._room(self._bounds[number].tolist())
            whole = len(members) // room * room
            batches += list(members[:whole].reshape(-1, room))
            rest.append(members[whole:])
        left = np.concatenate(rest)
        # By the bounds of their buckets, so that they too make the same number of batches.
        return batches + self._pack(left, self._bounds[self._bucket[left % self.samples]])

    def _pack(self, numbers: Numbers, bounds: Lengths) -> list[Numbers]:
        """Cut numbers in their order, the longest first, into as few batches as it takes."""
        if self.tokens is None:
            return _chunks(numbers, self.size)
        batches: list[Numbers] = []
        first, top = 0, [0] * bounds.shape[1]
        for place, row in enumerate(bounds.tolist()):
            raised = list(map(max, top, row))
            if place - first + 1 > self._room(raised) and place > first:
                batches.append(numbers[first:place])
                first, raised = place, row
            top = raised
        return [*batches, numbers[first:]] if len(numbers) else batches

    def _room(self, top: Sequence[int]) -> int:
        """How many samples of at most these lengths a batch has."""
        return self.size if self.tokens is None else max(1, self.tokens // max(1, sum(top)))

    def _buckets(self, lengths: Lengths) -> tuple[Numbers, Lengths]:
        """The bucket of each sample, and the greatest lengths in each, from short to long."""
        total = lengths.sum(axis=1)
        values, counts = np.unique(total, return_counts=True)
        share = counts / self.size if self.tokens is None else counts * values / self.tokens
        number, shortest, held = 0, values[0], 0.0
        of_value = np.empty(len(values), dtype=np.int64)
        for place, value in enumerate(values):
            if value > _WIDTH * shortest and held >= _LEAST:
                number, shortest, held = number + 1, value, 0.0
            of_value[place] = number
            held += share[place]
        bucket = of_value[np.searchsorted(values, total)]
        bounds = np.stack([lengths[bucket == b].max(axis=0) for b in range(number + 1)])
        return bucket, bounds

    def _as_many_as_at_first(
        self, batches: list[Numbers], rng: np.random.Generator
    ) -> list[Numbers]:
        """As many batches as in epoch 0: balanced epochs hold different samples.

        Batches too many are left out at random, which leaves every class as likely as it was.
        """
        rng_of_first = np.random.default_rng([self.seed, 0])
        count = len(self._cut(self._drawn(rng_of_first)))
        if len(batches) > count:
            kept = rng.choice(len(batches), count, replace=False)
            return [batches[place] for place in kept]
        _split(batches, count - len(batches))
        return batches


def process_place() -> tuple[int, int]:
    """Number of this process in a distributed run, and how many there are; else 0 and 1."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _chunks(numbers: Numbers, size: int) -> list[Numbers]:
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def _make_divisible(batches: list[Numbers], world: int) -> None:
    """Split the largest batches until the processes can share them, each sample once.

    Where no batch holds two samples, some are joined instead.
    """
    _split(batches, -len(batches) % world)
    while len(batches) % world:
        last = batches.pop()
        batches[-1] = np.concatenate([batches[-1], last])


def _split(batches: list[Numbers], times: int) -> None:
    for _ in range(times):
        place = max(range(len(batches)), key=lambda b: len(batches[b]))
        largest = batches[place]
        if len(largest) < 2:
            return
        half = (len(largest) + 1) // 2
        batches[place : place + 1] = [largest[:half], largest[half:]]
