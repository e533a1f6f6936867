"""Train an experiment and say what came of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console

from fusionkit.config.schema import Experiment
from fusionkit.data.base import Dataset
from fusionkit.data.loading import make_loader
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.fusion.model import FusionModel, RegressionHead
from fusionkit.training import checkpoint
from fusionkit.training.assemble import build_model, field_by_role, role_inputs
from fusionkit.training.callbacks import ProgressBar, SaveBest, SeedEpochs, quiet
from fusionkit.training.folders import RESUME, new_folder, resume_folder
from fusionkit.training.metrics import LESS_IS_BETTER, MONITOR, make_metrics
from fusionkit.training.parameters import count_parameters
from fusionkit.training.report import ResultRow, console, parameter_table, results_table
from fusionkit.training.task import FusionTask, read_lightning_checkpoint


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
    """
    parent = Path(experiment.output) / experiment.name
    folder = new_folder(parent) if ckpt_path is None else resume_folder(parent, ckpt_path)
    out = console() if _is_first_process() else None
    result = _run(experiment, folder, out, resume=ckpt_path is not None)
    results = {experiment.name: result}
    for label, baseline in experiment.baselines.items():
        if out:
            out.print(f"Baseline: {label}")
        place = folder / "baselines" / label.replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        results[label] = _run(baseline, place, None, resume=(place / RESUME).is_file())
    if out:
        out.print(
            results_table(
                [
                    ResultRow(label, run.metrics, run.trained, run.total, run.seconds)
                    for label, run in results.items()
                ]
            )
        )
        _print_places(out, result)
    return result


def _run(experiment: Experiment, folder: Path, out: Console | None, resume: bool) -> RunResult:
    started = time.monotonic()
    dataset: Dataset = experiment.data.build()
    fields = field_by_role(experiment, dataset)
    splits = {name: dataset.split(name) for name in ("train", "val", "test")}
    if not splits["train"]:
        raise DataError(
            "The training split is empty; check the data node's files and split column."
        )
    L.seed_everything(experiment.seed, workers=True, verbose=False)
    model = build_model(experiment, dataset.outputs, dataset.task == "regression")
    if isinstance(model.head, RegressionHead):
        model.head.fit_scale(torch.tensor([sample.target for sample in splits["train"]]))
    counts = count_parameters(model)
    loaders = {
        name: make_loader(
            samples,
            role_inputs(model, fields, train=name == "train"),
            dataset.task,
            dataset.outputs,
            experiment.loader,
            train=name == "train",
            seed=experiment.seed,
        )
        for name, samples in splits.items()
        if samples
    }
    if out:
        out.print(parameter_table(counts))
        sizes = ", ".join(f"{len(samples):,} {name}" for name, samples in splits.items())
        out.print(f"Samples: {sizes}. Files go to {folder}\n", soft_wrap=True)
    if _is_first_process():
        (folder / "config.yaml").write_text(
            yaml.safe_dump(dict(experiment.resolved), sort_keys=False, allow_unicode=True)
        )
    task = FusionTask(model, dataset.task, dataset.outputs, experiment.optimizer)
    monitor = _monitor(experiment, dataset) if "val" in loaders else None
    best = SaveBest(
        folder / checkpoint.FILE_NAME, monitor, _describer(experiment, dataset, fields, model)
    )
    with quiet():
        trainer = make_trainer(experiment, folder, monitor, [best])
    resume_from = str(folder / RESUME) if resume else None
    if resume_from:
        read_lightning_checkpoint(resume_from)
    with quiet():
        trainer.fit(task, loaders["train"], loaders.get("val"), ckpt_path=resume_from)
        if trainer.interrupted:
            raise KeyboardInterrupt
        checkpoint.load_into(model, folder)
        metrics = _test(trainer, task, loaders)
    seconds = time.monotonic() - started
    trained, total = sum(c.trained for c in counts), sum(c.total for c in counts)
    if trainer.is_global_zero:
        summary = {
            "metrics": metrics,
            "best_epoch": best.best_epoch,
            "monitor": monitor,
            "trained_parameters": trained,
            "all_parameters": total,
            "seconds": round(seconds, 1),
        }
        (folder / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
    return RunResult(folder, metrics, trained, total, seconds)


def _test(trainer: L.Trainer, task: FusionTask, loaders: Mapping[str, Any]) -> dict[str, float]:
    if "test" in loaders:
        found = trainer.test(task, loaders["test"], verbose=False)
    elif "val" in loaders:
        found = trainer.validate(task, loaders["val"], verbose=False)
    else:
        return {}
    return {name: float(value) for name, value in found[0].items()}


def make_trainer(
    experiment: Experiment, folder: Path, monitor: str | None, callbacks: list[Callback]
) -> L.Trainer:
    """Lightning's Trainer for an experiment.

    Args:
        experiment: Its trainer section counts.
        folder: Where logs and checkpoints go.
        monitor: Validation metric for early stopping.
        callbacks: Further ones.

    Raises:
        ConfigError: Early stopping without a validation split.
    """
    config = experiment.trainer
    callbacks = [
        ModelCheckpoint(folder, filename="last", save_top_k=1, enable_version_counter=False),
        LearningRateMonitor(),
        SeedEpochs(experiment.seed),
        *callbacks,
    ]
    if config.progress_bar:
        callbacks.append(ProgressBar(monitor))
    if config.early_stopping is not None:
        if monitor is None:
            raise ConfigError("trainer.early_stopping needs a validation split; there is none.")
        mode = "min" if monitor.rpartition("/")[2] in LESS_IS_BETTER else "max"
        callbacks.append(EarlyStopping(monitor, patience=config.early_stopping, mode=mode))
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        precision=precision_of(config.precision, config.accelerator),  # type: ignore[arg-type]
        max_epochs=config.max_epochs,
        accumulate_grad_batches=config.accumulate_grad_batches,
        gradient_clip_val=config.gradient_clip_val,
        limit_train_batches=config.limit_train_batches,
        limit_val_batches=config.limit_val_batches,
        limit_test_batches=config.limit_test_batches,
        log_every_n_steps=config.log_every_n_steps,
        deterministic=config.deterministic,
        enable_progress_bar=config.progress_bar,
        enable_model_summary=False,  # the parameter table says more
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=[
            CSVLogger(folder, name="", version=""),
            TensorBoardLogger(folder, name="", version="tensorboard"),
        ],
    )


