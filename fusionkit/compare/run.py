"""Set systems side by side: what each costs, and what each learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fusionkit.compare.apart import LOG, Failure, measure, preload
from fusionkit.compare.jobs import (
    Job,
    is_finished,
    progress_of,
    read_result,
    run_config,
    run_jobs,
)
from fusionkit.compare.results import Comparison, SeedRun, SystemRow
from fusionkit.compare.tables import duration, markdown
from fusionkit.config.schema import Experiment
from fusionkit.errors import ConfigError, FusionkitError
from fusionkit.training.assemble import dry_build
from fusionkit.training.folders import label_folders
from fusionkit.training.parameters import count_parameters
from fusionkit.training.report import value_text


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
    with progress_of(experiment.trainer.progress_bar, len(todo)) as (progress, bar):
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
    waiting: dict[str, tuple[Job, SystemRow, int]] = {}
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
            weight = system.trainer.max_epochs * row.cost.step_seconds
            label = f"{row.label} seed {seed}"
            job = Job(label, place, run_config(system, seed), weight)
            if is_finished(job):
                row.runs.append(SeedRun(seed, place, *read_result(place)))
            else:
                waiting[label] = job, row, seed
    comparison.save(markdown(comparison))

    def ended(job: Job, error: str | None) -> str:
        _, row, seed = waiting[job.name]
        metrics, seconds = (None, None) if error else read_result(job.folder)
        run = SeedRun(seed, job.folder, metrics, seconds, error or "")
        row.runs.append(run)
        row.runs.sort(key=lambda run: comparison.seeds.index(run.seed))
        comparison.save(markdown(comparison))
        return run_line(f"{row.label}, seed {seed}", run)

    run_jobs([job for job, *_ in waiting.values()], jobs, experiment.trainer.progress_bar, ended)


def run_line(name: str, run: SeedRun) -> str:
    """One line on a run that is over."""
    if run.metrics is None:
        return f"{name}: failed, see {run.folder / LOG}"
    shown = (f"{k} {value_text(k, v)}" for k, v in run.metrics.items() if not k.endswith("/loss"))
    took = "" if run.seconds is None else f", {duration(run.seconds)}"
    return f"{name}: {', '.join(shown)}{took}"
