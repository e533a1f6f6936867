"""Results of a sweep as a figure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionkit.data.folders import replace_whole
from fusionkit.errors import DataError
from fusionkit.sweep.results import Run, axes_of, find_axis, find_metric
from fusionkit.training.report import SHARES, metric_title

EPOCH = "epoch"
SUFFIXES = (".png", ".svg", ".pdf")

# Okabe and Ito's colours, which the colour-blind can tell apart; yellow is too pale for lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_WIDE = 45  # letters that have room side by side
_TITLES = {
    "routing_entropy": "routing entropy (bits)",
    "effective_experts": "effective number of experts",
    "importance_cv2": "squared variation of importance",
}


@dataclass(slots=True)
class _Line:
    """Values of one hue, by x and seed."""

    label: str
    points: dict[Any, dict[int, float]] = field(default_factory=dict)

    def add(self, x: Any, seed: int, value: float) -> None:
        self.points.setdefault(x, {})[seed] = value


def plot(
    runs: Sequence[Run],
    x: str,
    y: str,
    hue: str | None,
    path: Path,
    title: str | None = None,
) -> None:
    """Draw a metric against an axis or over training: means, standard deviations, single seeds.

    Args:
        runs: What :func:`fusionkit.sweep.results.collect` found.
        x: An axis, or ``epoch``.
        y: A metric; for ``epoch`` one that is logged by epoch.
        hue: The axis that lines are told apart by; None for one line.
        path: Ends in one of :data:`SUFFIXES`.
        title: Above the figure.

    Raises:
        DataError: An axis or a metric does not exist, no run has finished, or the file's name has
            another ending.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: a figure's name ends in {', '.join(SUFFIXES)}.")
    done = [run for run in runs if run.status == "finished"]
    if not done:
        raise DataError("No run has finished yet; `fusionkit sweep` goes on with them.")
    by = None if hue is None else find_axis(runs, hue)
    if x == EPOCH:
        metric, lines = _over_training(done, y, by)
        across = None
    else:
        across = find_axis(runs, x)
        metric = find_metric([name for run in done for name in run.metrics], y)
        lines = _over_axis(done, across, metric, by)
    _check_unmixed(done, (across, by))
    _draw(lines, across, metric, by, path, title)


def _over_axis(runs: Sequence[Run], axis: str, metric: str, by: str | None) -> list[_Line]:
    lines: dict[str, _Line] = {}
    for run in runs:
        label = "" if by is None else run.labels[by]
        if math.isfinite(value := run.metrics.get(metric, math.nan)):
            line = lines.setdefault(label, _Line(label))
            line.add(_position(run, axis), run.seed, value)
    return list(lines.values())


def _position(run: Run, axis: str) -> Any:
    value = run.values[axis]
    return value if isinstance(value, int | float) and not isinstance(value, bool) else (
        run.labels[axis]
    )  # fmt: skip


def _over_training(runs: Sequence[Run], y: str, by: str | None) -> tuple[str, list[_Line]]:
    logged = [(run, list(run.epochs())) for run in runs]
    metric = find_metric([name for _, rows in logged for _, name, _ in rows], y)
    lines: dict[str, _Line] = {}
    for run, rows in logged:
        label = "" if by is None else run.labels[by]
        line = lines.setdefault(label, _Line(label))
        for epoch, name, value in rows:
            if name == metric and math.isfinite(value):
                line.add(epoch, run.seed, value)
    return metric, list(lines.values())


def _check_unmixed(runs: Sequence[Run], shown: Sequence[str | None]) -> None:
    for axis in axes_of(runs):
        labels = list(dict.fromkeys(run.labels[axis] for run in runs))
        if axis not in shown and len(labels) > 1:
            raise DataError(
                f"A line would mix {axis}: {', '.join(labels)}. Name it in --x or --hue, or give "
                f"one of them, as in --only '{axis}={labels[0]}'."
            )


def _draw(
    lines: Sequence[_Line],
    axis: str | None,
    metric: str,
    by: str | None,
    path: Path,
    title: str | None,
) -> None:
    from matplotlib.figure import Figure

    size = 100 if metric.rpartition("/")[2] in SHARES else 1
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    places = list(dict.fromkeys(x for line in lines for x in line.points))
    numbers = all(isinstance(place, int | float) for place in places)
    at: Mapping[Any, float] = {p: p if numbers else i for i, p in enumerate(places)}
    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        points = sorted(line.points.items(), key=lambda point: at[point[0]])
        shift = 0.0 if numbers else 0.12 * (number - (len(lines) - 1) / 2)
        xs = [at[x] + shift for x, _ in points]
        values = [[size * value for value in seeds.values()] for _, seeds in points]
        means = [statistics.mean(each) for each in values]
        sds = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
        if numbers:
            low, high = ([m + s * sd for m, sd in zip(means, sds, strict=True)] for s in (-1, 1))
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(xs, means, color=colour, marker="o", markersize=4, label=line.label)
        else:
            axes.errorbar(xs, means, sds, color=colour, fmt="o", capsize=3, label=line.label)
        for x, each in zip(xs, values, strict=True):
            axes.scatter([x] * len(each), each, s=9, color=colour, alpha=0.45, linewidths=0)
    _name_axes(axes, axis, metric, places, numbers)
    if by is not None:
        title_of = by.rpartition(".")[2].replace("_", " ")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper",
                      title=title_of, frameon=False)  # fmt: skip
    if title:
        axes.set_title(title, loc="left", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix.removeprefix(".")
    replace_whole(path, lambda place: figure.savefig(place, format=kind))


def _name_axes(
    axes: Any, axis: str | None, metric: str, places: Sequence[Any], numbers: bool
) -> None:
    name = EPOCH if axis is None else axis.rpartition(".")[2].replace("_", " ")
    axes.set_xlabel(name)
    short = metric.rpartition("/")[2]
    split = {"val": "validation ", "test": "test ", "train": "training "}
    said = _TITLES.get(short) or split.get(metric.partition("/")[0], "") + metric_title(metric)
    axes.set_ylabel(said)
    if not numbers:
        names = [str(place) for place in places]
        axes.set_xticks(range(len(places)), names)
        if sum(map(len, names)) > _WIDE:
            axes.tick_params(axis="x", rotation=25)
            for name in axes.get_xticklabels():
                name.set(ha="right", rotation_mode="anchor")
        axes.margins(x=0.1)
    elif axis is not None and _grows(sorted(places)):
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [str(place) for place in places])
        axes.minorticks_off()
    elif axis is None:
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _grows(places: Sequence[float]) -> bool:
    """Whether each step is larger than the one before, as in 2, 4, 8, 16 or 19, 31, 55, 103."""
    if len(places) < 3 or places[0] <= 0 or places[-1] < 4 * places[0]:
        return False
    steps = [after - before for before, after in itertools.pairwise(places)]
    return all(after > before for before, after in itertools.pairwise(steps))
