"""The points of a sweep: a config with ``sweep``, multiplied out. Imports no torch by itself."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fusionkit.config.merge import read_config
from fusionkit.config.schema import ConfigKeys, Experiment
from fusionkit.config.validate import load_config
from fusionkit.errors import ConfigError, suggest

_KEYS = tuple(ConfigKeys.__dataclass_fields__)
_NOT_SWEPT = ("name", "output", "seed", "seeds", "baselines", "systems", "sweep")

# What tables of results have beside axes and metrics.
COLUMNS = (
    "run", "seed", "status", "error", "best_epoch", "trained_parameters", "all_parameters",
    "seconds", "machine", "versions", "config",
)  # fmt: skip
EPOCH_COLUMNS = ("run", "epoch", "metric", "value")


@dataclass(frozen=True, slots=True)
class Point:
    """One cell of the grid.

    Attributes:
        place: Among the points, counted from 0.
        labels: Of each axis, in order.
        values: Of each axis: what the key is set to, or the label again.
        experiment: What is trained, with each of its seeds.
    """

    place: int
    labels: Mapping[str, str]
    values: Mapping[str, Any]
    experiment: Experiment

    @property
    def name(self) -> str:
        """``prompts=static, experts=4``: keys by their last part."""
        return ", ".join(f"{short(axis)}={label}" for axis, label in self.labels.items())

    @property
    def folder(self) -> str:
        """Name of the folder of its runs."""
        parts = (f"{short(axis)}={label}" for axis, label in self.labels.items())
        return re.sub(r"[^\w.=,+-]+", "_", ",".join(parts))


@dataclass(frozen=True, slots=True)
class Grid:
    """A sweep that was read and validated.

    Attributes:
        name: Its folder under ``output``.
        folder: Where everything goes.
        points: In the order of their axes, the last one fastest.
        seeds: With which each is trained.
        progress_bar: Whether the config asks for one.
    """

    name: str
    folder: Path
    points: list[Point]
    seeds: tuple[int, ...]
    progress_bar: bool


@dataclass(frozen=True, slots=True)
class _Choice:
    """One label of an axis: a config to merge, in a file or written out."""

    label: str
    value: Any
    overlay: Mapping[str, Any]
    file: Path | None = None


def short(axis: str) -> str:
    """The last part of a dotted key; two keys that end alike are told apart by their labels."""
    return axis.rpartition(".")[2]


def read_grid(files: Sequence[str | Path], overrides: Sequence[tuple[str, str]] = ()) -> Grid:
    """Read a sweep and build every one of its configs.

    Args:
        files: As for :func:`fusionkit.config.validate.load_config`.
        overrides: Likewise; they hold for all points, but for what an axis sets.

    Raises:
        ConfigError: There are no axes, an axis is malformed, or configs are not valid: of all
            points at once.
    """
    merged = read_config(files, overrides)
    stated = merged.values.get("sweep") or {}
    if not isinstance(stated, Mapping):
        raise ConfigError(f"sweep: expected a mapping of axes, given {stated!r}.")
    _check_removed(files, overrides)
    axes = {
        axis: _choices(axis, given, Path(merged.source(("sweep", axis))).parent)
        for axis, given in stated.items()
        if given is not None
    }
    if not axes:
        raise ConfigError(
            f"{files[-1]}: there is no sweep. Add one, such as `sweep: {{fusion.experts: [2, 4]}}`."
        )
    _check_names(axes)
    base = load_config(files, overrides)
    points, problems = [], []
    for place, choices in enumerate(itertools.product(*axes.values())):
        labels, values = _place(axes, choices)
        also = [choice.file for choice in choices if choice.file is not None]
        overlays = [
            (choice.overlay, f"sweep: {axis}: {choice.label}")
            for axis, choice in zip(axes, choices, strict=True)
        ]
        alone = {"name": base.name, "baselines": None, "systems": None, "sweep": None}
        try:
            experiment = load_config(
                [*files, *also], overrides, overlays=[*overlays, (alone, "sweep")]
            )
        except ConfigError as error:
            where = ", ".join(f"{axis}: {label}" for axis, label in labels.items())
            problems.append(f"{where}: {error}")
            continue
        points.append(Point(place, labels, values, experiment))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    _check_folders(points)
    return Grid(base.name, Path(base.output) / base.name, points, base.seeds,
                base.trainer.progress_bar)  # fmt: skip


def _check_removed(files: Sequence[str | Path], overrides: Sequence[tuple[str, str]]) -> None:
    """Refuse to take out an axis that is not there: all of its runs would be made."""
    axes = list(read_config(files).values.get("sweep") or {})
    for key, value in overrides if axes else ():
        axis = key.removeprefix("sweep.")
        if axis != key and yaml.safe_load(value) is None and axis not in axes:
            raise ConfigError(
                f"--{key}: there is no axis {axis!r} to take out.{suggest(axis, axes)} "
                f"The axes are {', '.join(axes)}."
            )


def _check_names(axes: Iterable[str]) -> None:
    names = [name.strip() for axis in axes for name in axis.split(",")]
    for name in names:
        if name in (*COLUMNS, *EPOCH_COLUMNS):
            raise ConfigError(
                f"sweep: {name}: tables of results have a column of that name; call it otherwise."
            )
        if names.count(name) > 1:
            raise ConfigError(f"sweep: {name} is there twice.")


def _place(
    axes: Mapping[str, Any], choices: Sequence[_Choice]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Labels and values by axis; ``a, b`` are two axes that vary together."""
    labels: dict[str, str] = {}
    values: dict[str, Any] = {}
    for axis, choice in zip(axes, choices, strict=True):
        names = [name.strip() for name in axis.split(",")]
        parts = [choice.label] if len(names) == 1 else choice.label.split(",")
        given = [choice.value] if len(names) == 1 else parts
        for name, part, value in zip(names, parts, given, strict=True):
            labels[name] = part.strip()
            values[name] = _number(value)
    return labels, values


