"""A trained model that takes raw values: what is loaded from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionkit.config.schema import Experiment, LoaderConfig
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.data.base import Dataset, Sample
from fusionkit.data.loading import make_loader
from fusionkit.data.memory import is_table
from fusionkit.data.missing import is_empty
from fusionkit.data.table import table_like
from fusionkit.errors import DataError, suggest
from fusionkit.fusion.model import FusionModel
from fusionkit.training import checkpoint
from fusionkit.training.assemble import build_model, role_inputs
from fusionkit.training.metrics import predictions_of

_log = logging.getLogger("fusionkit")


@dataclass(frozen=True, slots=True)
class Predictor:
    """A model rebuilt from a slim checkpoint.

    Attributes:
        model: In evaluation mode.
        experiment: The config it was trained with.
        description: What the checkpoint says of itself.
    """

    model: FusionModel
    experiment: Experiment
    description: checkpoint.Description

    def predict(self, rows: Any) -> Tensor:
        """Probabilities (n, C), or numbers (n,) for regression.

        Args:
            rows: A sequence of mappings of field name to raw value: images or their paths, texts,
                ... A field that may be missing is left out or None. Or a table with the columns of
                the training table: a pandas DataFrame, a pyarrow Table, a Dataset of Hugging
                Face's datasets.

        Raises:
            DataError: A row lacks a field or holds one that cannot be read.
        """
        if is_table(rows):
            dataset: Dataset = self.experiment.data.build()
            return self.predict_samples(table_like(dataset, rows).split("predict"))
        return self.predict_samples(self._samples(rows))

    def _samples(self, rows: Sequence[Mapping[str, Any]]) -> list[Sample]:
        if not rows:
            raise DataError("There are no rows to predict.")
        fusion = self.model.fusion
        wanted = {role: self.description.fields[role] for role in fusion.encoders}
        for number, row in enumerate(rows, start=1):
            for role, name in wanted.items():
                if row.get(name) is None and role not in fusion.stand_ins:
                    raise DataError(
                        f"Row {number} has no field {name!r}.{suggest(name, row)} "
                        f"The model reads: {', '.join(wanted.values())}. Train one that can do "
                        f"without: missing.allow: [{', '.join([*fusion.stand_ins, role])}]."
                    )
                others = row.keys() - set(wanted.values())
                if name not in row and (hint := suggest(name, others)):
                    raise DataError(f"Row {number} has no field {name!r}.{hint}")
            if all(is_empty(row.get(name)) for name in wanted.values()):
                raise DataError(
                    f"Row {number} has none of the fields the model reads: "
                    f"{', '.join(wanted.values())}."
                )
        return [
            Sample(str(number), row, None, f"row {number}")
            for number, row in enumerate(rows, start=1)
        ]

    def predict_samples(self, samples: Sequence[Sample]) -> Tensor:
        """As :meth:`predict`, of samples as a data set has them."""
        loader = make_loader(
            samples,
            role_inputs(self.model, self.description.fields, False, self.experiment.missing),
            self.description.task,
            self.model.head.out_features,
            LoaderConfig(batch_size=self.experiment.loader.batch_size, workers=0),
            train=False,
            seed=0,
        )
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            predicted = [
                (
                    batch["index"],
                    predictions_of(
                        self.description.task,
                        self.model(_to(batch["inputs"], device)).logits,
                    ).cpu(),
                )
                for batch in loader
            ]
        for line in loader.dataset.unreadable.describe("predict"):
            _log.warning(line)
        order = torch.cat([index for index, _ in predicted]).argsort()
        return torch.cat([values for _, values in predicted])[order]


def _to(inputs: Any, device: torch.device) -> Any:
    return {
        role: {name: value.to(device) for name, value in tensors.items()}
        for role, tensors in inputs.items()
    }


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Predictor:
    """Rebuild a trained model from a run folder or a checkpoint file.

    Args:
        path: See :func:`fusionkit.training.checkpoint.find_file`.
        overrides: Merged over its config: ``{"main": {"weights": "moved/here.safetensors"}}``.

    Raises:
        CheckpointError: See :func:`fusionkit.training.checkpoint.load_into`.
    """
    description = checkpoint.describe(path)
    experiment = experiment_from_mapping(description.config, str(path), overrides or {})
    return Predictor(rebuild(path, experiment, description), experiment, description)


def rebuild(
    path: str | Path, experiment: Experiment, description: checkpoint.Description
) -> FusionModel:
    """The model of an experiment with a checkpoint's trained weights, in evaluation mode."""
    outputs = 1 if description.classes is None else len(description.classes)
    with torch.random.fork_rng():  # frozen random weights come out as they were in training
        torch.manual_seed(experiment.seed)
        model = build_model(experiment, outputs, description.task == "regression")
    checkpoint.load_into(model, path)
    return model.eval()
