"""Samples into batches: each encoder's preprocessor runs in the data workers."""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fusionkit.config.schema import LoaderConfig
from fusionkit.data.base import Sample, Task
from fusionkit.data.missing import Unreadable, count_missing, is_empty, is_unreadable, lacking
from fusionkit.encoders.base import PRESENT, Inputs, Preprocessor
from fusionkit.encoders.files import file_name, is_file
from fusionkit.errors import (
    ConfigError,
    DataError,
    FusionkitError,
    MissingExtraError,
    WeightsError,
    suggest,
)

Row = dict[str, Any]
Batch = dict[str, Any]

_SHOWN = 200  # characters of a value in a message


@dataclass(frozen=True, slots=True)
class RoleInput:
    """What an encoder reads.

    Attributes:
        role: main, complement, complement_2, ...
        field: Name of the field.
        preprocessor: The encoder's own.
        may_lack: Whether a sample may lack the field.
        blank: Raw value that is collated in the place of a missing one; None leaves the row out.
        unreadable: Whether a value that cannot be read counts as missing.
        dropout: Probability that the field is dropped in training.
    """

    role: str
    field: str
    preprocessor: Preprocessor
    may_lack: bool = False
    blank: Any = None
    unreadable: bool = False
    dropout: float = 0.0


class FusionDataset(TorchDataset[Row]):
    """Samples as rows ``{"inputs": {role: row}, "target": ..., "index": ..., "unreadable": ...}``.

    The row of a missing field is None. ``unreadable`` lists (field, origin) of values that are
    missing because they could not be read.

    Attributes:
        samples: One split of a data set.
        roles: What each encoder reads.
        missing: How many samples lack the field of each role that may lack it.
        epoch: Changes which fields are dropped.
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
        self.epoch = 0
        self.unreadable = Unreadable()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Row:
        sample = self.samples[index]
        dropped = self._dropped(sample, index)
        inputs: Row = {}
        unreadable = []
        for role in self.roles:
            inputs[role.role] = None
            if role.role in dropped or _is_missing(sample, role):
                if not role.may_lack:
                    raise lacking(sample, role.role, role.field, self.allow)
                continue
            try:
                inputs[role.role] = _preprocess(sample, role)
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

    def _dropped(self, sample: Sample, index: int) -> Collection[str]:
        """Roles whose field is dropped: a function of seed, epoch and index, never all there are.

        So it depends neither on workers nor on whether a run was continued.
        """
        if not self.train or not any(role.dropout for role in self.roles):
            return ()
        rng = random.Random(f"{self.seed} {self.epoch} {index}")
        present = [role for role in self.roles if not _is_missing(sample, role)]
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

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator serves as well
        for batch in super().__iter__():
            if isinstance(batch, FusionkitError):
                raise batch
            self._count(batch)
            yield batch
        if self.dataset.train:
            self.dataset.unreadable.check(least=2)

    def _count(self, batch: Batch) -> None:
        found = batch.pop("unreadable")
        lenient = [role for role in self.dataset.roles if role.unreadable]
        read = [r.field for r in lenient if batch["inputs"][r.role][PRESENT].any()]
        self.dataset.unreadable.add(found, read)
        if self.dataset.train:
            self.dataset.unreadable.check()


def make_loader(
    samples: Sequence[Sample],
    roles: Sequence[RoleInput],
    task: Task,
    outputs: int,
    config: LoaderConfig,
    train: bool,
    seed: int,
) -> Loader:
    """Batches of samples.

    Args:
        samples: One split of a data set.
        roles: What each encoder reads.
        task: The data set's.
        outputs: The data set's number of classes.
        config: Batch sizes and workers.
        train: Whether to shuffle, anew in each epoch, to drop fields and to use ``batch_size``.
        seed: Of the order, of dropped fields and of augmentation in workers.

    Raises:
        DataError: Nothing to train on, or a sample lacks a field that it may not lack; while
            iterating, a value that cannot be read.
    """
    if train and not len(samples):
        raise DataError("The training split is empty. Check the data set's files and splits.")
    size = config.batch_size if train else config.eval_batch_size or config.batch_size
    workers = worker_count(config)
    return Loader(
        FusionDataset(samples, roles, train, seed),
        batch_size=size,
        shuffle=train,
        num_workers=workers,
        collate_fn=Collate(tuple(roles), task, outputs),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),
        # Training starts its workers anew in each epoch: their seed then follows the epoch's.
        persistent_workers=workers > 0 and not train,
    )


def pick_field(fields: Mapping[str, str], modality: str, asked: str | None, who: str) -> str:
    """The field that an encoder reads.

    Args:
        fields: The data set's: modality by name.
        modality: The encoder's.
        asked: The field that the config names; None for the only one of this modality.
        who: Role and name, for messages: ``"complement 'bow'"``.

    Raises:
        ConfigError: No such field, one of another modality, or none or several to pick from.
    """
    setting = f"{who.partition(' ')[0]}_field"
    fitting = [name for name, kind in fields.items() if kind == modality]
    listed = f"{modality} fields: {', '.join(fitting) or 'none'}"
    if asked is None:
        if len(fitting) == 1:
            return fitting[0]
        everything = ", ".join(f"{name} ({kind})" for name, kind in fields.items())
        if not fitting:
            raise ConfigError(
                f"{who} reads {modality}, but the data has no such field; fields: {everything}. "
                f"Add a field of that modality, or take an encoder of another."
            )
        raise ConfigError(
            f"{who} reads {modality}, of which there are several; {listed}. Set {setting}."
        )
    if asked not in fields:
        raise ConfigError(
            f"{who}: there is no field {asked!r}.{suggest(asked, fields)} {listed}. Set {setting}."
        )
    if asked not in fitting:
        raise ConfigError(
            f"{who} reads {modality}, but field {asked!r} is {fields[asked]}; {listed}. "
            f"Set {setting}."
        )
    return asked


def _collate(role: RoleInput, rows: Sequence[Any]) -> Inputs:
    if not role.may_lack:
        return role.preprocessor.collate(rows)
    present = torch.tensor([row is not None for row in rows])
    if role.blank is not None and not present.all():
        blank = role.preprocessor(role.blank)
        rows = [blank if row is None else row for row in rows]
    rows = [row for row in rows if row is not None]
    return {**(role.preprocessor.collate(rows) if rows else {}), PRESENT: present}


def _is_missing(sample: Sample, role: RoleInput) -> bool:
    value = sample.fields.get(role.field)
    return is_empty(value) if role.may_lack else value is None


def _preprocess(sample: Sample, role: RoleInput) -> Any:
    value = sample.fields[role.field]
    try:
        return role.preprocessor(value)
    except (ConfigError, MissingExtraError, WeightsError):
        raise  # not the row's fault
    except Exception as error:
        bare = isinstance(value, bytes | Mapping) and is_file(value)
        shown = file_name(value) if bare else repr(value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        reason = error if isinstance(error, FusionkitError) else f"{type(error).__name__}: {error}"
        remedy = "Repair what it holds or remove the row."
        if is_unreadable(error):
            remedy = (
                f"Repair what it holds, remove the row, or take it for missing: missing.allow: "
                f"[{role.role}], missing.unreadable: true."
            )
        raise DataError(
            f"{sample.origin}: field {role.field!r} ({shown}) cannot be read: {reason} {remedy}"
        ) from error


def worker_count(config: LoaderConfig) -> int:
    """How many processes read and preprocess."""
    return min(8, _cores()) if config.workers is None else config.workers


def _cores() -> int:
    """Cores that this process may use, fewer than the machine's in a container or a job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
