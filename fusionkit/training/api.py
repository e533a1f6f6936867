"""Training from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fusionkit.config.schema import Component, Experiment
from fusionkit.config.validate import load_config
from fusionkit.data import memory
from fusionkit.data.table import Table
from fusionkit.training import run

Overlay = tuple[Mapping[str, Any], str]


@dataclass(frozen=True, slots=True)
class _OverData(Component):
    """A data set whose rows are in memory; its other arguments are the config's."""

    rows: Any = field(default=None, repr=False, compare=False)

    def build(self, *given: Any) -> Table:
        table: Table = Component.build(self, *given)
        return table.over(self.rows)


def fit(
    config: str | Path | Mapping[str, Any] | Sequence[str | Path],
    data: Any = None,
    overrides: Mapping[str, Any] | None = None,
    ckpt_path: str | None = None,
) -> run.RunResult:
    """Train what a config describes and test it, as ``fusionkit fit`` does.

    Args:
        config: A config file, several of which later ones are merged over earlier ones, or a
            config as a mapping.
        data: Rows to train on instead of the config's ``data.files``: a pandas DataFrame, a
            pyarrow Table, a Dataset of Hugging Face's datasets; or a mapping of train, val and
            test to them, such as a DatasetDict. The config's other keys of ``data`` say, as ever,
            what the columns are. Paths in cells are relative to ``data.root``, or to the current
            folder.
        overrides: Merged over the config: ``{"trainer": {"max_epochs": 3}}``.
        ckpt_path: ``last``, or the run folder to continue in; None starts a new run.

    Returns:
        Folder and metrics of the run: ``fusionkit.load(fit(...).folder)``.

    Raises:
        FusionkitError: The config, the data or the checkpoint cannot be used.
    """
    files = [config] if isinstance(config, str | Path) else config
    overlays: list[Overlay] = [] if overrides is None else [(overrides, "overrides")]
    if data is None:
        return run.fit(_load(files, overlays), ckpt_path)
    described: list[Overlay] = [
        ({"data": {"files": None}}, "data"),  # files of splits that the data does not have
        ({"data": {"files": memory.describe(data)}}, "data"),
    ]
    overlays = [({"data": {"name": "table"}}, "data"), *overlays, *described]
    experiment = _load(files, overlays)
    stated = experiment.data.init
    classes = experiment.data.build().over(data).classes
    if classes is not None and stated["classes"] is None and isinstance(stated["label"], str):
        # The run is to know them where its data is no more.
        experiment = _load(files, [*overlays, ({"data": {"classes": [*classes]}}, "data")])
    return run.fit(_over(experiment, data), ckpt_path)


def _load(
    config: Mapping[str, Any] | Sequence[str | Path], overlays: Sequence[Overlay]
) -> Experiment:
    if isinstance(config, Mapping):
        return load_config([], start=(config, "config"), overlays=overlays)
    return load_config(config, overlays=overlays)


def _over(experiment: Experiment, data: Any) -> Experiment:
    held = experiment.data
    return replace(
        experiment,
        data=_OverData(held.kind, held.name, held.init, data),
        baselines={label: _over(other, data) for label, other in experiment.baselines.items()},
    )
