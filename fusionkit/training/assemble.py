"""From a validated experiment to a model and the inputs of its encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fusionkit.config.schema import Experiment, MissingConfig
from fusionkit.data.base import Dataset, Samples, Split, Stream
from fusionkit.data.loading import RoleInput, pick_field
from fusionkit.data.masks import read_mask
from fusionkit.data.missing import blank_of, count_missing
from fusionkit.encoders.base import MainEncoder
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import Fusion, role_names
from fusionkit.fusion.model import FusionModel
from fusionkit.registry import load
from fusionkit.training.augmentation import with_augmentation
from fusionkit.training.optimizer import learning_rates


def field_by_role(experiment: Experiment, dataset: Dataset) -> dict[str, str]:
    """The field each encoder reads, known before any encoder is built.

    Raises:
        ConfigError: No field, or several, of an encoder's modality; or the one that was asked for
            does not exist or has another modality.
    """
    encoders = [("main_encoder", experiment.main, experiment.main_field)] + [
        ("complement_encoder", complement.encoder, complement.field)
        for complement in experiment.complements
    ]
    fields = {}
    for role, (_, component, asked) in zip(
        role_names(len(experiment.complements)), encoders, strict=True
    ):
        modality = load(component.kind, component.name).modality
        fields[role] = pick_field(dataset.fields, modality, asked, f"{role} {component.name!r}")
    return fields


def build_model(experiment: Experiment, outputs: int, regression: bool = False) -> FusionModel:
    """The model of an experiment, with its pretrained weights (none on the meta device).

    Args:
        experiment: What to build.
        outputs: Number of classes, or 1 for regression.
        regression: Whether the head predicts a number.

    Raises:
        ConfigError: An encoder whose layers run for every sample may lack its field and cannot.
    """
    main = experiment.main_transfer.build(experiment.main.build())
    complements = [
        complement.transfer.build(complement.encoder.build())
        for complement in experiment.complements
    ]
    fusion: Fusion = experiment.fusion.build(main, complements)
    model = FusionModel(fusion, outputs, regression)
    fusion.allow_missing(experiment.missing.allow)
    for role, transfer in {"main": fusion.main, **fusion.complements}.items():
        if role in fusion.stand_ins and role in fusion.runs_layers_of:
            blank_of(transfer.encoder.modality, role)
    if experiment.trainer.gradient_checkpointing:
        for module in fusion.modules():  # not the roles' own only: a video encoder holds another
            if isinstance(module, MainEncoder):
                module.gradient_checkpointing = True
    return model


def dry_build(experiment: Experiment) -> tuple[FusionModel, Dataset, dict[str, str]]:
    """The model without weights (on the meta device), the data set, and the field of each role.

    Raises:
        FusionkitError: The experiment cannot be built.
    """
    dataset: Dataset = experiment.data.build()
    fields = field_by_role(experiment, dataset)
    outputs = dataset.outputs
    with torch.device("meta"):
        settled = with_augmentation(experiment, dataset)
        model = build_model(settled, outputs, dataset.task == "regression")
    learning_rates(model, experiment.optimizer)  # raises for groups that the model does not have
    return model, dataset, fields


def read_splits(
    experiment: Experiment, dataset: Dataset, names: Sequence[Split]
) -> dict[str, Samples]:
    """Splits of a data set, without what the experiment's mask takes away.

    Raises:
        ConfigError: See :func:`check_stream`.
        DataError: A split or the mask cannot be read, or they do not fit each other.
    """
    splits: dict[str, Samples] = {name: dataset.split(name) for name in names}
    for name, samples in splits.items():
        if isinstance(samples, Stream):
            check_stream(experiment, name, samples)
    if experiment.missing.mask is None:
        return splits
    mask = read_mask(experiment.missing.mask, dataset.fields)
    return {
        name: samples if isinstance(samples, Stream) else mask.apply(name, samples)
        for name, samples in splits.items()
    }


def check_stream(experiment: Experiment, name: str, stream: Stream) -> None:
    """Check that an experiment asks nothing of a stream that only counted samples can give.

    Raises:
        ConfigError: It does.
    """
    config, train = experiment.trainer, name == "train"
    limit = {
        "train": config.limit_train_batches,
        "val": config.limit_val_batches,
        "test": config.limit_test_batches,
    }[name]
    counted = (train and stream.length is not None) or isinstance(limit, int)
    count = f"set data.samples_per_epoch, or trainer.limit_{name}_batches to a number of batches"
    wrong = [
        (
            experiment.missing.mask is not None,
            "missing.mask: a mask numbers the samples of a split, and a stream has no numbers; "
            "write shards that lack the fields.",
        ),
        (
            train and experiment.optimizer.schedule == "cosine" and not counted,
            f"optimizer.schedule: cosine has to know how long training is, and nobody knows how "
            f"many samples this stream has; {count}, or take the schedule step.",
        ),
        (
            isinstance(limit, float) and limit < 1 and not counted,
            f"trainer.limit_{name}_batches: {limit} is a share of samples that nobody has counted; "
            f"give a number of batches.",
        ),
    ]
    for found, message in wrong:
        if found:
            raise ConfigError(message)


def check_presence(
    experiment: Experiment,
    model: FusionModel,
    fields: Mapping[str, str],
    splits: Mapping[str, Samples],
) -> None:
    """Check that samples lack no field that they may not lack, without any encoder's weights.

    Raises:
        DataError: One does.
    """
    used = {role: fields[role] for role in model.fusion.encoders}
    for samples in splits.values():
        count_missing(samples, used, experiment.missing.allow)


def role_inputs(
    model: FusionModel, fields: Mapping[str, str], train: bool, missing: MissingConfig
) -> list[RoleInput]:
    """How the samples of a split reach the encoders that the fusion uses."""
    fusion = model.fusion
    return [
        RoleInput(
            role,
            fields[role],
            transfer.encoder.preprocessor(train),
            may_lack := role in fusion.stand_ins,
            # Other encoders run only for samples that have the field.
            blank_of(transfer.encoder.modality, role)
            if may_lack and role in fusion.runs_layers_of
            else None,
            missing.unreadable and may_lack,
            missing.dropout_of(role) if may_lack else 0.0,
        )
        for role, transfer in {"main": fusion.main, **fusion.complements}.items()
    ]
