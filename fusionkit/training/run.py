"""Train an experiment and say what came of it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning as L
import torch
import yaml
from rich.console import Console

from fusionkit.cache.fill import Filled, StoredSplits, fill
from fusionkit.config.schema import Experiment
from fusionkit.data.base import Dataset, Samples
from fusionkit.data.folders import write_whole
from fusionkit.data.loading import Loader, make_loader
from fusionkit.data.missing import targets_of
from fusionkit.fusion.model import FusionModel
from fusionkit.training import checkpoint
from fusionkit.training.assemble import (
    build_model,
    check_presence,
    check_trainable,
    dry_build,
    field_by_role,
    read_splits,
    role_inputs,
)
from fusionkit.training.augmentation import augmentation_text, with_augmentation
from fusionkit.training.callbacks import SaveBest, StopWithoutValues, quiet
from fusionkit.training.folders import (
    CONFIG,
    METRICS,
    RESUME,
    check_same_config,
    is_first_process,
    keep_metrics,
    label_folders,
    new_folder,
    resume_folder,
)
from fusionkit.training.parameters import count_parameters
from fusionkit.training.profile import FILE as PROFILE, WARM_UP, StepProfiler, profile_table
from fusionkit.training.report import (
    ResultRow,
    console,
    missing_lines,
    padding_line,
    parameter_table,
    results_table,
    size_text,
)
from fusionkit.training.routing import FILE as ROUTING, RecordRouting
from fusionkit.training.samples import FILE as SAMPLES, KeepSamples
from fusionkit.training.statistics import fit_statistics, start_from_samples
from fusionkit.training.streams import check_shared
from fusionkit.training.task import FusionTask, read_lightning_checkpoint
from fusionkit.training.trainer import make_trainer, monitored

_log = logging.getLogger("fusionkit")

ReadData = dict[str, tuple[Dataset, dict[str, Samples]]]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a finished run leaves.

    Attributes:
        folder: Where its files are.
        metrics: Test metrics of the best epoch's weights; of validation if there is no test split.
        trained: Number of trained parameters.
        total: Number of all parameters.
        seconds: Of training and testing.
    """

    folder: Path
    metrics: Mapping[str, float]
    trained: int
    total: int
    seconds: float


def fit(experiment: Experiment, ckpt_path: str | None = None) -> RunResult:
    """Train an experiment and its baselines, test the best weights of each, print a table.

    Args:
        experiment: What to train.
        ckpt_path: ``last``, or the run folder to continue in; None starts a new run.

    Raises:
        FusionkitError: See the rooms this walks through; nothing that was written is lost.
        KeyboardInterrupt: It was interrupted; the run can be continued.
    """
    parent = Path(experiment.output) / experiment.name
    places = label_folders(experiment.baselines, "baselines")
    data: ReadData = {}
    for baseline in experiment.baselines.values():  # wrong ones are named before the main run
        model, _, fields = dry_build(baseline)
        check_presence(baseline, model, fields, read_data(baseline, data)[1])
    out = console() if is_first_process() else None
    if ckpt_path is None:
        result = _run(experiment, data, lambda: new_folder(parent), out, resume=False)
    else:
        folder = resume_folder(parent, ckpt_path)
        check_same_config(folder, experiment.resolved)
        result = _run(experiment, data, lambda: folder, out, resume=True)
    rows = [_row(experiment.name, result)]
    for label, baseline in experiment.baselines.items():
        if out:
            out.print(f"Baseline: {label}")
        place = result.folder / "baselines" / places[label]
        place.mkdir(parents=True, exist_ok=True)
        again = (place / RESUME).is_file()
        rows.append(_row(label, _run(baseline, data, lambda p=place: p, None, again)))  # type: ignore[misc]
    if out:
        out.print(results_table(rows))
        _print_places(out, result)
    return result


def fit_in(experiment: Experiment, folder: Path) -> RunResult:
    """Train and test one experiment, without baselines, in a folder of its own.

    What an earlier process has begun there is continued.

    Raises:
        FusionkitError: As :func:`fit`.
    """
    resume = (folder / RESUME).is_file()
    return _run(experiment, {}, lambda: folder, console() if is_first_process() else None, resume)


def fill_cache(experiment: Experiment, dry_run: bool, out: Console | None) -> list[Filled]:
    """Compute what the config's ``cache`` asks for, and train nothing.

    Args:
        experiment: Its ``cache`` section counts.
        dry_run: Compute one batch only, and keep nothing.
        out: Where it is said what goes on; None for nowhere.

    Raises:
        FusionkitError: See :func:`fusionkit.cache.fill.fill`.
    """
    dataset, splits, model, fields = prepare(experiment, {})
    return fill(experiment, dataset, model, fields, splits, out, dry_run)[1]


