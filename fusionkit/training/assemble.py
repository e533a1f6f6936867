"""From a validated experiment to a model and the inputs of its encoders."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fusionkit.config.schema import Experiment
from fusionkit.data.base import Dataset
from fusionkit.data.loading import RoleInput, pick_field
from fusionkit.encoders.base import MainEncoder
from fusionkit.fusion.base import Fusion, role_names
from fusionkit.fusion.model import FusionModel
from fusionkit.registry import load


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
    """
    main = experiment.main_transfer.build(experiment.main.build())
    complements = [
        complement.transfer.build(complement.encoder.build())
        for complement in experiment.complements
    ]
    fusion: Fusion = experiment.fusion.build(main, complements)
    model = FusionModel(fusion, outputs, regression)
    if experiment.trainer.gradient_checkpointing:
        for transfer in (fusion.main, *fusion.complements.values()):
            if isinstance(transfer.encoder, MainEncoder):
                transfer.encoder.gradient_checkpointing = True
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
        model = build_model(experiment, outputs, dataset.task == "regression")
    return model, dataset, fields


def role_inputs(model: FusionModel, fields: Mapping[str, str], train: bool) -> list[RoleInput]:
    """How the samples of a split reach the encoders that the fusion uses."""
    fusion = model.fusion
    return [
        RoleInput(role, fields[role], transfer.encoder.preprocessor(train))
        for role, transfer in {"main": fusion.main, **fusion.complements}.items()
    ]
