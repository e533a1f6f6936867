"""Samples into batches: each encoder's preprocessor runs in the data workers."""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset as TorchDataset

from fusionkit.config.schema import LoaderConfig
from fusionkit.data.base import Sample, Samples, Stream, Task
from fusionkit.data.lengths import check_lengths, is_quick, lengths_of
from fusionkit.data.missing import Unreadable, count_missing, is_unreadable, lacking, targets_of
from fusionkit.data.sampling import Batches, process_place
from fusionkit.data.values import RoleInput, is_missing, read_value
from fusionkit.encoders.base import PRESENT, Inputs
from fusionkit.errors import CheckpointError, ConfigError, DataError, FusionkitError

Row = dict[str, Any]
Batch = dict[str, Any]


class FusionDataset(TorchDataset[Row]):
    """Samples as rows ``{"inputs": {role: row}, "target": ..., "index": ..., "unreadable": ...}``.

    The row of a missing field is None. ``unreadable`` lists (field, origin) of values that are
    missing because they could not be read.

    In training, what is random of a row is a function of seed, epoch and its number alone, so it
    depends neither on workers nor on whether a run was continued. A number beyond the last sample
    is another draw of the sample ``number % len(samples)``.

    Attributes:
        samples: One split of a data set.
        roles: What each encoder reads.
        missing: How many samples lack the field of each role that may lack it.
        epoch: Changes what is random; workers, which outlive it, see it change.
        unreadable: What could not be read so far; kept by :class:`Loader`.

    Raises:
        DataError: A sample lacks a field that it may not lack.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        roles: Sequence[RoleInput],
        train: bool = False,
        seed: int = 0,
    ) -> None:
        self.samples = samples
        self.roles = tuple(roles)
        self.allow = [role.role for role in roles if role.may_lack]
        self.missing = count_missing(samples, {r.role: r.field for r in roles}, self.allow)
        self.train = train
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        self.unreadable = Unreadable()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Row:
        number, index = index, index % len(self.samples)
        return self.row(self.samples[index], index, number)

    def row(self, sample: Sample, index: int, key: int | str) -> Row:
        """One sample as a row; ``key`` stands for it in what is random."""
        dropped = self._dropped(sample, key)
        if self.train:
            _seed_everything(f"{self.seed} {self.epoch} {key}")
        inputs: Row = {}
        unreadable = []
        for role in self.roles:
            inputs[role.role] = None
            if role.role in dropped or is_missing(sample, role):
                if not role.may_lack:
                    raise lacking(sample, role.role, role.field, self.allow)
                continue
            if role.stored is not None:
                inputs[role.role] = role.stored[index]
                if inputs[role.role] is None:
                    unreadable.append((role.field, sample.origin))
                continue
            try:
                inputs[role.role] = read_value(sample, role, role.preprocessor)
            except DataError as error:
                if not (role.unreadable and is_unreadable(error.__cause__)):
                    raise
                unreadable.append((role.field, sample.origin))
        return {
            "inputs": inputs,
            "target": sample.target,
            "index": index,
            "unreadable": unreadable,
        }

    def __getitems__(self, indices: Sequence[int]) -> list[Row] | FusionkitError:
        """The rows of a batch, or what went wrong: see :class:`Loader`."""
        try:
            return [self[index] for index in indices]
        except FusionkitError as error:
            return error

    def _dropped(self, sample: Sample, key: int | str) -> Collection[str]:
        """Roles whose field is dropped, never all there are."""
        if not self.train or not any(role.dropout for role in self.roles):
            return ()
        rng = random.Random(f"{self.seed} {self.epoch} {key}")
        present = [role for role in self.roles if not is_missing(sample, role)]
        dropped = [role.role for role in present if rng.random() < role.dropout]
        if dropped and len(dropped) == len(present):
            dropped.remove(rng.choice(dropped))
        return dropped


@dataclass(frozen=True, slots=True)
class Collate:
    """Rows to ``{"inputs": {role: Inputs}, "target": Tensor | None, "index": (B,) long}``.

    The target is (B,) long in single_label, (B, outputs) float of 0 and 1 in multi_label,
    (B,) float in regression, None where it is not known.

    The inputs of a role that may lack its field hold :data:`PRESENT`. An encoder's preprocessor
    collates the rows that are present, so that no encoder ever sees a made-up value; only where a
    role has a ``blank``, that takes the place of missing ones. ``unreadable`` is handed through.
    """

    roles: tuple[RoleInput, ...]
    task: Task
    outputs: int

    def __call__(self, rows: Sequence[Row] | FusionkitError) -> Batch | FusionkitError:
        if isinstance(rows, FusionkitError):
            return rows
        return {
            "inputs": {
                role.role: _collate(role, [row["inputs"][role.role] for row in rows])
                for role in self.roles
            },
            "target": self._target([row["target"] for row in rows]),
            "index": torch.tensor([row["index"] for row in rows]),
            "unreadable": [found for row in rows for found in row["unreadable"]],
        }

    def _target(self, targets: Sequence[Any]) -> Tensor | None:
        if any(target is None for target in targets):
            return None
        if self.task == "single_label":
            return torch.tensor(targets, dtype=torch.long)
        if self.task == "regression":
            return torch.tensor(targets, dtype=torch.float)
        hot = torch.zeros(len(targets), self.outputs)
        for row, classes in zip(hot, targets, strict=True):
            row[list(classes)] = 1
        return hot


class Loader(DataLoader[Any]):
    """A DataLoader that raises data errors as they are.

    An exception that leaves a worker arrives with the worker's traceback as its message; so
    errors come as values instead, and are raised here. What could not be read is counted here.
    """

    dataset: FusionDataset

    _given = 0  # batches of this epoch that were handed out
    _resumes: Mapping[str, int] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Make what is random of the next iteration that of an epoch."""
        self.dataset.epoch = epoch
        if isinstance(self.batch_sampler, Batches):
            self.batch_sampler.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Where in which epoch this is, for Lightning's checkpoints."""
        _, processes = process_place()
        return {"epoch": self.dataset.epoch, "batches": self._given, "processes": processes}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Let the next iteration, if it is of the same epoch, go on where another stood."""
        self.set_epoch(state_dict["epoch"])
        self._resumes = state_dict

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator serves as well
        # Nothing of this runs before the first batch is asked for: by then the epoch is set.
        state, self._resumes, self._given = self._resumes, None, 0
        seen = 0
        if state and state["epoch"] == self.dataset.epoch:
            seen, then, (_, now) = state["batches"], state["processes"], process_place()
            if then != now:
                raise CheckpointError(
                    f"This run stopped within an epoch on {then} processes and cannot continue "
                    f"there on {now}. Set trainer.devices to {then}."
                )
        if isinstance(self.batch_sampler, Batches):
            self.batch_sampler.start = self._given = seen
        for batch in self._batches():
            if isinstance(batch, FusionkitError):
                raise batch
            self._given += 1
            if self._given <= seen:  # of a stream, which has to be read from its beginning
                continue
            self._count(batch)
            yield batch
        if self.dataset.train:
            self.dataset.unreadable.check(least=2)

    def _batches(self) -> Iterator[Batch | FusionkitError]:
        return super().__iter__()

    def _count(self, batch: Batch) -> None:
        found = batch.pop("unreadable")
        lenient = [role for role in self.dataset.roles if role.unreadable]
        read = [r.field for r in lenient if batch["inputs"][r.role][PRESENT].any()]
        self.dataset.unreadable.add(found, read)
        if self.dataset.train:
            self.dataset.unreadable.check()


def make_loader(
    samples: Samples,
    roles: Sequence[RoleInput],
    task: Task,
    outputs: int,
    config: LoaderConfig,
    train: bool,
    seed: int,
    shared: bool = False,
) -> Loader:
    """Batches of samples.

    Args:
        samples: One split of a data set.
        roles: What each encoder reads.
        task: The data set's.
        outputs: The data set's number of classes.
        config: How samples become batches, and how many workers make them.
        train: Whether to shuffle, anew in each epoch, to drop fields and to use ``batch_size``.
        seed: Of the order, of dropped fields and of augmentation in workers.
        shared: Whether the processes of a distributed run divide the batches among them.

    Raises:
        ConfigError: The config asks for batches that these encoders or this task cannot have.
        DataError: Nothing to train on, or a sample lacks a field that it may not lack; while
            iterating, a value that cannot be read.
    """
    if isinstance(samples, Stream):
        from fusionkit.data.streaming import make_stream_loader  # builds on this module

        return make_stream_loader(samples, roles, task, outputs, config, train, seed)
    if train and not len(samples):
        raise DataError("The training split is empty. Check the data set's files and splits.")
    dataset = FusionDataset(samples, roles, train, seed)
    workers = worker_count(config)
    return Loader(
        dataset,
        batch_sampler=_batches(dataset, task, config, shared),
        num_workers=workers,
        collate_fn=Collate(tuple(roles), task, outputs),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),
        # To start them copies what the steps write to: seconds in each epoch, on a CPU.
        persistent_workers=workers > 0,
    )


def _batches(dataset: FusionDataset, task: Task, config: LoaderConfig, shared: bool) -> Batches:
    train, samples = dataset.train, dataset.samples
    tokens = config.tokens_per_batch if train or config.eval_batch_size is None else None
    lengths = None
    if tokens is not None or (train and config.bucket_by_length):
        lengths = lengths_of(samples, dataset.roles)
        check_lengths(samples, dataset.roles, lengths, tokens)
    elif not train and is_quick(samples, dataset.roles):
        lengths = lengths_of(samples, dataset.roles)
    if config.balanced and task != "single_label":
        raise ConfigError(
            f"loader.balanced: samples of a {task} task have no class of their own to balance; "
            f"set it to false."
        )
    return Batches(
        len(samples),
        config.batch_size if train else config.eval_batch_size or config.batch_size,
        train,
        dataset.seed,
        lengths,
        tokens,
        np.asarray(targets_of(samples)) if config.balanced and train else None,
        shared,
    )


def _collate(role: RoleInput, rows: Sequence[Any]) -> Inputs:
    collate = role.preprocessor.collate if role.stored is None else role.stored.collate
    if not role.may_lack:
        return collate(rows)
    present = torch.tensor([row is not None for row in rows])
    if role.blank is not None and not present.all():
        blank = role.preprocessor(role.blank)
        rows = [blank if row is None else row for row in rows]
    rows = [row for row in rows if row is not None]
    return {**(collate(rows) if rows else {}), PRESENT: present}


def _seed_everything(key: str) -> None:
    """Seed what augmentation may draw from."""
    random.seed(key)
    torch.default_generator.manual_seed(random.getrandbits(63))
    np.random.seed(random.getrandbits(32))  # libraries still draw from it


def worker_count(config: LoaderConfig) -> int:
    """How many processes read and preprocess."""
    return min(8, _cores()) if config.workers is None else config.workers


def _cores() -> int:
    """Cores that this process may use, fewer than the machine's in a container or a job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