def _row(label: str, result: RunResult) -> ResultRow:
    return ResultRow(label, result.metrics, result.trained, result.total, result.seconds)


def _run(
    experiment: Experiment,
    data: ReadData,
    place: Callable[[], Path],
    out: Console | None,
    resume: bool,
) -> RunResult:
    """Train and test one experiment; ``place`` makes its folder once it could be built."""
    started = time.monotonic()
    dataset, splits, model, fields = prepare(
        experiment, data, statistics=not resume or bool(experiment.cache.roles)
    )
    stored, _ = fill(experiment, dataset, model, fields, splits, out)
    if not resume:
        start_from_samples(experiment, model, splits["train"], fields)
    loaders = make_loaders(experiment, dataset, splits, model, fields, stored)
    monitor = monitored(experiment, dataset) if "val" in loaders else None
    frozen = checkpoint.frozen_hashes(model)  # once: it reads every frozen weight
    task = FusionTask(
        model,
        dataset.task,
        dataset.outputs,
        experiment.optimizer,
        frozen,
        experiment.trainer.compile,
    )
    described = checkpoint.Description(
        config=experiment.resolved,
        task=dataset.task,
        classes=None if dataset.classes is None else list(dataset.classes),
        fields=fields,
        frozen=frozen,
        metrics={},
        epoch=0,
        versions=checkpoint.library_versions(),
    )
    counts = count_parameters(model)
    folder = place()
    best = SaveBest(
        folder / checkpoint.FILE_NAME,
        monitor,
        lambda metrics, epoch: replace(described, metrics=metrics, epoch=epoch),
    )
    profiler = StepProfiler() if experiment.trainer.profile else None
    watching = [best, StopWithoutValues(), RecordRouting(folder), KeepSamples(folder)]
    trainer = make_trainer(experiment, folder, monitor, watching, profiler)
    check_shared(trainer.world_size, splits["train"])
    if out:
        out.print(parameter_table(counts))
        if text := augmentation_text(experiment, dataset):
            out.print(f"Augmentation: {text}.", soft_wrap=True)
        _print_data(out, splits, loaders, folder)
        if experiment.trainer.compile:
            out.print("The model is compiled at its first batches, which takes its time.")
    if is_first_process():
        if resume:
            read_lightning_checkpoint(str(folder / RESUME))
            keep_metrics(folder)
        text = yaml.safe_dump(dict(experiment.resolved), sort_keys=False, allow_unicode=True)
        write_whole(folder / CONFIG, text)
    with quiet():
        with profiler.watch(model) if profiler else nullcontext():
            _train(trainer, task, loaders, str(folder / RESUME) if resume else None)
        trainer.strategy.barrier()  # the first process has written the best weights
        checkpoint.load_into(model, folder, frozen)
        metrics = _test(trainer, task, loaders)
    for name, loader in loaders.items():
        _warn_of_unreadable(trainer, name, loader)
    trained, total = sum(c.trained for c in counts), sum(c.total for c in counts)
    result = RunResult(folder, metrics, trained, total, time.monotonic() - started)
    if trainer.is_global_zero:
        _write_summary(result, best, monitor)
        if profiler:
            _report_profile(profiler, folder, out)
    return result


def prepare(
    experiment: Experiment, data: ReadData, statistics: bool = True
) -> tuple[Dataset, dict[str, Samples], FusionModel, dict[str, str]]:
    """Data set, splits, the model as training starts with it, and the field of each role.

    Args:
        experiment: What to build; its seed is set.
        data: Holds the data sets that earlier experiments have read.
        statistics: Whether encoders are shown the training split. A checkpoint holds what they
            saw, but a cache is filled before it is loaded.
    """
    dataset, splits = read_data(experiment, data)
    fields = field_by_role(experiment, dataset)
    settled = with_augmentation(experiment, dataset)
    L.seed_everything(experiment.seed, workers=True, verbose=False)
    model = build_model(settled, dataset.outputs, dataset.task == "regression")
    if dataset.task == "regression":
        model.fit_scale(torch.tensor(targets_of(splits["train"]), dtype=torch.float))
    if statistics:
        for role, transfer in model.fusion.encoders.items():
            fit_statistics(
                transfer.encoder,
                splits["train"],
                fields[role],
                experiment.missing.unreadable and role in model.fusion.stand_ins,
            )
    return dataset, splits, model, fields


def read_data(experiment: Experiment, data: ReadData) -> tuple[Dataset, dict[str, Samples]]:
    """The data set and its splits; ``data`` holds those that an earlier experiment has read."""
    loader = experiment.loader
    shots = (experiment.seed, loader.shots, loader.shots_per_class)
    key = repr((experiment.data, experiment.missing.mask, shots if any(shots[1:]) else None))
    if key not in data:
        dataset: Dataset = experiment.data.build()
        data[key] = dataset, _splits(experiment, dataset)
    return data[key]