def precision_of(asked: str, accelerator: str) -> str:
    """Lightning's name of the precision; auto is bf16-mixed on a GPU that has it."""
    if asked != "auto":
        return asked
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def _monitor(experiment: Experiment, dataset: Dataset) -> str:
    """The validation metric that picks the best epoch.

    Raises:
        ConfigError: The one asked for does not exist.
    """
    known = ["val/loss", *make_metrics(dataset.task, dataset.outputs, "val/").keys()]
    asked = experiment.trainer.monitor
    if asked is None:
        return MONITOR[dataset.task]
    if asked not in known:
        raise ConfigError(
            f"trainer.monitor: no metric {asked!r}.{suggest(asked, known)} "
            f"A {dataset.task} task has: {', '.join(known)}."
        )
    return asked


def _describer(
    experiment: Experiment, dataset: Dataset, fields: Mapping[str, str], model: FusionModel
) -> Any:
    classes = None if dataset.classes is None else list(dataset.classes)
    blank = checkpoint.Description(
        config=experiment.resolved,
        task=dataset.task,
        classes=classes,
        fields=fields,
        frozen=checkpoint.frozen_hashes(model),
        metrics={},
        epoch=0,
        versions=checkpoint.library_versions(),
    )
    return lambda metrics, epoch: replace(blank, metrics=metrics, epoch=epoch)


def _is_first_process() -> bool:
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


def _print_places(out: Any, result: RunResult) -> None:
    out.print(f"In {result.folder}:", soft_wrap=True)
    for name, what in (
        (checkpoint.FILE_NAME, "the trained weights of the best epoch, and the config"),
        ("metrics.json", "test metrics"),
        ("metrics.csv", "metrics by step and epoch; tensorboard/ has the same"),
        (RESUME, "to continue: fusionkit fit ... --ckpt_path last"),
    ):
        out.print(f"  {name:18} {what}")
    command = (
        f"fusionkit predict --ckpt_path {result.folder} --input TABLE --output predictions.csv"
    )
    out.print(f"Predict: {command}", soft_wrap=True)
