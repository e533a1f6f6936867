"""What an experiment would train, without its data and without its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fusionkit.cache.plan import make_plans
from fusionkit.config.schema import Experiment
from fusionkit.errors import DataError
from fusionkit.training.assemble import check_presence, dry_build, read_splits
from fusionkit.training.optimizer import learning_rates
from fusionkit.training.parameters import PartCount, count_parameters


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`check` found.

    Attributes:
        name: Of the experiment.
        counts: Parameters by part.
        fields: Field by encoder role.
        learning_rates: By parameter group.
        outputs: Width of the prediction.
        data: Samples by split, or why the data cannot be read.
        cache: What is computed once, by role; and why other things are not.
    """

    name: str
    counts: list[PartCount]
    fields: dict[str, str]
    learning_rates: dict[str, float]
    outputs: int
    data: dict[str, int] | str
    cache: list[str]

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return sum(count.trained for count in self.counts)

    def to_json(self) -> dict[str, Any]:
        """Plain values for machines."""
        return {**asdict(self), "trained": self.trained, "all": sum(c.total for c in self.counts)}


def check(experiment: Experiment) -> Report:
    """Build the experiment on the meta device: all errors of a config, no weights, no download.

    Raises:
        FusionkitError: The experiment cannot be built.
    """
    model, dataset, fields = dry_build(experiment)
    for baseline in experiment.baselines.values():
        dry_build(baseline)
    data: dict[str, int] | str
    try:
        splits = read_splits(experiment, dataset, ("train", "val", "test"))
        check_presence(experiment, model, fields, splits)
        data = {name: len(samples) for name, samples in splits.items()}
    except DataError as error:
        data = str(error)
    rates = learning_rates(model, experiment.optimizer)
    trained_groups = {group for group, _, p in model.named_groups() if p.requires_grad}
    plans, reasons = make_plans(experiment, model)
    return Report(
        experiment.name,
        count_parameters(model),
        fields,
        {group: rate for group, rate in rates.items() if group in trained_groups},
        dataset.outputs,
        data,
        [f"{plan.role}: {plan.what}" for plan in plans] + reasons,
    )
