"""Streams into batches: the rows of :class:`FusionDataset`, where samples have no numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch.utils.data import IterableDataset, get_worker_info

from fusionkit.config.schema import LoaderConfig
from fusionkit.data.base import Stream, Task
from fusionkit.data.loading import (
    Batch,
    Collate,
    FusionDataset,
    Loader,
    Row,
    worker_count,
)
from fusionkit.data.sampling import process_place
from fusionkit.data.values import RoleInput
from fusionkit.errors import CheckpointError, DataError, FusionkitError

T = TypeVar("T")


class StreamDataset(FusionDataset, IterableDataset[list[Row] | FusionkitError]):
    """The rows of batches, made of a stream by every process and worker for itself.

    Training reads in an order that follows from seed, epoch and the numbers of processes and
    workers. Where the stream states the length of an epoch, each worker goes on for ever in full
    batches, and :class:`StreamLoader` ends the epoch; else all samples are read once.

    Evaluation reads each sample in one worker of one process, and as many batches in every process:
    workers read shards of their own, and the processes take turns with the samples.

    Args:
        stream: One split of a data set.
        roles: What each encoder reads.
        size: Samples per batch.
        train: Whether to shuffle, and to drop fields.
        seed: Of the order and of dropped fields.

    Attributes:
        rank: Number of this process.
        world: How many processes there are.
    """

    def __init__(
        self, stream: Stream, roles: Sequence[RoleInput], size: int, train: bool, seed: int
    ) -> None:
        super().__init__([], roles, train, seed)
        self.stream = stream
        self.size = size
        self.rank, self.world = 0, 1

    def __len__(self) -> int:
        raise TypeError("A stream does not know how many samples it has.")

    def __iter__(self) -> Iterator[list[Row] | FusionkitError]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        try:
            if self.train:
                yield from self._train(
                    self.rank * workers + worker, self.world * workers, self.stream.length is None
                )
            else:
                samples = self.stream.read(worker, workers, None)
                numbered = enumerate(samples)
                for batch in share(numbered, self.size, self.rank, self.world):
                    yield [self.row(s, n * workers + worker, s.origin) for n, s in batch]
        except FusionkitError as error:  # see Loader
            yield error

    def _train(self, part: int, parts: int, once: bool) -> Iterator[list[Row]]:
        rows: list[Row] = []
        number = itertools.count(part, parts)
        for turn in [0] if once else itertools.count():
            some = False
            for sample in self.stream.read(part, parts, f"{self.seed} {self.epoch} {turn}"):
                some = True
                rows.append(self.row(sample, next(number), f"{turn} {sample.origin}"))
                if len(rows) == self.size:
                    yield rows
                    rows = []
            if not some and not once:
                raise DataError(
                    f"Reader {part + 1} of {parts} finds no sample: there are fewer samples than "
                    f"readers. Set loader.workers to fewer."
                )
        if rows:
            yield rows


def share(items: Iterable[T], size: int, rank: int, world: int) -> Iterator[list[T]]:
    """A process's batches: as many as every other's, and each item in one of one process.

    Processes that took shards of their own would have batches of different number, and would wait
    for each other for ever.

    Args:
        items: The same in every process.
        size: Items per batch; the last may have one more.
        rank: Number of this process.
        world: How many there are.

    Raises:
        DataError: There are fewer items than processes.
    """
    held: list[T] = []
    current: list[T] = []
    for item in items:
        current.append(item)
        if len(current) == size * world:
            if held:
                yield held[rank::world]
            held, current = current, []
    if len(current) < world and held:
        held, current = held + current, []
    for batch in (held, current):
        if 0 < len(batch) < world:
            raise DataError(
                f"{len(batch)} samples of a reader cannot be shared by {world} processes. Set "
                f"loader.workers or trainer.devices to fewer."
            )
        if batch:
            yield batch[rank::world]


class StreamLoader(Loader):
    """Batches of a :class:`StreamDataset`; as long as a training epoch whose length is stated."""

    dataset: StreamDataset

    def __len__(self) -> int:
        length, dataset = self.dataset.stream.length, self.dataset
        if not dataset.train or length is None:
            return len(dataset)  # raises
        return -(-length // (dataset.size * process_place()[1]))

    def state_dict(self) -> dict[str, int]:
        return {**super().state_dict(), "workers": self.num_workers}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """As for any loader.

        Raises:
            CheckpointError: There were more or fewer processes or workers, which read in another
                order.
        """
        then = state_dict["workers"]
        within = self.dataset.stream.length is not None and state_dict["batches"] < len(self)
        if within and then != self.num_workers:
            raise CheckpointError(
                f"This run stopped within an epoch of a stream that {then} workers read, and "
                f"{self.num_workers} read it in another order. Set loader.workers to {then}."
            )
        super().load_state_dict(state_dict)

    def _batches(self) -> Iterator[Batch | FusionkitError]:
        dataset = self.dataset
        dataset.rank, dataset.world = process_place()
        endless = dataset.train and dataset.stream.length is not None
        return itertools.islice(super()._batches(), len(self) if endless else None)


def make_stream_loader(
    stream: Stream,
    roles: Sequence[RoleInput],
    task: Task,
    outputs: int,
    config: LoaderConfig,
    train: bool,
    seed: int,
) -> StreamLoader:
    """As :func:`~fusionkit.data.loading.make_loader`, which calls it for streams."""
    size = config.batch_size if train else config.eval_batch_size or config.batch_size
    workers = worker_count(config)
    return StreamLoader(
        StreamDataset(stream, roles, size, train, seed),
        batch_size=None,  # the data set makes the batches
        num_workers=workers,
        collate_fn=Collate(tuple(roles), task, outputs),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=workers > 0,
    )
