"""What a run prints: tables a person wants to read."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fusionkit.data.base import Samples, Stream
from fusionkit.data.lengths import is_quick, lengths_of, padding_share
from fusionkit.data.loading import FusionDataset, Loader
from fusionkit.data.sampling import Batches
from fusionkit.training.parameters import PartCount

# Shares, shown in per cent.
SHARES = ("accuracy", "f1_macro", "f1_micro", "auroc")


def console() -> Console:
    """The terminal, as wide as it is; a file or pipe gets 100 columns and no colours."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def parameter_table(counts: Sequence[PartCount]) -> Table:
    """Trained and all parameters by part, with a total."""
    table = plain_table("Parameters", show_footer=True)
    trained = sum(count.trained for count in counts)
    total = sum(count.total for count in counts)
    table.add_column("part", footer="total")
    table.add_column("trained", justify="right", footer=f"{trained:,}")
    table.add_column("all", justify="right", footer=f"{total:,}")
    table.add_column("trained share", justify="right", footer=f"{100 * trained / total:.2f} %")
    for count in counts:
        share = f"{100 * count.trained / count.total:.3g} %" if count.trained else "frozen"
        table.add_row(count.part, f"{count.trained:,}", f"{count.total:,}", share)
    return table


def size_text(split: str, samples: Samples) -> str:
    """``1,432 val``; of a stream what is known."""
    if not isinstance(samples, Stream):
        return f"{len(samples):,} {split}"
    if samples.length is None:
        return f"{split} (a stream)"
    return f"{samples.length:,} {split} (an epoch of a stream)"


def missing_lines(split: str, dataset: FusionDataset) -> list[str]:
    """What the samples of a split lack, a line for each role whose field some lack."""
    fields = {role.role: role.field for role in dataset.roles}
    return [
        f"{split}: {role} ({fields[role]}) missing in {count:,} of {len(dataset):,} samples"
        for role, count in dataset.missing.items()
        if count
    ]


_TRIED = 512  # samples whose lengths tell about the rest
_MUCH = 0.2  # share of padding from which on buckets are worth a line


def padding_line(loader: Loader) -> str | None:
    """How much of the training batches is padding, or would be less of in buckets."""
    batches, dataset = loader.batch_sampler, loader.dataset
    if not isinstance(batches, Batches):  # a stream
        return None
    count, lengths = len(dataset), batches.lengths
    if lengths is not None:
        plan = [batch % count for batch in batches.plan()]
        sizes = [len(batch) for batch in plan]
        now = padding_share(plan, lengths)
        random = padding_share(_random(count, round(sum(sizes) / len(sizes))), lengths)
        return (
            f"train: {len(plan):,} batches of {min(sizes)} to {max(sizes)} samples; padding is "
            f"{now:.1%} of them, in random batches it would be {random:.1%}"
        )
    if not is_quick(dataset.samples, dataset.roles):
        return None
    tried = np.random.default_rng(0).permutation(count)[:_TRIED].tolist()
    found = lengths_of(dataset.samples, dataset.roles, tried)
    if found is None:
        return None
    now = padding_share(_random(len(tried), batches.size), found)
    buckets = padding_share(Batches(len(tried), batches.size, False, 0, found).plan(), found)
    if now < _MUCH or buckets > now / 2:
        return None
    return (
        f"train: about {now:.0%} of the batches is padding; loader.bucket_by_length: true would "
        f"leave about {buckets:.0%}"
    )


def _random(count: int, size: int) -> list[NDArray[np.int64]]:
    return Batches(count, size, train=True, seed=0).plan()


def value_text(name: str, value: float) -> str:
    """A metric as people write it."""
    short = name.rpartition("/")[2]
    return f"{100 * value:.1f} %" if short in SHARES else f"{value:.4g}"


def metric_title(name: str) -> str:
    """A metric as a column that holds bare numbers is headed: ``f1 macro %``."""
    short = name.rpartition("/")[2]
    return f"{short.replace('_', ' ')}{' %' if short in SHARES else ''}"


def spread_text(name: str, mean: float, sd: float | None) -> str:
    """Mean and standard deviation of a metric, without its unit: ``85.3 ± 0.4``."""
    if name.rpartition("/")[2] in SHARES:
        return f"{100 * mean:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")
    return f"{mean:.4g}" + ("" if sd is None else f" ± {sd:.2g}")


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One run in the table of results: metrics by name, parameters, seconds."""

    label: str
    metrics: Mapping[str, float]
    trained: int
    total: int
    seconds: float


def results_table(rows: Sequence[ResultRow]) -> Table:
    """Metrics of one run or several, a row each."""
    names = list(dict.fromkeys(n for row in rows for n in row.metrics if not n.endswith("/loss")))
    split = names[0].partition("/")[0] if names else ""
    title = {"test": "Results on the test split", "val": "Results on the validation split"}
    table = plain_table(title.get(split, "Results"))
    table.add_column("run", no_wrap=True)
    for name in names:
        table.add_column(name.removeprefix(f"{split}/").replace("_", " "), justify="right")
    table.add_column("trained", justify="right")
    table.add_column("of all", justify="right")
    table.add_column("time", justify="right")
    for row in rows:
        shown = [
            value_text(name, row.metrics[name]) if name in row.metrics else "" for name in names
        ]
        share = f"{row.trained / row.total:.2%}"
        table.add_row(row.label, *shown, f"{row.trained:,}", share, f"{row.seconds:.0f} s")
    return table


def plain_table(title: str, show_footer: bool = False) -> Table:
    """An empty table in the style of all of them."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_footer=show_footer,
    )
