"""Results of a sweep as a table: mean and spread over seeds, and what differs beyond chance."""

from __future__ import annotations

import csv
import io
import re
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fusionkit.data.folders import write_whole
from fusionkit.errors import DataError, suggest
from fusionkit.sweep.results import Run, axes_of, find_axis, find_metric, is_number
from fusionkit.training.metrics import LESS_IS_BETTER
from fusionkit.training.report import metric_title, spread_text

Format = Literal["markdown", "csv", "latex"]
_LEVEL = 0.05
_FEWEST = 3  # seeds for a test
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


@dataclass(slots=True)
class Cell:
    """One metric of one row.

    Attributes:
        data: Name of the data set; only cells with one name are compared.
        values: By seed.
        best: Whether its mean is the best on that data in its column.
        p: Of a paired t-test over seeds against the row that is compared with; None where fewer
            than three seeds are shared, or where all differences are alike.
    """

    data: str
    values: dict[int, float] = field(default_factory=dict)
    best: bool = False
    p: float | None = None

    @property
    def mean(self) -> float:
        return statistics.mean(self.values.values())

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None of a single seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Rows and columns of cells.

    Attributes:
        row_axes: What rows are named by.
        rows: Their labels.
        columns: Column titles, each with the metric of its cells.
        cells: By row and column; None where no run has finished.
        against: The row that others are tested against; None for the best of each column.
        missing: How many runs have failed or are not finished.
    """

    row_axes: tuple[str, ...]
    rows: list[tuple[str, ...]]
    columns: list[tuple[str, str]]
    cells: list[list[Cell | None]]
    against: str | None
    missing: int


def make_table(
    runs: Sequence[Run],
    rows: Sequence[str] = (),
    columns: str | None = None,
    metrics: Sequence[str] = (),
    against: str | None = None,
) -> ResultTable:
    """Set out the finished runs of a sweep.

    Args:
        runs: What :func:`fusionkit.sweep.results.collect` found.
        rows: Axes that name rows; those that are left over if not given. Axes in neither rows nor
            columns may have one label only.
        columns: The axis whose labels are columns; metrics are columns if not given.
        metrics: Which; all but losses if not given, under ``columns`` the first of them.
        against: The row to test against: all of its labels, or one that no other row on the same
            data has.

    Raises:
        DataError: An axis, a metric or a label does not exist, or cells would mix runs.
    """
    done = [run for run in runs if run.status == "finished"]
    if not done:
        raise DataError("No run has finished yet; `fusionkit sweep` goes on with them.")
    axes = axes_of(runs)
    across = None if columns is None else find_axis(runs, columns)
    named = [find_axis(runs, row) for row in rows] or [axis for axis in axes if axis != across]
    _check_unmixed(done, [axis for axis in axes if axis not in (*named, across)])
    known = [name for run in done for name in run.metrics]
    shown = [find_metric(known, metric) for metric in metrics]
    shown = shown or [n for n in dict.fromkeys(known) if not n.endswith("/loss")]
    labels = list(dict.fromkeys(tuple(run.labels[axis] for axis in named) for run in runs))
    places = _columns(runs, across, shown if across is None or metrics else shown[:1])
    cells: list[list[Cell | None]] = [[None] * len(places) for _ in labels]
    for run in done:
        row = labels.index(tuple(run.labels[axis] for axis in named))
        for column, (label, metric) in enumerate(places):
            if across is not None and run.labels[across] != label:
                continue
            if is_number(run.metrics.get(metric)):
                cell = cells[row][column] or Cell(run.data)
                cell.values[run.seed] = run.metrics[metric]
                cells[row][column] = cell
    references = None if against is None else _find_rows(labels, against)
    for column, (_, metric) in enumerate(places):
        line = [row[column] for row in cells]
        for data in dict.fromkeys(cell.data for cell in line if cell):
            same = [cell if cell and cell.data == data else None for cell in line]
            _compare(same, metric, references, against)
    several = len({metric for _, metric in places}) > 1
    titles = [(_title(label, metric, several), metric) for label, metric in places]
    return ResultTable(tuple(named), labels, titles, cells, against, len(runs) - len(done))


def _columns(
    runs: Sequence[Run], across: str | None, metrics: Sequence[str]
) -> list[tuple[str, str]]:
    """Label and metric of each column; what no run with that label measures has none."""
    if across is None:
        return [("", metric) for metric in metrics]
    found = []
    for label in dict.fromkeys(run.labels[across] for run in runs):
        measured = {name for run in runs if run.labels[across] == label for name in run.metrics}
        there = [metric for metric in metrics if metric in measured]
        found += [(label, metric) for metric in there or metrics[:1]]
    return found


def _title(label: str, metric: str, several: bool) -> str:
    if not label:
        return metric_title(metric)
    return f"{label}, {metric_title(metric)}" if several else label


def _check_unmixed(runs: Sequence[Run], left: Sequence[str]) -> None:
    for axis in left:
        labels = list(dict.fromkeys(run.labels[axis] for run in runs))
        if len(labels) > 1:
            raise DataError(
                f"A cell would mix {axis}: {', '.join(labels)}. Name it in --rows or --columns, or "
                f"give one of them, as in --only '{axis}={labels[0]}'."
            )


def _find_rows(labels: Sequence[tuple[str, ...]], asked: str) -> list[int]:
    names = [", ".join(label) for label in labels]
    whole = [row for row, name in enumerate(names) if name == asked]
    found = whole or [row for row, label in enumerate(labels) if asked in label]
    if not found:
        raise DataError(
            f"--against: no row {asked!r}.{suggest(asked, names)} There are {'; '.join(names)}."
        )
    return found


def _compare(
    cells: Sequence[Cell | None], metric: str, references: Sequence[int] | None, asked: str | None
) -> None:
    """Mark the best of the cells of one data set, and test the others."""
    there = [cell for cell in cells if cell is not None]
    sign = -1 if metric.rpartition("/")[2] in LESS_IS_BETTER else 1
    best = max(there, key=lambda cell: sign * cell.mean)
    best.best = True
    others = [best] if references is None else [cells[row] for row in references if cells[row]]
    if len(others) > 1:
        raise DataError(
            f"--against: {asked!r} is in several rows on {best.data}; give all labels of the row."
        )
    other = others[0] if others else None
    for cell in there:
        if other is not None and cell is not other:
            cell.p = _paired(cell.values, other.values)


def _paired(ours: dict[int, float], theirs: dict[int, float]) -> float | None:
    """p of a two-sided paired t-test over the seeds that both have."""
    from scipy.stats import ttest_rel

    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < _FEWEST:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of equal differences there is no spread
        found = float(ttest_rel([ours[s] for s in seeds], [theirs[s] for s in seeds]).pvalue)
    return found if is_number(found) else None


def save_table(table: ResultTable, form: Format, path: Path) -> None:
    """Write :func:`write_table` to a file, whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write_table(table, form))


