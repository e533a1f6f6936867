"""Runs that are made one after another or side by side, each in a process of its own."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from fusionkit.compare.apart import Training
from fusionkit.compare.tables import duration
from fusionkit.config.schema import Experiment
from fusionkit.data.folders import write_whole
from fusionkit.training.folders import CONFIG, METRICS, changed_keys

# Keys that change nothing about a result: a finished run stays finished.
_MAY_CHANGE = (
    "name",
    "output",
    "loader.workers",
    "trainer.progress_bar",
    "trainer.log_every_n_steps",
)
_POLL = 0.2  # seconds between two looks at the processes
_SETTLED = 20.0  # seconds after which the first run takes the memory that it will take
_SPARE = 1.3  # times the memory of the largest run so far has to be free for one more


@dataclass(frozen=True, slots=True)
class Job:
    """A run to be made.

    Attributes:
        name: What the progress bar calls it.
        folder: Of the run.
        config: The whole of it.
        weight: How long it takes, in any unit that all jobs share.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    weight: float


def run_config(experiment: Experiment, seed: int) -> dict[str, Any]:
    """The config of a run that trains an experiment with a seed and prints to a file."""
    config = {**experiment.resolved, "seed": seed}
    config["trainer"] = {**config["trainer"], "progress_bar": False}
    return config


def is_finished(job: Job) -> bool:
    """Whether a job's folder holds its finished run; a run of another config is put aside."""
    if not (job.folder / CONFIG).is_file():
        return False
    if changed_keys(job.folder, job.config, _MAY_CHANGE):
        number = 1
        while (aside := job.folder.with_name(f"{job.folder.name}.{number}")).exists():
            number += 1
        job.folder.rename(aside)
        return False
    return (job.folder / METRICS).is_file()


def read_result(folder: Path) -> tuple[dict[str, float], float | None]:
    """Metrics of a finished run, and its seconds; None where it was continued."""
    found = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    continued = any(folder.glob("metrics.*.csv"))  # its time is that of the last part
    return found["metrics"], None if continued else found["seconds"]


def run_jobs(
    jobs: Sequence[Job],
    at_once: int | None,
    progress_bar: bool,
    ended: Callable[[Job, str | None], str],
) -> None:
    """Make runs; those that were begun are continued.

    Args:
        jobs: In the order in which they start.
        at_once: How many at a time, which share this process's threads. None for as many as there
            are cores, each started when there is memory for one more of the largest so far; for
            one where there is a GPU.
        progress_bar: Whether to show how far it is.
        ended: Called after each with the job and what went wrong; what it returns is printed.

    Raises:
        KeyboardInterrupt: It was interrupted; finished runs stay, others can be continued.
    """
    most = at_once or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
    most = max(1, min(most, len(jobs)))
    threads = max(1, torch.get_num_threads() // most) if most > 1 else None
    clock, room = _Clock(jobs), _Room(limited=at_once is None)
    waiting = deque(jobs)
    running: dict[Training, Job] = {}
    with progress_of(progress_bar, len(waiting)) as (progress, bar):
        try:
            while waiting or running:
                room.look(running)
                while waiting and len(running) < most and (not running or room.for_one_more()):
                    job = waiting.popleft()
                    running[_start(job, threads)] = job
                    room.started()
                names = ", ".join(job.name for job in running.values())
                progress.update(bar, description=f"training {names}", left=clock.left())
                time.sleep(_POLL)
                for training in [training for training in running if training.ended]:
                    job = running.pop(training)
                    clock.tick(job)
                    room.ended(well=training.error is None)
                    line = ended(job, training.error)
                    progress.advance(bar)
                    progress.console.print(line, soft_wrap=True, markup=False)
        finally:
            for training in running:
                training.stop()


def _start(job: Job, threads: int | None) -> Training:
    job.folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(job.config), sort_keys=False, allow_unicode=True)
    write_whole(job.folder / CONFIG, text)
    return Training(job.folder, threads)


class _Room:
    """Whether there is memory for one more run, by what those so far have taken."""

    def __init__(self, limited: bool) -> None:
        self._limited = limited
        self._largest = 0
        self._promised = 0  # bytes that runs which still grow are going to take
        self._first: float | None = None  # when the first one was started
        self._known = False  # whether a run has shown all that it takes

    def started(self) -> None:
        self._promised += self._largest
        if self._first is None:
            self._first = time.monotonic()

    def look(self, running: Iterable[Training]) -> None:
        if self._limited:
            sizes = [training.memory for training in running]
            self._largest = max([self._largest, *sizes])
            self._promised = sum(self._largest - size for size in sizes)

    def ended(self, well: bool) -> None:
        self._known |= well
        if not self._known:  # what it took says nothing
            self._first = None

    def for_one_more(self) -> bool:
        if not self._limited:
            return True
        settled = self._first is not None and time.monotonic() - self._first > _SETTLED
        if not (self._known or (settled and self._largest)):
            return False
        free = psutil.virtual_memory().available - self._promised
        return free > _SPARE * self._largest


class _Clock:
    """Tells the time left, by the weights of what is over."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._started = time.monotonic()
        self._total = sum(job.weight for job in jobs)
        self._done = self._end = 0.0

    def tick(self, job: Job) -> None:
        """One is over."""
        self._done += job.weight
        if self._done:
            now = time.monotonic()
            self._end = now + (now - self._started) * (self._total - self._done) / self._done

    def left(self) -> str:
        """``12 min left, ``; nothing before the first is over."""
        return f"{duration(max(self._end - time.monotonic(), 0))} left, " if self._done else ""


@contextmanager
def progress_of(shown: bool, total: int) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on standard error, so that it gets into no file that holds the table."""
    console = Console(stderr=True, highlight=False)
    progress = Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}{task.description}", markup=False),  # cut where it is long
        console=console,
        transient=True,
        disable=not (console.is_terminal and shown and total),
    )
    with progress:
        yield progress, progress.add_task("", total=total, left="")
