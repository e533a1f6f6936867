"""A comparison as tables: in the terminal, and in Markdown to paste into a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from fusionkit.compare.measure import Cost
from fusionkit.compare.results import Comparison, SystemRow
from fusionkit.training.report import metric_title, plain_table, spread_text

_NARROW = (0, 1, 0, 0)  # so that seven columns fit into 80 characters
_SAID = {"test": "Results on the test split", "val": "Results on the validation split"}


@dataclass(frozen=True, slots=True)
class _Unit:
    """A column of numbers in one unit."""

    title: str
    name: str
    size: float
    values: Sequence[float | None]

    def cell(self, row: int) -> str:
        value = self.values[row]
        return "" if value is None else _three(value / self.size)


def cost_table(comparison: Comparison) -> Table:
    """Parameters and what was measured, a row for each system."""
    table = plain_table("Cost of training: FLOPs per sample, peak memory and time of a step")
    table.padding = _NARROW
    table.add_column("system", overflow="fold")
    titles, rows = _costs(comparison)
    for title in titles:
        table.add_column(title.replace(", ", "\n"), justify="right", no_wrap=True)
    for row, cells in zip(comparison.rows, rows, strict=True):
        table.add_row(Text(row.label), *cells)
    return table


def results_table(comparison: Comparison) -> Table:
    """Metrics over seeds, a row for each system that was to be trained."""
    split = (comparison.metrics or [""])[0].partition("/")[0]
    said, several = _SAID.get(split, "Results"), len(comparison.seeds) > 1
    over = f", mean ± sd over {len(comparison.seeds)} seeds" if several else ""
    table = plain_table(f"{said}{over}")
    table.padding = _NARROW
    table.add_column("system", overflow="fold")
    for title in _result_titles(comparison):
        table.add_column(title, justify="right", no_wrap=True)
    for row in comparison.rows:
        if not row.refused:
            table.add_row(Text(row.label), *_result_cells(comparison, row))
    return table


def markdown(comparison: Comparison) -> str:
    """Everything in one table, with where it was measured above and what went wrong below."""
    titles, rows = _costs(comparison)
    titles = ["system", *titles]
    if comparison.seeds:
        titles += _result_titles(comparison)
    lines = [f"| {' | '.join(titles)} |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    for row, cells in zip(comparison.rows, rows, strict=True):
        results = _result_cells(comparison, row) if comparison.seeds else []
        shown = [row.label.replace("|", "\\|"), *cells, *results]
        lines.append(f"| {' | '.join(shown)} |")
    notes = [f"- {note}" for note in (*cost_notes(comparison), *run_notes(comparison))]
    parts = [[setting(comparison)], lines, notes]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def setting(comparison: Comparison) -> str:
    """Where and how most systems were measured."""
    usual = _usual(comparison)
    return f"{usual}, torch {comparison.torch}" if usual else "Nothing could be measured."


def cost_notes(comparison: Comparison) -> Iterator[str]:
    """Why systems are refused or not measured; each reason once, with whom it concerns."""
    reasons: dict[str, list[str]] = {}
    usual = _usual(comparison)
    for row in comparison.rows:
        reason = ""
        if row.refused:
            reason = f"refused. {row.refused}"
        elif row.failure:
            reason = f"{row.failure.kind}. {row.failure.message}"
        elif row.cost and _setting(row.cost) != usual:
            reason = f"measured on {_setting(row.cost)}"
        if reason:
            reasons.setdefault(" ".join(reason.split()), []).append(row.label)
    for reason, labels in reasons.items():
        everybody = len(labels) == len(comparison.rows) > 1
        yield f"{'all systems' if everybody else ', '.join(labels)}: {reason}"


def run_notes(comparison: Comparison) -> Iterator[str]:
    """Why runs failed; a system that could not be measured was not trained either."""
    for row in comparison.rows:
        for run in row.runs:
            if run.error and row.cost is not None:
                error = " ".join(run.error.split())
                yield f"{row.label}, seed {run.seed}: {error} (in {run.folder})"


def _costs(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Titles with their units, and the cells of each row."""
    costs = [row.cost for row in comparison.rows]
    flops = [value for cost in costs if cost for value in (cost.forward_flops, cost.step_flops)]
    giga = max((value or 0 for value in flops), default=0) >= 1e9
    bytes_ = [cost.peak_bytes if cost else None for cost in costs]
    gibi = max((value or 0 for value in bytes_), default=0) >= 10 * 2**30
    per, size = ("GFLOPs", 1e9) if giga else ("MFLOPs", 1e6)
    columns = [
        _Unit("forward", per, size, [cost.forward_flops if cost else None for cost in costs]),
        _Unit("step", per, size, [cost.step_flops if cost else None for cost in costs]),
        _Unit("memory", "GiB" if gibi else "MiB", 2**30 if gibi else 2**20, bytes_),
        _Unit("step", "ms", 1e-3, [cost.step_seconds if cost else None for cost in costs]),
    ]
    cells = []
    for number, row in enumerate(comparison.rows):
        numbers = [column.cell(number) for column in columns]
        if row.failure and not row.cost:
            numbers[-1] = row.failure.kind
        trained = "" if row.trained is None else f"{row.trained:,}"
        share = "" if row.share is None else f"{row.share:.2%}"
        cells.append(["refused" if row.refused else trained, share, *numbers])
    return ["trained", "of all", *(f"{c.title}, {c.name}" for c in columns)], cells


def _result_titles(comparison: Comparison) -> list[str]:
    return [*map(metric_title, comparison.metrics), "time", "runs"]


def _result_cells(comparison: Comparison, row: SystemRow) -> list[str]:
    cells = []
    for metric in comparison.metrics:
        spread = row.spread(metric)
        cells.append(spread_text(metric, spread.mean, spread.sd) if spread else "")
    if row.refused:
        return [*cells, "", ""]
    wanted, done = len(comparison.seeds), len(row.finished)
    cells.append("" if row.seconds is None else duration(row.seconds))
    cells.append(f"{done}" if done == wanted else f"{done} of {wanted}")
    return cells


def _usual(comparison: Comparison) -> str:
    settings = Counter(_setting(row.cost) for row in comparison.rows if row.cost)
    return settings.most_common(1)[0][0] if settings else ""


def _setting(cost: Cost) -> str:
    return f"{cost.machine}, batches of {cost.batch_size}, precision {cost.precision}"


def _three(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def duration(seconds: float) -> str:
    """``48 s``, ``12 min``, ``3.4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
