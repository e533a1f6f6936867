"""What an experiment would train, without its data and without its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from fusionkit.cache.plan import make_plans
from fusionkit.config.schema import Experiment
from fusionkit.data.base import Dataset, Samples, Stream
from fusionkit.errors import DataError, FusionkitError
from fusionkit.fusion.model import FusionModel
from fusionkit.training.assemble import check_presence, dry_build, read_splits
from fusionkit.training.augmentation import augmentation_text
from fusionkit.training.cost import StepCost, step_cost
from fusionkit.training.fast_paths import fast_paths
from fusionkit.training.optimizer import learning_rates
from fusionkit.training.parameters import PartCount, count_parameters
from fusionkit.training.precision import precision_of
from fusionkit.training.run import make_loaders


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`check` found.

    Attributes:
        name: Of the experiment.
        counts: Parameters by part.
        fields: Field by encoder role.
        augmentation: What is done to the training images of each role that sees some.
        learning_rates: By parameter group.
        outputs: Width of the prediction.
        data: Samples by split, None where nobody has counted them; or why the data cannot be read.
        cache: What is computed once, by role; and why other things are not.
        cost: What a training step on the first batch costs, nothing cached; or why nobody knows.
        fast_paths: Short cuts that the model takes.
    """

    name: str
    counts: list[PartCount]
    fields: dict[str, str]
    augmentation: str
    learning_rates: dict[str, float]
    outputs: int
    data: dict[str, int | None] | str
    cache: list[str]
    cost: StepCost | str
    fast_paths: list[str]

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return sum(count.trained for count in self.counts)

    def to_json(self) -> dict[str, Any]:
        """Plain values for machines."""
        plain = asdict(self)
        if not isinstance(self.cost, str):
            plain["cost"]["memory"] = self.cost.memory
        return {**plain, "trained": self.trained, "all": sum(c.total for c in self.counts)}


def check(experiment: Experiment) -> Report:
    """Build the experiment on the meta device: all errors of a config, no weights, no download.

    Raises:
        FusionkitError: The experiment cannot be built.
    """
    model, dataset, fields = dry_build(experiment)
    for baseline in experiment.baselines.values():
        dry_build(baseline)
    data: dict[str, int | None] | str
    cost: StepCost | str
    try:
        splits = read_splits(experiment, dataset, ("train", "val", "test"))
        check_presence(experiment, model, fields, splits)
        data = {name: s.length if isinstance(s, Stream) else len(s) for name, s in splits.items()}
    except DataError as error:
        data, cost = str(error), "not known without data"
    else:
        cost = _cost(experiment, model, dataset, fields, splits["train"])
    rates = learning_rates(model, experiment.optimizer)
    trained_groups = {group for group, _, p in model.named_groups() if p.requires_grad}
    plans, reasons = make_plans(experiment, model)
    return Report(
        experiment.name,
        count_parameters(model),
        fields,
        augmentation_text(experiment, dataset),
        {group: rate for group, rate in rates.items() if group in trained_groups},
        dataset.outputs,
        data,
        [f"{plan.role}: {plan.what}" for plan in plans] + reasons,
        cost,
        fast_paths(model) + (["compiled kernels"] if experiment.trainer.compile else []),
    )


def _cost(
    experiment: Experiment,
    model: FusionModel,
    dataset: Dataset,
    fields: dict[str, str],
    train: Samples,
) -> StepCost | str:
    """Of a step on the first batch, or why it is not known."""
    if not train:
        return "not known: there are no training samples"
    here = replace(experiment, loader=replace(experiment.loader, workers=0))
    try:
        loader = make_loaders(here, dataset, {"train": train}, model, fields)["train"]
        inputs = next(iter(loader))["inputs"]
        config = experiment.trainer
        return step_cost(model, inputs, precision_of(config.precision, config.accelerator))
    except FusionkitError as error:
        return f"not known: {error}"