def write_table(table: ResultTable, form: Format) -> str:
    """The table as text, with a caption that says how to read it."""
    if form == "csv":
        return _csv(table)
    bold, mark, plus = ("\\textbf{%s}", "$^*$", " $\\pm$ ") if form == "latex" else (
        "**%s**", "\\*", " ± "
    )  # fmt: skip
    titles = [*(axis.rpartition(".")[2] for axis in table.row_axes), *(t for t, _ in table.columns)]
    lines = []
    safe = _latex_text if form == "latex" else _markdown_text
    titles = list(map(safe, titles))
    for label, cells in zip(table.rows, table.cells, strict=True):
        texts = [
            _cell(cell, metric, bold, mark, plus)
            for cell, (_, metric) in zip(cells, table.columns, strict=True)
        ]
        lines.append([*map(safe, label), *texts])
    caption = " ".join(_caption(table, mark if form == "markdown" else "*"))
    if form == "latex":
        return _latex(titles, lines, len(table.row_axes), caption)
    sides = ["---"] * len(table.row_axes) + ["---:"] * len(table.columns)
    rows = [f"| {' | '.join(line)} |" for line in (titles, *lines)]
    rows.insert(1, f"|{'|'.join(sides)}|")
    return "\n".join([*rows, "", caption, ""])


def _cell(cell: Cell | None, metric: str, bold: str, mark: str, plus: str) -> str:
    if cell is None:
        return "-"
    text = spread_text(metric, cell.mean, cell.sd).replace(" ± ", plus)
    text = bold % text if cell.best else text
    return text + mark if cell.p is not None and cell.p < _LEVEL else text


def _caption(table: ResultTable, mark: str) -> list[str]:
    counts = sorted({len(cell.values) for row in table.cells for cell in row if cell})
    several = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    metrics = list(dict.fromkeys(metric for _, metric in table.columns))
    said = [] if len(metrics) > 1 else [f"{metric_title(metrics[0]).capitalize()}."]
    several_data = len({cell.data for row in table.cells for cell in row if cell}) > 1
    bold = f"the best {'on each data set ' if several_data else ''}in bold"
    other = "the best" if table.against is None else table.against
    if counts[-1] == 1:
        said.append(f"One seed each: no spread, nothing is tested; {bold}.")
    else:
        said.append(f"Mean ± standard deviation over {several} seeds; {bold}.")
        if counts[-1] < _FEWEST:
            said.append("Two seeds are too few to test.")
        else:
            said.append(f"{mark} differs from {other} (paired t-test over seeds, p < {_LEVEL}).")
            if counts[0] < _FEWEST:
                said.append("Cells of fewer than three seeds are not tested.")
    if table.missing:
        said.append(f"{table.missing} runs failed or are not finished.")
    return said


def _markdown_text(text: str) -> str:
    return text.replace("|", "\\|")


def _latex_text(text: str) -> str:
    return re.sub(r"[\\{}~^&%$#_]", lambda found: _LATEX.get(found[0], f"\\{found[0]}"), text)


def _latex(titles: list[str], lines: list[list[str]], names: int, caption: str) -> str:
    def row(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    body = "\n".join(map(row, lines))
    return "\n".join(
        [
            f"% {caption}",
            f"\\begin{{tabular}}{{{'l' * names}{'r' * (len(titles) - names)}}}",
            "\\toprule",
            row(titles),
            "\\midrule",
            body,
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    )


def _csv(table: ResultTable) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    titles = [title for title, _ in table.columns]
    kinds = ("mean", "sd", "seeds", "p")
    writer.writerow([*table.row_axes, *(f"{title} {kind}" for title in titles for kind in kinds)])
    for label, cells in zip(table.rows, table.cells, strict=True):
        numbers: list[float | None] = []
        for cell in cells:
            numbers += [cell.mean, cell.sd, len(cell.values), cell.p] if cell else [None] * 4
        writer.writerow([*label, *numbers])
    return text.getvalue()
