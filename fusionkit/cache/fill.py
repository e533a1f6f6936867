"""Compute what is not in the cache yet."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import ConcatDataset

from fusionkit.cache.compute import Computer
from fusionkit.cache.digest import SIZE, FileDigests, digest_value, pickled
from fusionkit.cache.key import describe, key_of
from fusionkit.cache.plan import Plan, augmented, component_of, make_plans
from fusionkit.cache.store import (
    DIGEST,
    Digests,
    FeatureStore,
    StoredRow,
    StoredRows,
    StoreWriter,
    remove_unfinished,
)
from fusionkit.config.schema import Experiment
from fusionkit.data.base import Dataset, Sample, Samples, Stream
from fusionkit.data.folders import cache_folder, write_whole
from fusionkit.data.subsets import Subset
from fusionkit.data.values import RoleInput, is_missing
from fusionkit.errors import ConfigError, DataError
from fusionkit.fusion.model import FusionModel

ABOUT = "about.json"  # beside the rows of a store: what they are of
NONE = b""  # the digest of a field that is missing
_CLOSE = 0.02  # of the largest entry: how far rounding, half precision and devices may differ
_STEP = 200  # samples between two steps of a bar
_PATIENCE = 2.0  # seconds before it is said that another process is waited for

StoredSplits = Mapping[str, Mapping[str, StoredRows]]  # by role, then by split


@dataclass(frozen=True, slots=True)
class Filled:
    """What came of a plan.

    Attributes:
        plan: What was asked for.
        folder: The store.
        values: Different values in the splits.
        found: Those that were there already.
        bytes: On the disk, of the whole store; where nothing was computed yet, what it would take.
        seconds: That computing took; None if nothing was computed.
    """

    plan: Plan
    folder: Path
    values: int
    found: int
    bytes: int
    seconds: float | None

    @property
    def lacking(self) -> int:
        """Values that were not there."""
        return self.values - self.found

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "role": self.plan.role,
            "kept": self.plan.what,
            "values": self.values,
            "found": self.found,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "folder": str(self.folder),
        }


def fill(
    experiment: Experiment,
    dataset: Dataset,
    model: FusionModel,
    fields: Mapping[str, str],
    splits: Mapping[str, Samples],
    out: Console | None = None,
    dry_run: bool = False,
) -> tuple[StoredSplits, list[Filled]]:
    """Compute what the config's ``cache`` asks for and is not there yet.

    Several processes may do so at a time: one computes, the others wait for it.

    Args:
        experiment: What is trained.
        dataset: Its data set.
        model: As training starts with it, in any mode, on any device.
        fields: The field of each role.
        splits: Samples of each split.
        out: Where it is said what goes on; None for nowhere.
        dry_run: Compute one batch, to tell the size, and keep nothing.

    Returns:
        What stands for raw values, by role and split; and what was done, for each role.

    Raises:
        ConfigError: What is asked for cannot be had, see :func:`make_plans`.
        DataError: A value cannot be read, or the disk is too small.
    """
    stored: dict[str, dict[str, StoredRows]] = {}
    done = []
    plans, reasons = make_plans(experiment, model)
    counted = {name: found for name, found in splits.items() if not isinstance(found, Stream)}
    if plans and len(counted) < len(splits):
        plans, reasons = [], ["cache: nothing is looked up in a stream, which is read as it comes."]
    for plan in plans:
        try:
            filler = _Filler(experiment, dataset, model, plan, fields[plan.role], out)
        except ConfigError as error:
            if experiment.cache.roles != "auto":
                raise
            reasons.append(str(error))
            continue
        digests = filler.digests(counted)
        done.append(filler.fill(counted, digests, dry_run))
        if not dry_run:
            stored[plan.role] = filler.rows(digests)
    if out:
        for reason in reasons:
            out.print(reason, soft_wrap=True, highlight=False)
    return stored, done


class _Filler:
    """Fills the store of one role."""

    def __init__(
        self,
        experiment: Experiment,
        dataset: Dataset,
        model: FusionModel,
        plan: Plan,
        field: str,
        out: Console | None,
    ) -> None:
        self._experiment, self._plan, self._out = experiment, plan, out
        transfer: Any = model.fusion.encoders[plan.role]
        encoder = transfer.encoder
        self._modality: str = encoder.modality
        preprocessor = encoder.preprocessor(False)
        if pickled(preprocessor) != pickled(encoder.preprocessor(True)):
            raise augmented(plan.role, encoder)
        may_lack = plan.role in model.fusion.stand_ins
        self._role = RoleInput(
            plan.role,
            field,
            preprocessor,
            may_lack,
            unreadable=may_lack and experiment.missing.unreadable,
        )
        self._computer = Computer(
            plan,
            transfer,
            self._role,
            dataset,
            experiment.loader,
            experiment.trainer,
            self._say,
        )
        config = experiment.cache
        component, _ = component_of(experiment, plan.role)
        self._about = describe(component, transfer, plan, config)
        root = cache_folder() if config.folder is None else Path(config.folder).expanduser()
        self._root = root / "features"
        self._folder = self._root / key_of(self._about)

    def digests(self, splits: Mapping[str, Sequence[Sample]]) -> dict[str, Digests]:
        """What each sample has in its field."""
        memory = FileDigests(self._root / "files.sqlite")
        with (
            closing(memory) as files,
            self._progress("looking up", sum(map(len, splits.values()))) as advance,
        ):
            found = {}
            for name, samples in splits.items():
                found[name] = np.empty(len(samples), dtype=DIGEST)
                for index in range(len(samples)):
                    found[name][index] = self._digest(samples[index], files)
                    if index % _STEP == 0:  # the bar takes longer than a sample
                        advance(_STEP)
        return found

    def _digest(self, sample: Sample, files: FileDigests) -> bytes:
        value = sample.fields.get(self._role.field)
        if is_missing(sample, self._role):
            return NONE
        try:
            return digest_value(value, self._modality, files)
        except (OSError, DataError):
            return os.urandom(SIZE)  # nothing has it: reading the value then says what is wrong

    def fill(
        self, splits: Mapping[str, Sequence[Sample]], digests: Mapping[str, Digests], dry_run: bool
    ) -> Filled:
        """Compute what is not there."""
        every, first = np.unique(np.concatenate([*digests.values()]), return_index=True)
        order = np.argsort(first)  # that of the samples
        order = order[every[order] != NONE]
        every, first = every[order], first[order]
        parts: list[Any] = list(splits.values())
        samples: Any = ConcatDataset(parts)
        store = FeatureStore(self._folder)
        places = store.find(every)
        absent = places < 0
        if not absent.all():
            there = int((~absent).argmax())
            self._compare(Subset(samples, first[there : there + 1]), store[int(places[there])])
        lacking, size, seconds, computed = int(absent.sum()), store.size, None, 0
        if lacking and dry_run:
            with closing(self._computer.batches(Subset(samples, first[absent]))) as batches:
                batch = next(batches, None)  # None where nothing can be read
            each = 0 if batch is None else _bytes_each(batch.rows, self._experiment.cache.dtype)
            size = each * lacking
        elif lacking:
            started = time.monotonic()
            with self._alone():
                absent = FeatureStore(self._folder).find(every) < 0
                if absent.any():
                    computed = self._compute(Subset(samples, first[absent]), every[absent])
            size, seconds = FeatureStore(self._folder).size, time.monotonic() - started
        filled = Filled(self._plan, self._folder, len(every), len(every) - lacking, size, seconds)
        if not dry_run:
            self._say(
                f"{filled.found:,} of {filled.values:,} values found"
                + ("" if seconds is None else f", {computed:,} computed in {seconds:.0f} s")
                + f"; {decimal(size)} in {self._folder}"
            )
        return filled

    def _compare(self, sample: Sequence[Sample], stored: StoredRow) -> None:
        """Compute one value that was found again: its name cannot know all that it depends on.

        Raises:
            DataError: It has become another.
        """
        for batch in self._computer.batches(sample):
            for name, array in batch.rows[0].items():
                kept = stored[name].astype(np.float32)
                largest = max(1e-6, float(np.abs(kept).max(initial=0)))
                if kept.shape != array.shape or np.abs(kept - array).max() > _CLOSE * largest:
                    raise DataError(
                        f"{sample[0].origin}: what {self._plan.role} sees of field "
                        f"{self._role.field!r} is not what the cache has of it. Something has "
                        f"changed that does not show in the encoder's arguments, weights or code. "
                        f"Delete {self._folder}; it is computed again."
                    )

    def rows(self, digests: Mapping[str, Digests]) -> dict[str, StoredRows]:
        """What stands for the raw values of each split."""
        store = FeatureStore(self._folder)
        about = self._folder / ABOUT
        padded = len(store) > 0 and json.loads(about.read_text(encoding="utf-8"))["padded"]
        return {
            name: StoredRows(store, store.find(of_split), self._plan.layer, padded)
            for name, of_split in digests.items()
        }

    def _compute(self, samples: Sequence[Sample], digests: Digests) -> int:
        """Add what can be read of some samples to the store, and say how many that was."""
        remove_unfinished(self._folder)
        writer = StoreWriter(self._folder, self._experiment.cache.dtype)
        with self._progress("computing", len(samples)) as advance, writer:
            for batch in self._computer.batches(samples):
                if not (self._folder / ABOUT).exists():
                    about = {**self._about, "padded": batch.padded}
                    write_whole(self._folder / ABOUT, json.dumps(about, indent=2) + "\n")
                if not writer.written and not writer.waiting:
                    self._announce(batch.rows, len(samples))
                for index, row in zip(batch.indices, batch.rows, strict=True):
                    writer.add(digests[index], row)
                advance(len(batch.rows))
        return writer.written

    def _announce(self, rows: Sequence[StoredRow], count: int) -> None:
        """Say how much it will be, going by the first rows.

        Raises:
            DataError: More than the disk has.
        """
        size = _bytes_each(rows, self._experiment.cache.dtype) * count
        free = shutil.disk_usage(self._folder).free
        self._say(f"computing {count:,} values, about {decimal(size)} ({decimal(free)} free)")
        if size > free:
            raise DataError(
                f"The cache of {self._plan.role} ({self._plan.what}) takes about {decimal(size)}, "
                f"but {self._folder} has {decimal(free)} left. Set cache.folder to another disk, "
                f"cache.dtype: float16 for half of it, or leave {self._plan.role} out of "
                f"cache.roles."
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process fills the same store."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / "lock")
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            self._say("another process is computing the same; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar with the time left, where progress bars are wanted and seen."""
        shown = self._out is not None and self._experiment.trainer.progress_bar
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self._out, transient=True, disable=not shown) as bar:
            task = bar.add_task(f"Cache: {self._plan.role}, {what}", total=total)
            yield lambda count: bar.advance(task, count)

    def _say(self, text: str) -> None:
        if self._out is not None:
            line = f"Cache: {self._plan.role}, {self._plan.what}: {text}"
            self._out.print(line, soft_wrap=True, highlight=False)


def _bytes_each(rows: Sequence[StoredRow], dtype: str) -> int:
    values = sum(array.size for row in rows for array in row.values())
    return SIZE + values * np.dtype(dtype).itemsize // len(rows)
