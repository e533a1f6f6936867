"""Make the runs of a sweep that are not there yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusionkit.compare.jobs import (
    Job,
    is_finished,
    progress_of,
    read_result,
    run_config,
    run_jobs,
)
from fusionkit.compare.measure import machine
from fusionkit.compare.results import SeedRun
from fusionkit.compare.run import run_line
from fusionkit.config.schema import Experiment
from fusionkit.data.folders import write_whole
from fusionkit.errors import FusionkitError
from fusionkit.sweep.grid import Grid, Point
from fusionkit.sweep.results import POINT, write_results
from fusionkit.training.assemble import dry_build
from fusionkit.training.checkpoint import library_versions
from fusionkit.training.parameters import count_parameters


@dataclass(frozen=True, slots=True)
class Counted:
    """A point that was built without its weights.

    Attributes:
        point: Which.
        trained: Number of trained parameters; None if it cannot be built.
        total: Number of all parameters.
        error: Why it cannot be built; empty if it can.
    """

    point: Point
    trained: int | None
    total: int | None
    error: str = ""


def count(grid: Grid) -> list[Counted]:
    """Build every point on no device, without weights and without data; each model once."""
    known: dict[str, tuple[int | None, int | None, str]] = {}
    found = []
    with progress_of(grid.progress_bar, len(grid.points)) as (progress, bar):
        for point in grid.points:
            progress.update(bar, description=f"building {point.name}")
            made = point.experiment
            parts = (made.main, made.main_transfer, made.complements, made.fusion, made.data)
            key = repr((*parts, made.missing))
            if key not in known:
                known[key] = _count(made)
            found.append(Counted(point, *known[key]))
            progress.advance(bar)
    return found


def _count(experiment: Experiment) -> tuple[int | None, int | None, str]:
    try:
        counts = count_parameters(dry_build(experiment)[0])
    except FusionkitError as error:
        return None, None, str(error)
    return sum(c.trained for c in counts), sum(c.total for c in counts), ""


def run_sweep(
    grid: Grid, shard: tuple[int, int] = (1, 1), jobs: int | None = None
) -> tuple[int, list[str]]:
    """Train every point with every seed; what is finished under the same config is not repeated.

    Runs are in ``folder/POINT/seed-S``. A run that fails is noted there, and the rest goes on.

    Args:
        grid: What to run.
        shard: (i, n): of every n runs, the i-th; counted from 1.
        jobs: Runs at a time, see :func:`fusionkit.compare.jobs.run_jobs`.

    Returns:
        How many were made now, and the lines of those that failed.

    Raises:
        KeyboardInterrupt: It was interrupted; call it again to go on.
    """
    todo, points = [], {}
    for job, point, seed in _shard(_jobs(grid), shard):
        points[job.name] = point, seed
        if is_finished(job):
            _renew(job.folder, point, seed)
        else:
            todo.append(job)
    failed: list[str] = []

    def ended(job: Job, error: str | None) -> str:
        point, seed = points[job.name]
        _note(job.folder, point, seed, error)
        write_results(grid.folder)
        metrics, seconds = (None, None) if error else read_result(job.folder)
        line = run_line(job.name, SeedRun(seed, job.folder, metrics, seconds, error or ""))
        if error:
            failed.append(f"{job.name}: {error}")
        return line

    for job in todo:  # before it starts, so that one that is killed is known as well
        _note(job.folder, *points[job.name], None)
    run_jobs(todo, jobs, grid.progress_bar, ended)
    write_results(grid.folder)
    return len(todo), failed


def _jobs(grid: Grid) -> list[tuple[Job, Point, int]]:
    """All points with one seed first: that is a table already."""
    return [
        (
            Job(
                f"{point.name}, seed {seed}",
                grid.folder / point.folder / f"seed-{seed}",
                run_config(point.experiment, seed),
                float(point.experiment.trainer.max_epochs),
            ),
            point,
            seed,
        )
        for seed in grid.seeds
        for point in grid.points
    ]


def _shard(jobs: Sequence[Any], shard: tuple[int, int]) -> Sequence[Any]:
    number, of = shard
    return jobs[number - 1 :: of]


def _note(folder: Path, point: Point, seed: int, error: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        "machine": machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "versions": library_versions(),
    }
    _write_note(folder, point, seed, error, environment)


def _renew(folder: Path, point: Point, seed: int) -> None:
    """Note where a finished run is in a grid that may have grown since; where it ran, stays."""
    note = folder / POINT
    before = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    _write_note(folder, point, seed, None, before.get("environment", {}))


def _write_note(
    folder: Path, point: Point, seed: int, error: str | None, environment: Mapping[str, Any]
) -> None:
    about = {
        "place": point.place,
        "labels": dict(point.labels),
        "values": dict(point.values),
        "seed": seed,
        "error": error,
        "environment": environment,
    }
    write_whole(folder / POINT, json.dumps(about, indent=2) + "\n")
