"""Set systems side by side: what each costs, and what each learns."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from fusionkit.compare.apart import LOG, Failure, Training, measure, preload
from fusionkit.compare.results import Comparison, SeedRun, SystemRow
from fusionkit.compare.tables import duration, markdown
from fusionkit.config.schema import Experiment
from fusionkit.data.folders import write_whole
from fusionkit.errors import ConfigError, FusionkitError
from fusionkit.training.assemble import dry_build
from fusionkit.training.folders import (
    CONFIG,
    METRICS,
    changed_keys,
    label_folders,
)
from fusionkit.training.parameters import count_parameters
from fusionkit.training.report import value_text

# Keys that change nothing about a result: a finished run stays finished.
_MAY_CHANGE = (
    "name",
    "output",
    "loader.workers",
    "trainer.progress_bar",
    "trainer.log_every_n_steps",
)
_POLL = 0.2  # seconds between two looks at the processes


def measure_systems(
    experiment: Experiment,
    systems: Mapping[str, Experiment | ConfigError],
    steps: int | None = None,
) -> Comparison:
    """Count parameters, FLOPs, memory and time of systems; nothing is trained.

    What is found is written to ``output/name`` after each system.

    Args:
        experiment: Says where results go and whether there is a progress bar.
        systems: By label; a ConfigError is the reason for which a system refuses the encoders.
        steps: Timed steps of each, see :meth:`Bench.time`.

    Raises:
        ConfigError: Two labels share a folder.
    """
    label_folders(systems, "systems")
    folder = Path(experiment.output) / experiment.name
    rows = [_counted(label, system) for label, system in systems.items()]
    comparison = Comparison(experiment.name, folder, torch.__version__, (), rows)
    comparison.save(markdown(comparison))
    todo = [
        (row, system)
        for row, system in zip(rows, systems.values(), strict=True)
        if isinstance(system, Experiment) and not row.refused and row.failure is None
    ]
    preload(system for _, system in todo)
    with _progress(experiment, len(todo)) as (progress, bar):
        for row, system in todo:
            progress.update(bar, description=f"measuring {row.label}")
            row.cost, row.failure = measure(system, steps)
            comparison.save(markdown(comparison))
            progress.advance(bar)
    return comparison


def _counted(label: str, system: Experiment | ConfigError) -> SystemRow:
    """A row with its parameters, or why there are none."""
    if isinstance(system, ConfigError):
        return SystemRow(label, refused=str(system))
    try:
        model, _, _ = dry_build(system)
    except ConfigError as error:
        return SystemRow(label, refused=str(error))
    except FusionkitError as error:
        return SystemRow(label, failure=Failure.of(error))
    counts = count_parameters(model)
    return SystemRow(label, sum(c.trained for c in counts), sum(c.total for c in counts))


@dataclass(frozen=True, slots=True)
class _Job:
    """A run to be made."""

    row: SystemRow
    seed: int
    folder: Path
    config: Mapping[str, Any]


def fit_systems(
    experiment: Experiment,
    systems: Mapping[str, Experiment | ConfigError],
    comparison: Comparison,
    jobs: int = 1,
) -> None:
    """Train each system that could be measured with each seed; results go into ``comparison``.

    Runs are in ``output/name/LABEL/seed-S``. What is finished there under the same config is not
    repeated, what was begun is continued; under another config it is put aside.

    Args:
        experiment: Says with which seeds.
        systems: As for :func:`measure_systems`.
        comparison: What that returned.
        jobs: Runs at a time; they share this process's threads.

    Raises:
        KeyboardInterrupt: It was interrupted; call it again to go on.
    """
    comparison.seeds = experiment.seeds
    places = label_folders(systems, "systems")
    waiting: deque[_Job] = deque()
    for seed in comparison.seeds:  # all systems with one seed first: that is a table already
        for row in comparison.rows:
            system = systems[row.label]
            if row.refused or isinstance(system, ConfigError):
                continue
            name = places[row.label]  # a number would be taken for a run of `fit`
            place = comparison.folder / (f"_{name}" if name.isdigit() else name) / f"seed-{seed}"
            if row.cost is None:
                reason = row.failure.message if row.failure else ""
                row.runs.append(SeedRun(seed, place, None, None, reason))
                continue
            job = _Job(row, seed, place, _run_config(system, seed))
            done = _finished(job)
            if done is None:
                waiting.append(job)
            else:
                row.runs.append(done)
    comparison.save(markdown(comparison))
    _run_all(experiment, comparison, waiting, jobs)


def _run_config(system: Experiment, seed: int) -> dict[str, Any]:
    config = {**system.resolved, "seed": seed}
    config["trainer"] = {**config["trainer"], "progress_bar": False}  # it prints to a file
    return config


def _finished(job: _Job) -> SeedRun | None:
    """The run in a job's folder if it is finished; one of another config is put aside."""
    config, summary = job.folder / CONFIG, job.folder / METRICS
    if not config.is_file():
        return None
    if changed_keys(job.folder, job.config, _MAY_CHANGE):
        number = 1
        while (aside := job.folder.with_name(f"{job.folder.name}.{number}")).exists():
            number += 1
        job.folder.rename(aside)
        return None
    return _result(job) if summary.is_file() else None


