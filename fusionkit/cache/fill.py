"""Compute what is not in the cache yet."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fusionkit.cache.digest import SIZE, FileDigests, digest_value, pickled
from fusionkit.cache.key import describe, key_of
from fusionkit.cache.plan import Plan, augmented, component_of, make_plans
from fusionkit.cache.store import (
    FeatureStore,
    StoredRow,
    StoredRows,
    StoreWriter,
    remove_unfinished,
)
from fusionkit.config.schema import Experiment
from fusionkit.data.base import Dataset, Sample
from fusionkit.data.folders import cache_folder, write_whole
from fusionkit.data.loading import make_loader
from fusionkit.data.missing import is_empty
from fusionkit.data.values import RoleInput
from fusionkit.encoders.base import (
    ENTERING,
    KEEP,
    PRESENT,
    Features,
    Inputs,
    MainEncoder,
    TokenState,
)
from fusionkit.errors import DataError, EncoderError
from fusionkit.fusion.model import FusionModel

ABOUT = "about.json"  # beside the rows of a store: what they are of
_PATIENCE = 2.0  # seconds before it is said that another process is waited for

StoredSplits = dict[str, dict[str, StoredRows]]  # by role, then by split
Digests = list[bytes | None]  # of a split's samples; None where a field is missing


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

    @property
    def lacking(self) -> int:
        """Values that were not there."""
        return self.values - self.found


def fill(
    experiment: Experiment,
    dataset: Dataset,
    model: FusionModel,
    fields: Mapping[str, str],
    splits: Mapping[str, Sequence[Sample]],
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
    stored: StoredSplits = {}
    done = []
    plans, reasons = make_plans(experiment, model)
    if out:
        for reason in reasons:
            out.print(reason, soft_wrap=True, highlight=False)
    for plan in plans:
        filler = _Filler(experiment, dataset, model, plan, fields[plan.role], out)
        digests = filler.digests(splits)
        done.append(filler.fill(splits, digests, dry_run))
        if not dry_run:
            stored[plan.role] = filler.rows(digests)
    return stored, done


class _Batch(NamedTuple):
    """What was computed of some samples.

    Attributes:
        indices: Their numbers.
        rows: What is kept of each.
        padded: Whether samples differ in their number of tokens.
    """

    indices: list[int]
    rows: list[StoredRow]
    padded: bool


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
        self._experiment, self._dataset, self._plan = experiment, dataset, plan
        self._transfer: Any = model.fusion.encoders[plan.role]
        encoder: Any = self._transfer.encoder
        self._encoder = encoder
        self._may_lack = plan.role in model.fusion.stand_ins
        self._preprocessor = encoder.preprocessor(False)
        if pickled(self._preprocessor) != pickled(encoder.preprocessor(True)):
            raise augmented(plan.role, encoder)
        self._field, self._out = field, out
        config = experiment.cache
        component, _ = component_of(experiment, plan.role)
        self._about = describe(component, encoder, plan, config)
        root = cache_folder() if config.folder is None else Path(config.folder).expanduser()
        self._root = root / "features"
        self._folder = self._root / key_of(self._about)

    def digests(self, splits: Mapping[str, Sequence[Sample]]) -> dict[str, Digests]:
        """What each sample has in its field."""
        files = FileDigests(self._root / "files.sqlite")
        total = sum(map(len, splits.values()))
        with self._progress("looking up", total) as advance:
            found = {
                name: [self._digest(samples[i], files, advance) for i in range(len(samples))]
                for name, samples in splits.items()
            }
        files.keep()
        return found

    def _digest(self, sample: Sample, files: FileDigests, advance: Any) -> bytes | None:
        advance(1)
        value = sample.fields.get(self._field)
        if is_empty(value) if self._may_lack else value is None:
            return None
        try:
            return digest_value(value, self._encoder.modality, files)
        except OSError:  # nothing has this digest, so that reading the value says what is wrong
            return os.urandom(16)

    def fill(
        self, splits: Mapping[str, Sequence[Sample]], digests: Mapping[str, Digests], dry_run: bool
    ) -> Filled:
        """Compute what is not there."""
        first: dict[bytes, Sample] = {}
        for name, samples in splits.items():
            for index, digest in enumerate(digests[name]):
                if digest is not None and digest not in first:
                    first[digest] = samples[index]
        store = FeatureStore(self._folder)
        lacking = _lacking(store, first)
        size, seconds = store.size, None
        if lacking and dry_run:
            with closing(self._batches(lacking)) as batches:
                rows = next(batches).rows
            size = _bytes_each(rows, self._experiment.cache.dtype) * len(lacking)
        elif lacking:
            started = time.monotonic()
            with self._alone():
                again = _lacking(FeatureStore(self._folder), first)
                if again:
                    self._compute(again)
            size, seconds = FeatureStore(self._folder).size, time.monotonic() - started
        filled = Filled(
            self._plan, self._folder, len(first), len(first) - len(lacking), size, seconds
        )
        if not dry_run:
            self._say(
                f"{filled.found:,} of {filled.values:,} values found"
                + (f", {filled.lacking:,} computed in {seconds:.0f} s" if seconds else "")
                + f"; {decimal(size)} in {self._folder}"
            )
        return filled

    def rows(self, digests: Mapping[str, Digests]) -> dict[str, StoredRows]:
        """What stands for the raw values of each split."""
        store = FeatureStore(self._folder)
        about = self._folder / ABOUT
        padded = len(store) > 0 and json.loads(about.read_text(encoding="utf-8"))["padded"]
        return {
            name: StoredRows(store, store.find(of_split), self._plan.layer, padded)
            for name, of_split in digests.items()
        }

    def _compute(self, samples: Mapping[bytes, Sample]) -> None:
        remove_unfinished(self._folder)
        writer = StoreWriter(self._folder, self._experiment.cache.dtype)
        keys = list(samples)
        with self._progress("computing", len(samples)) as advance, writer:
            for batch in self._batches(samples):
                if not (self._folder / ABOUT).exists():
                    about = {**self._about, "padded": batch.padded}
                    write_whole(self._folder / ABOUT, json.dumps(about, indent=2) + "\n")
                if not writer.written and not writer.waiting:
                    self._announce(batch.rows, len(samples))
                for index, row in zip(batch.indices, batch.rows, strict=True):
                    writer.add(keys[index], row)
                advance(len(batch.rows))

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

    def _batches(self, samples: Mapping[bytes, Sample]) -> Generator[_Batch]:
        role, missing = self._plan.role, self._experiment.missing
        lenient = missing.unreadable and self._may_lack
        loader = make_loader(
            list(samples.values()),
            [RoleInput(role, self._field, self._preprocessor, lenient, None, lenient)],
            self._dataset.task,
            self._dataset.outputs,
            self._experiment.loader,
            train=False,
            seed=0,
        )
        device = _device(self._experiment.trainer.accelerator)
        self._transfer.to(device)
        try:
            for number, batch in enumerate(loader):
                inputs = {name: value.to(device) for name, value in batch["inputs"][role].items()}
                present, index = inputs.pop(PRESENT, None), batch["index"]
                if present is not None:  # what could not be read is left out
                    index = index[present.cpu()]
                if inputs:
                    yield _Batch(index.tolist(), *self._see(inputs, check=number == 0))
        finally:
            self._transfer.to("cpu")
        for line in loader.dataset.unreadable.describe("cache"):
            self._say(line)

    @torch.inference_mode()
    def _see(self, inputs: Inputs, check: bool) -> tuple[list[StoredRow], bool]:
        """What is kept of each sample of a batch, and whether samples differ in length."""
        layer = self._plan.layer
        if layer is None:
            features: Features = self._transfer.encode(inputs)
            arrays, keep = {"pooled": features.pooled}, features.keep
            if self._plan.tokens and features.tokens is not None:
                arrays["tokens"] = features.tokens
        else:
            state = entering(self._encoder, inputs, layer)
            arrays, keep = {"entering": state.tokens}, state.keep
            if check:
                check_resumes(self._encoder, inputs, layer, state)
        whole = {name: tensor.float().cpu().numpy() for name, tensor in arrays.items()}
        real = None if keep is None else keep.cpu().numpy()
        rows: list[StoredRow] = [
            {
                name: array[i] if name == "pooled" or real is None else array[i][real[i]]
                for name, array in whole.items()
            }
            for i in range(len(whole[next(iter(whole))]))
        ]
        return rows, keep is not None

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


def entering(encoder: MainEncoder, inputs: Inputs, layer: int) -> TokenState:
    """The state that enters ``layer`` without prompts."""
    state = encoder.embed(inputs)
    for below in range(layer):
        state = encoder.run_layer(below, state, None)
    return state


def check_resumes(encoder: MainEncoder, inputs: Inputs, layer: int, state: TokenState) -> None:
    """Compare what comes of stored tokens with what comes of the inputs.

    Args:
        encoder: The main encoder.
        inputs: A batch.
        layer: Whose input is stored.
        state: What enters it.

    Raises:
        EncoderError: They differ.
    """
    stored = {f"{ENTERING}{layer}": state.tokens}
    if state.keep is not None:
        stored[KEEP] = state.keep
    online, resumed = encoder.encode(inputs).pooled, encoder.encode(stored).pooled
    if not torch.allclose(online, resumed, rtol=1e-3, atol=1e-4):
        raise EncoderError(
            f"{type(encoder).__name__} gives something else when its layers run on from stored "
            f"tokens. Its `resume` has to make what `embed` puts into TokenState.cache (check 24 "
            f"of `fusionkit contract`); until then leave main out of cache.roles."
        )


def _lacking(store: FeatureStore, samples: Mapping[bytes, Sample]) -> dict[bytes, Sample]:
    digests = list(samples)
    return {digests[i]: samples[digests[i]] for i in np.flatnonzero(store.find(digests) < 0)}


def _bytes_each(rows: Sequence[StoredRow], dtype: str) -> int:
    values = sum(array.size for row in rows for array in row.values())
    return SIZE + values * np.dtype(dtype).itemsize // len(rows)


def _device(accelerator: str) -> torch.device:
    """What the trainer would take."""
    if accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