def _splits(experiment: Experiment, dataset: Dataset) -> dict[str, Samples]:
    splits = read_splits(experiment, dataset, ("train", "val", "test"))
    check_trainable(dataset, splits["train"])
    return splits


def make_loaders(
    experiment: Experiment,
    dataset: Dataset,
    splits: Mapping[str, Any],
    model: FusionModel,
    fields: Mapping[str, str],
    stored: StoredSplits = MappingProxyType({}),
) -> dict[str, Loader]:
    """Batches of each split that has samples; ``stored`` stands for the raw values of its roles."""
    return {
        name: make_loader(
            samples,
            role_inputs(
                model,
                fields,
                name == "train",
                experiment.missing,
                {role: rows[name] for role, rows in stored.items()},
            ),
            dataset.task,
            dataset.outputs,
            experiment.loader,
            train=name == "train",
            seed=experiment.seed,
            shared=True,
        )
        for name, samples in splits.items()
        if samples
    }


def _train(
    trainer: L.Trainer, task: FusionTask, loaders: Mapping[str, Any], resume_from: str | None
) -> None:
    try:
        trainer.fit(task, loaders["train"], loaders.get("val"), ckpt_path=resume_from)
    except SystemExit:  # Lightning's way to end on Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def _test(trainer: L.Trainer, task: FusionTask, loaders: Mapping[str, Any]) -> dict[str, float]:
    if "test" in loaders:
        found = trainer.test(task, loaders["test"], verbose=False)
    elif "val" in loaders:
        found = trainer.validate(task, loaders["val"], verbose=False)
    else:
        return {}
    return {name: float(value) for name, value in found[0].items()}


def _warn_of_unreadable(trainer: L.Trainer, split: str, loader: Loader) -> None:
    """Say what could not be read, in any process."""
    found = loader.dataset.unreadable
    if trainer.world_size > 1:
        shared: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(shared, found.origins)
        for origins in shared:
            found.merge(origins)
    if trainer.is_global_zero:
        for line in found.describe(split):
            _log.warning(line)


def _write_summary(result: RunResult, best: SaveBest, monitor: str | None) -> None:
    summary = {
        "metrics": dict(result.metrics),
        "best_epoch": best.best_epoch,
        "monitor": monitor,
        "trained_parameters": result.trained,
        "all_parameters": result.total,
        "seconds": round(result.seconds, 1),
    }
    write_whole(result.folder / METRICS, json.dumps(summary, indent=2) + "\n")


def _report_profile(profiler: StepProfiler, folder: Path, out: Console | None) -> None:
    seconds, steps = profiler.seconds(), max(len(profiler.steps) - WARM_UP, 0)
    written = {"steps": steps, "seconds": seconds}
    write_whole(folder / PROFILE, json.dumps(written, indent=2) + "\n")
    if out and not seconds:
        out.print(f"No profile: fewer than {WARM_UP + 1} steps were trained.")
    elif out:
        out.print(profile_table(seconds, steps))


def _print_data(
    out: Console, splits: Mapping[str, Samples], loaders: Mapping[str, Loader], folder: Path
) -> None:
    sizes = ", ".join(size_text(name, samples) for name, samples in splits.items())
    out.print(f"Samples: {sizes}. Files go to {folder}\n", soft_wrap=True)
    for name, loader in loaders.items():
        for line in missing_lines(name, loader.dataset):
            out.print(line)
    if padding := padding_line(loaders["train"]):
        out.print(padding, soft_wrap=True)


def _print_places(out: Console, result: RunResult) -> None:
    out.print(f"In {result.folder}:", soft_wrap=True)
    for name, what in (
        (checkpoint.FILE_NAME, "the trained weights of the best epoch, and the config"),
        (METRICS, "test metrics"),
        ("metrics.csv", "metrics by step and epoch; tensorboard/ has the same"),
        (RESUME, "to continue: fusionkit fit ... --ckpt_path last"),
        (SAMPLES, "what the best weights say of each test sample"),
        (ROUTING, "which experts were used, by epoch and layer"),
        (PROFILE, "seconds of a training step by part"),
    ):
        if (result.folder / name).is_file():
            out.print(f"  {name:18} {what}")
    command = (
        f"fusionkit predict --ckpt_path {result.folder} --input TABLE --output predictions.csv"
    )
    out.print(f"Predict: {command}", soft_wrap=True)
    out.print(f"See it:  fusionkit report {result.folder}", soft_wrap=True)
