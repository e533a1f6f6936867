"""From a validated experiment to a model and the inputs of its encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

from fusionkit.cache.plan import make_plans
from fusionkit.config.schema import Experiment, MissingConfig
from fusionkit.data.base import Dataset, Samples, Split, Stream
from fusionkit.data.fields import pick_field
from fusionkit.data.masks import read_mask
from fusionkit.data.missing import blank_of, count_missing
from fusionkit.data.subsets import few_shots
from fusionkit.data.values import RoleInput, Stored
from fusionkit.encoders.base import MainEncoder
from fusionkit.errors import DataError
from fusionkit.fusion.base import Fusion, role_names
from fusionkit.fusion.model import FusionModel
from fusionkit.registry import load
from fusionkit.training.augmentation import with_augmentation
from fusionkit.training.optimizer import learning_rates
from fusionkit.training.streams import check_stream


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
    settled = with_augmentation(experiment, dataset)
    model = meta_model(settled, dataset.outputs, dataset.task == "regression")
    return model, dataset, fields


def meta_model(experiment: Experiment, outputs: int, regression: bool = False) -> FusionModel:
    """As :func:`build_model`, on the meta device: without weights.

    Raises:
        FusionkitError: The model cannot be built, or learning rates are set for groups that it
            does not have.
    """
    with torch.device("meta"):
        model = build_model(experiment, outputs, regression)
    learning_rates(model, experiment.optimizer)  # raises for groups that the model does not have
    make_plans(experiment, model)  # raises for what cannot be kept
    return model


def read_splits(
    experiment: Experiment, dataset: Dataset, names: Sequence[Split]
) -> dict[str, Samples]:
    """Splits of a data set, without what the experiment's mask takes away; of training, its shots.

    Raises:
        ConfigError: The task has no classes to take shots of, or see :func:`check_stream`.
        DataError: A split or the mask cannot be read, or they do not fit each other; or there are
            fewer samples than shots.
    """
    splits: dict[str, Samples] = {name: dataset.split(name) for name in names}
    counted = {name: found for name, found in splits.items() if not isinstance(found, Stream)}
    for name, found in splits.items():
        if isinstance(found, Stream):
            check_stream(experiment, name, found)
    if experiment.missing.mask is not None and counted:
        mask = read_mask(experiment.missing.mask, dataset.fields)
        counted = {name: mask.apply(name, samples) for name, samples in counted.items()}
    total, per_class = experiment.loader.shots, experiment.loader.shots_per_class
    if len(counted.get("train", ())) and (total, per_class) != (None, None):
        counted["train"] = few_shots(
            counted["train"], dataset.task, experiment.seed, total, per_class
        )
    return {**splits, **counted}


def check_trainable(dataset: Dataset, train: Samples) -> None:
    """Check that there is something to train on and something to tell apart.

    Raises:
        DataError: There is not.
    """
    if not train:
        raise DataError(
            "The training split is empty; check the data node's files and split column."
        )
    if dataset.task == "single_label" and dataset.outputs < 2:
        raise DataError(
            f"There is one class only, {list(dataset.classes or ())}; give two or more."
        )


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
    model: FusionModel,
    fields: Mapping[str, str],
    train: bool,
    missing: MissingConfig,
    stored: Mapping[str, Stored] = MappingProxyType({}),
) -> list[RoleInput]:
    """How the samples of a split reach the encoders that the fusion uses.

    Args:
        model: The model.
        fields: The field of each role.
        train: Whether to augment and to drop fields.
        missing: Of the config.
        stored: What stands for the raw values of some roles.
    """
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
            stored.get(role),
        )
        for role, transfer in {"main": fusion.main, **fusion.complements}.items()
    ]
