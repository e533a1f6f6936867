"""What a comparison of systems found, and the files that hold it."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusionkit.compare.apart import Failure
from fusionkit.compare.measure import Cost
from fusionkit.data.folders import write_whole


@dataclass(frozen=True, slots=True)
class SeedRun:
    """A system trained with one seed.

    Attributes:
        seed: Which.
        folder: Where its files are.
        metrics: Test metrics by name; of validation if there is no test split. None if it failed.
        seconds: Of training and testing; None if it failed, or if an interrupt hides it.
        error: Why it failed; empty if it did not.
    """

    seed: int
    folder: Path
    metrics: Mapping[str, float] | None
    seconds: float | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric over seeds: mean and sample standard deviation, None for a single seed."""

    mean: float
    sd: float | None


@dataclass(slots=True)
class SystemRow:
    """One system of a comparison.

    Attributes:
        label: Its name in the config.
        trained: Number of trained parameters; None if it cannot be built.
        total: Number of all parameters.
        refused: Why its definition refuses these encoders; empty if it does not.
        cost: What was measured.
        failure: Why nothing could be measured, or the FLOPs could not.
        runs: One for each seed it was trained with.
    """

    label: str
    trained: int | None = None
    total: int | None = None
    refused: str = ""
    cost: Cost | None = None
    failure: Failure | None = None
    runs: list[SeedRun] = field(default_factory=list)

    @property
    def share(self) -> float | None:
        """Of all parameters, those that are trained."""
        return self.trained / self.total if self.trained is not None and self.total else None

    @property
    def finished(self) -> list[SeedRun]:
        """The runs that did not fail."""
        return [run for run in self.runs if run.metrics is not None]

    @property
    def seconds(self) -> float | None:
        """Mean time of a run."""
        known = [run.seconds for run in self.runs if run.seconds is not None]
        return statistics.mean(known) if known else None

    def spread(self, metric: str) -> Spread | None:
        """A metric over the finished runs; None if there is none, or one is not a number."""
        values = [run.metrics.get(metric, math.nan) for run in self.runs if run.metrics is not None]
        if not values or not all(map(math.isfinite, values)):
            return None
        return Spread(
            statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
        )


@dataclass(slots=True)
class Comparison:
    """Systems side by side.

    Attributes:
        name: Of the experiment.
        folder: Holds ``compare.json``, ``.csv``, ``.md`` and the folders of the systems.
        torch: Version that measured.
        seeds: With which systems are trained; none if they are not.
        rows: One for each system, as they are listed.
    """

    name: str
    folder: Path
    torch: str
    seeds: tuple[int, ...]
    rows: list[SystemRow]

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics of all runs; losses are left out."""
        names = (name for row in self.rows for run in row.finished for name in run.metrics or ())
        return [name for name in dict.fromkeys(names) if not name.endswith("/loss")]

    @property
    def failed(self) -> bool:
        """Whether something went wrong: a crash, too little memory, a run with an error."""
        crashed = any(row.failure and row.failure.kind == "failed" for row in self.rows)
        return crashed or any(run.error for row in self.rows for run in row.runs)

    def to_json(self) -> dict[str, Any]:
        """Plain values for machines: seconds, bytes, FLOPs, metrics as fractions."""
        return {
            "name": self.name,
            "torch": self.torch,
            "seeds": list(self.seeds),
            "systems": [self._system(row) for row in self.rows],
        }

    def _system(self, row: SystemRow) -> dict[str, Any]:
        spreads = {metric: row.spread(metric) for metric in self.metrics}
        return {
            "system": row.label,
            "trained": row.trained,
            "all": row.total,
            "share": row.share,
            "refused": row.refused or None,
            "cost": None if row.cost is None else asdict(row.cost),
            "failure": None if row.failure is None else asdict(row.failure),
            "seconds": row.seconds,
            "metrics": {name: asdict(spread) for name, spread in spreads.items() if spread},
            "runs": [_run(run) for run in row.runs],
        }

    def to_csv(self) -> str:
        """One line for each system, in the units of :meth:`to_json`."""
        text = io.StringIO()
        lines = [dict(self._flat(row)) for row in self.rows]
        writer = csv.DictWriter(text, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def _flat(self, row: SystemRow) -> Iterator[tuple[str, Any]]:
        yield "system", row.label
        yield from {"trained": row.trained, "all": row.total, "share": row.share}.items()
        for key in Cost.__dataclass_fields__:
            yield key, getattr(row.cost, key, None)
        yield "reason", row.refused or (row.failure.message if row.failure else None)
        if self.seeds:
            yield "runs", len(row.finished)
            yield "seconds", row.seconds
        for metric in self.metrics:
            spread = row.spread(metric)
            yield f"{metric} mean", spread and spread.mean
            yield f"{metric} sd", spread and spread.sd

    def save(self, markdown: str) -> None:
        """Write the three files; each replaces an older one as a whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = {
            "compare.json": json.dumps(self.to_json(), indent=2) + "\n",
            "compare.csv": self.to_csv(),
            "compare.md": markdown,
        }
        for name, text in files.items():
            write_whole(self.folder / name, text)


def _run(run: SeedRun) -> dict[str, Any]:
    metrics = run.metrics or {}
    return {
        "seed": run.seed,
        "folder": str(run.folder),
        "metrics": {name: v if math.isfinite(v) else None for name, v in metrics.items()},
        "seconds": run.seconds,
        "error": run.error or None,
    }
