"""Validate or test a trained model, and predict on new tables."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import pyarrow as pa
import torch
from torch import Tensor

from fusionkit.config.schema import Experiment
from fusionkit.config.validate import load_config
from fusionkit.data.base import Dataset, Samples
from fusionkit.data.loading import Loader, make_loader
from fusionkit.data.read import read_columns
from fusionkit.data.table import table_like
from fusionkit.data.write import check_output, check_types, write_table
from fusionkit.errors import CheckpointError, ConfigError, DataError
from fusionkit.training import checkpoint
from fusionkit.training.assemble import field_by_role, read_splits, role_inputs
from fusionkit.training.callbacks import ProgressBar, quiet
from fusionkit.training.precision import precision_of
from fusionkit.training.predictor import rebuild
from fusionkit.training.report import missing_lines
from fusionkit.training.task import FusionTask

_log = logging.getLogger("fusionkit")


def evaluate(
    ckpt_path: str,
    stage: Literal["validate", "test"],
    files: Sequence[str] = (),
    overrides: Sequence[tuple[str, str]] = (),
) -> dict[str, float]:
    """Metrics of a trained model on the validation or test split.

    Args:
        ckpt_path: Run folder or checkpoint file.
        stage: Which split.
        files: Config files merged over the checkpoint's config: other data, for example.
        overrides: Dotted keys and values, merged over that.

    Raises:
        DataError: The split is empty.
        CheckpointError: The classes of the data are not those of training.
    """
    description = checkpoint.describe(ckpt_path)
    experiment = load_config(files, overrides, start=(description.config, str(ckpt_path)))
    dataset: Dataset = experiment.data.build()
    split: Literal["val", "test"] = "val" if stage == "validate" else "test"
    samples = read_splits(experiment, dataset, [split])[split]
    if not samples:
        raise DataError(f"The {split} split is empty; there is nothing to {stage} on.")
    classes = None if dataset.classes is None else list(dataset.classes)
    if classes != description.classes:
        raise CheckpointError(
            f"{ckpt_path} predicts the classes {description.classes}, the data has {classes}. "
            f"State the checkpoint's classes in data.classes."
        )
    task = _task(ckpt_path, experiment, description)
    with quiet():
        fields = field_by_role(experiment, dataset)
        trainer, loader = _prepare(experiment, task, fields, samples)
        step = trainer.validate if stage == "validate" else trainer.test
        found = step(task, loader, verbose=False)
    for line in missing_lines(split, loader.dataset):
        _log.warning(line)
    _warn(loader, split)
    return {name: float(value) for name, value in found[0].items()}


def predict(
    ckpt_path: str,
    input: str,
    output: str,
    files: Sequence[str] = (),
    overrides: Sequence[tuple[str, str]] = (),
) -> Path:
    """Predict every row of a table and write the table with predictions beside its columns.

    ``prediction`` holds the class name (a list of names for multi-label, a number for
    regression), ``probability`` that of the predicted class, ``p(NAME)`` that of each class.

    Args:
        ckpt_path: Run folder or checkpoint file.
        input: A table file, as the data set ``table`` reads it, with the columns the model was
            trained on; no labels.
        output: A file of the same formats, by suffix.
        files: Config files merged over the checkpoint's config: where weights are now, say.
        overrides: Dotted keys and values, merged over that.

    Raises:
        DataError: The table lacks a column or holds an unreadable file.
    """
    check_output(output)  # before the work, not after
    if any(key == "missing.mask" for key, _ in overrides):
        raise ConfigError("predict takes no mask: leave the fields empty in the table instead.")
    description = checkpoint.describe(ckpt_path)
    experiment = load_config(files, overrides, start=(description.config, str(ckpt_path)))
    samples = table_like(experiment.data.build(), input).split("predict")
    table = read_columns(input)
    check_types(table.schema, output)
    task = _task(ckpt_path, experiment, description)
    with quiet():
        trainer, loader = _prepare(experiment, task, description.fields, samples)
        batches: Any = trainer.predict(task, loader)
    _warn(loader, "predict")
    order = torch.cat([index for index, _ in batches]).argsort()
    predicted = torch.cat([values for _, values in batches])[order]
    for name, column in prediction_columns(description, predicted).items():
        if name in table.column_names:
            table = table.drop_columns(name)
        table = table.append_column(name, pa.array(column))
    written = Path(output).expanduser()
    write_table(table, written)
    return written


def prediction_columns(
    description: checkpoint.Description, predicted: Tensor
) -> dict[str, list[Any]]:
    """Columns of a prediction table.

    Args:
        description: Of the checkpoint.
        predicted: (n, C) probabilities, or (n,) numbers.
    """
    classes = description.classes
    if classes is None:
        return {"prediction": predicted.tolist()}
    columns: dict[str, list[Any]] = {}
    if description.task == "single_label":
        best, index = predicted.max(dim=-1)
        columns["prediction"] = [classes[i] for i in index.tolist()]
        columns["probability"] = best.tolist()
    else:
        columns["prediction"] = [
            [name for name, chosen in zip(classes, row, strict=True) if chosen]
            for row in (predicted > 0.5).tolist()
        ]
    by_class = predicted.T.tolist()
    return columns | {f"p({name})": p for name, p in zip(classes, by_class, strict=True)}


def _warn(loader: Loader, split: str) -> None:
    for line in loader.dataset.unreadable.describe(split):
        _log.warning(line)


def _task(
    ckpt_path: str, experiment: Experiment, description: checkpoint.Description
) -> FusionTask:
    model = rebuild(ckpt_path, experiment, description)
    outputs = model.head.out_features
    return FusionTask(
        model,
        description.task,
        outputs,
        experiment.optimizer,
        description.frozen,
        experiment.trainer.compile,
    )


def _prepare(
    experiment: Experiment,
    task: FusionTask,
    fields: Mapping[str, str],
    samples: Samples,
) -> tuple[L.Trainer, Loader]:
    config = experiment.trainer
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=1,  # several would duplicate samples to fill their last batches
        precision=precision_of(config.precision, config.accelerator),  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=config.progress_bar,
        callbacks=[ProgressBar()] if config.progress_bar else [],
        default_root_dir=os.devnull,
    )
    loader = make_loader(
        samples,
        role_inputs(task.model, fields, train=False, missing=experiment.missing),
        task.task,
        task.model.head.out_features,
        experiment.loader,
        train=False,
        seed=experiment.seed,
    )
    return trainer, loader
