"""Lightning's Trainer as an experiment asks for it."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.profilers import Profiler

from fusionkit.config.schema import Experiment
from fusionkit.data.base import Dataset
from fusionkit.errors import ConfigError, suggest
from fusionkit.training.callbacks import ProgressBar, SaveLast, SeedSteps, quiet
from fusionkit.training.folders import RESUME
from fusionkit.training.metrics import LESS_IS_BETTER, MONITOR, make_metrics
from fusionkit.training.precision import precision_of


def make_trainer(
    experiment: Experiment,
    folder: Path,
    monitor: str | None,
    callbacks: list[Callback],
    profiler: Profiler | None = None,
) -> L.Trainer:
    """Lightning's Trainer for an experiment.

    Args:
        experiment: Its trainer section counts.
        folder: Where logs and checkpoints go.
        monitor: Validation metric to watch; None if there is no validation.
        callbacks: Further ones.
        profiler: Times what Lightning does; None for nobody.

    Raises:
        ConfigError: Lightning refuses the settings, or early stopping has nothing to watch.
    """
    config = experiment.trainer
    callbacks = [
        SaveLast(folder / RESUME, config.save_every_n_steps),
        LearningRateMonitor(),
        SeedSteps(experiment.seed),
        *callbacks,
    ]
    if config.progress_bar:
        callbacks.append(ProgressBar(monitor))
    if config.early_stopping is not None:
        if monitor is None:
            raise ConfigError("trainer.early_stopping needs a validation split; there is none.")
        mode = "min" if monitor.rpartition("/")[2] in LESS_IS_BETTER else "max"
        callbacks.append(EarlyStopping(monitor, patience=config.early_stopping, mode=mode))
    try:
        with quiet():
            return L.Trainer(
                accelerator=config.accelerator,
                devices=config.devices,
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
                use_distributed_sampler=False,  # the loaders share batches among processes
                callbacks=callbacks,
                profiler=profiler,
                logger=[
                    CSVLogger(folder, name="", version=""),
                    TensorBoardLogger(folder, name="", version="tensorboard"),
                ],
            )
    except (MisconfigurationException, ValueError) as error:
        raise ConfigError(f"trainer: {error}") from error


def monitored(experiment: Experiment, dataset: Dataset) -> str:
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