def _number(value: Any) -> Any:
    """A label that is a number as one, so that it has a place on a scale."""
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError:
        return value.strip()


def _choices(axis: str, given: Any, folder: Path) -> list[_Choice]:
    where = f"sweep: {axis}"
    if isinstance(given, Mapping):
        choices = [_written(where, str(label), value, folder) for label, value in given.items()]
        for choice in choices:
            if len(choice.label.split(",")) != len(axis.split(",")) > 1:
                raise ConfigError(f"{where}: {choice.label!r} has not a label for each of them.")
    elif isinstance(given, str):
        found = sorted(folder.glob(given)) if not Path(given).is_absolute() else []
        choices = [_Choice(path.stem, path.stem, {}, path) for path in found]
    elif isinstance(given, list):
        root = axis.partition(".")[0]
        if root not in _KEYS:
            raise ConfigError(
                f"{where}: {root!r} is no key of a config.{suggest(root, _KEYS)} A list holds "
                f"values of a dotted key; a name of your own has a mapping of labels to configs."
            )
        if root in _NOT_SWEPT:
            hint = " List them in `seeds`." if root == "seed" else ""
            raise ConfigError(f"{where}: {root} cannot be swept.{hint}")
        choices = [_Choice(_label(value), value, _nested(axis, value)) for value in given]
    else:
        raise ConfigError(
            f"{where}: expected a list of values, a mapping of labels to configs, or a pattern of "
            f"config files, given {given!r}."
        )
    labels = [choice.label for choice in choices]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if not choices:
        raise ConfigError(
            f"{where}: {f'no file matches {given} in {folder}' if given else 'nothing is listed'}."
        )
    if twice is not None:
        raise ConfigError(f"{where}: {twice} is there twice.")
    return choices


def _written(where: str, label: str, value: Any, folder: Path) -> _Choice:
    if isinstance(value, str):
        return _Choice(label, label, {}, folder / value)
    overlay = {} if value is None else value
    if not isinstance(overlay, Mapping):
        raise ConfigError(
            f"{where}: {label}: expected a config to merge over this one, or the path of one, "
            f"given {overlay!r}."
        )
    for key in overlay:
        if key in _NOT_SWEPT:
            raise ConfigError(f"{where}: {label}: {key} cannot be swept.")
    return _Choice(label, label, overlay)


def _label(value: Any) -> str:
    if isinstance(value, Mapping) and "name" in value:
        return ", ".join(
            str(value["name"] if k == "name" else f"{k} {v}") for k, v in value.items()
        )
    return "null" if value is None else str(value)


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _check_folders(points: Sequence[Point]) -> None:
    seen: dict[str, Point] = {}
    for point in points:
        twin = seen.setdefault(point.folder, point)
        if twin is not point:
            raise ConfigError(
                f"sweep: {twin.name} and {point.name} share a folder; rename one of the labels."
            )