def _result(job: _Job) -> SeedRun:
    found = json.loads((job.folder / METRICS).read_text(encoding="utf-8"))
    continued = any(job.folder.glob("metrics.*.csv"))  # its time is that of the last part
    seconds = None if continued else found["seconds"]
    return SeedRun(job.seed, job.folder, found["metrics"], seconds)


def _run_all(
    experiment: Experiment, comparison: Comparison, waiting: deque[_Job], jobs: int
) -> None:
    threads = max(1, torch.get_num_threads() // jobs) if jobs > 1 else None
    clock = _Clock(list(waiting))
    running: dict[Training, _Job] = {}
    with _progress(experiment, len(waiting)) as (progress, bar):
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    job = waiting.popleft()
                    running[_start(job, threads)] = job
                names = ", ".join(f"{job.row.label} seed {job.seed}" for job in running.values())
                progress.update(bar, description=f"training {names}", left=clock.left())
                time.sleep(_POLL)
                for training in [training for training in running if training.ended]:
                    job = running.pop(training)
                    clock.tick(job)
                    run = _record(comparison, job, training.error)
                    progress.advance(bar)
                    progress.console.print(_said(job.row.label, run), soft_wrap=True, markup=False)
        finally:
            for training in running:
                training.stop()


def _start(job: _Job, threads: int | None) -> Training:
    job.folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(job.config), sort_keys=False, allow_unicode=True)
    write_whole(job.folder / CONFIG, text)
    return Training(job.folder, threads)


def _record(comparison: Comparison, job: _Job, error: str | None) -> SeedRun:
    """Take what a process has left."""
    failed = SeedRun(job.seed, job.folder, None, None, error or "")
    run = failed if error else _result(job)
    job.row.runs.append(run)
    job.row.runs.sort(key=lambda run: comparison.seeds.index(run.seed))
    comparison.save(markdown(comparison))
    return run


def _said(label: str, run: SeedRun) -> str:
    """One line on a run that is over."""
    if run.metrics is None:
        return f"{label}, seed {run.seed}: failed, see {run.folder / LOG}"
    shown = (f"{k} {value_text(k, v)}" for k, v in run.metrics.items() if not k.endswith("/loss"))
    took = "" if run.seconds is None else f", {duration(run.seconds)}"
    return f"{label}, seed {run.seed}: {', '.join(shown)}{took}"


class _Clock:
    """Tells the time left, by how long a step of each system takes."""

    def __init__(self, jobs: Sequence[_Job]) -> None:
        self._started = time.monotonic()
        self._total = sum(map(self._weight, jobs))
        self._done = self._end = 0.0

    @staticmethod
    def _weight(job: _Job) -> float:
        steps = job.config["trainer"]["max_epochs"]
        return float(steps * job.row.cost.step_seconds) if job.row.cost else 0.0

    def tick(self, job: _Job) -> None:
        """One is over."""
        self._done += self._weight(job)
        now = time.monotonic()
        self._end = now + (now - self._started) * (self._total - self._done) / self._done

    def left(self) -> str:
        """``12 min left, ``; nothing before the first is over."""
        return f"{duration(max(self._end - time.monotonic(), 0))} left, " if self._done else ""


@contextmanager
def _progress(experiment: Experiment, total: int) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on standard error, so that it gets into no file that holds the table."""
    console = Console(stderr=True, highlight=False)
    progress = Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}{task.description}", markup=False),  # cut where it is long
        console=console,
        transient=True,
        disable=not (console.is_terminal and experiment.trainer.progress_bar and total),
    )
    with progress:
        yield progress, progress.add_task("", total=total, left="")
