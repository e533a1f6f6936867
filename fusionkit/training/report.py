"""What a run prints: tables a person wants to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from fusionkit.training.parameters import PartCount

# Shares, shown in per cent.
_SHARES = ("accuracy", "f1_macro", "f1_micro", "auroc")


def console() -> Console:
    """The terminal, as wide as it is; no colours when output is not one."""
    return Console(highlight=False)


def parameter_table(counts: Sequence[PartCount]) -> Table:
    """Trained and all parameters by part, with a total."""
    table = Table(title="Parameters", title_justify="left", show_footer=True, box=None, pad_edge=False)
    trained = sum(count.trained for count in counts)
    total = sum(count.total for count in counts)
    table.add_column("part", footer="total")
    table.add_column("trained", justify="right", footer=f"{trained:,}")
    table.add_column("all", justify="right", footer=f"{total:,}")
    table.add_column("trained share", justify="right", footer=f"{trained / total:.2%}")
    for count in counts:
        share = f"{count.trained / count.total:.0%}" if count.trained else "frozen"
        table.add_row(count.part, f"{count.trained:,}", f"{count.total:,}", share)
    return table


def value_text(name: str, value: float) -> str:
    """A metric as people write it."""
    short = name.rpartition("/")[2]
    return f"{100 * value:.1f} %" if short in _SHARES else f"{value:.4g}"


def results_table(results: Mapping[str, Mapping[str, float]], trained: Mapping[str, int]) -> Table:
    """Metrics of one run or several, a row each.

    Args:
        results: Metrics by label.
        trained: Number of trained parameters by label.
    """
    table = Table(title="Results", title_justify="left", box=None, pad_edge=False)
    names = list(dict.fromkeys(name for metrics in results.values() for name in metrics))
    table.add_column("run")
    table.add_column("trained", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for label, metrics in results.items():
        shown = [value_text(name, metrics[name]) if name in metrics else "" for name in names]
        table.add_row(label, f"{trained[label]:,}", *shown)
    return table
