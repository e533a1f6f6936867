"""What the runs of a sweep left, as two tables.

They are made from the run folders whenever they are asked for, so that shards on several machines
need nothing but a folder that they share, and a run that was copied there later counts.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fusionkit.data.folders import replace_whole
from fusionkit.errors import DataError, suggest
from fusionkit.training.folders import CONFIG, METRICS, logged_by_epoch

POINT = "point.json"
RESULTS, EPOCHS = "results", "epochs"


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a sweep.

    Attributes:
        folder: Where its files are.
        place: Of its point in the grid.
        labels: That point: a label for each axis.
        values: The values that stand behind the labels.
        seed: Its seed.
        status: ``finished``, ``failed`` or ``unfinished``.
        error: Why it failed.
        metrics: Of its test split, or of validation if there is none; empty if not finished.
        summary: All of its ``metrics.json``.
        environment: Machine and versions of libraries.
    """

    folder: Path
    place: int
    labels: dict[str, str]
    values: dict[str, Any]
    seed: int
    status: str
    error: str | None
    metrics: dict[str, float]
    summary: dict[str, Any]
    environment: dict[str, Any]

    def epochs(self) -> Iterator[tuple[int, str, float]]:
        """See :func:`fusionkit.training.folders.logged_by_epoch`."""
        return logged_by_epoch(self.folder)


def collect(folder: Path) -> list[Run]:
    """The runs of a sweep in the order of its grid.

    Raises:
        DataError: There are none.
    """
    notes = folder.glob(f"*/seed-*/{POINT}")
    # Those of another config, which were put aside, are called seed-0.1 and so on.
    runs = [_read(note.parent) for note in notes if note.parent.name[5:].isdigit()]
    if not runs:
        raise DataError(
            f"{folder} holds no runs of a sweep. Give the folder that `fusionkit sweep` names, "
            f"OUTPUT/NAME of its config."
        )
    return sorted(runs, key=lambda run: (run.place, run.seed))


def _read(folder: Path) -> Run:
    about = json.loads((folder / POINT).read_text(encoding="utf-8"))
    summary: dict[str, Any] = {}
    if about["error"] is None and (folder / METRICS).is_file():
        summary = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    status = "finished" if summary else "failed" if about["error"] else "unfinished"
    return Run(
        folder,
        about["place"],
        about["labels"],
        about["values"],
        about["seed"],
        status,
        about["error"],
        summary.get("metrics", {}),
        summary,
        about["environment"],
    )


def write_results(folder: Path) -> None:
    """Write ``results`` and ``epochs`` as Parquet, and ``results`` as CSV."""
    runs = collect(folder)
    axes = list(dict.fromkeys(axis for run in runs for axis in run.labels))
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
    rows = []
    for run in runs:
        config = (run.folder / CONFIG).read_text("utf-8") if (run.folder / CONFIG).is_file() else ""
        rows.append(
            {
                "run": str(run.folder.relative_to(folder)),
                **{axis: run.labels.get(axis) for axis in axes},
                "seed": run.seed,
                "status": run.status,
                "error": run.error,
                **{name: run.metrics.get(name) for name in metrics},
                "best_epoch": run.summary.get("best_epoch"),
                "trained_parameters": run.summary.get("trained_parameters"),
                "all_parameters": run.summary.get("all_parameters"),
                "seconds": run.summary.get("seconds"),
                "machine": run.environment.get("machine"),
                "versions": json.dumps(run.environment.get("versions")),
                "config": json.dumps(yaml.safe_load(config) if config else None),
            }
        )
    _write(folder / f"{RESULTS}.parquet", pa.Table.from_pylist(rows))
    _write_csv(folder / f"{RESULTS}.csv", rows)
    epochs = [
        {"run": str(run.folder.relative_to(folder)), "epoch": epoch, "metric": name, "value": value}
        for run in runs
        for epoch, name, value in run.epochs()
    ]
    schema = pa.schema(
        [("run", pa.string()), ("epoch", pa.int64()), ("metric", pa.string()),
         ("value", pa.float64())]
    )  # fmt: skip
    _write(folder / f"{EPOCHS}.parquet", pa.Table.from_pylist(epochs, schema=schema))


def _write(path: Path, table: pa.Table) -> None:
    replace_whole(path, lambda place: pq.write_table(table, place))


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    def write(place: Path) -> None:
        with place.open("w", newline="", encoding="utf-8") as file:
            names = [name for name in rows[0] if name != "config"]
            writer = csv.DictWriter(file, names, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    replace_whole(path, write)


def find_axis(runs: Sequence[Run], asked: str) -> str:
    """The axis of a name or of the last part of a dotted one.

    Raises:
        DataError: There is none, or there are several.
    """
    axes = list(dict.fromkeys(axis for run in runs for axis in run.labels))
    found = [axis for axis in axes if asked in (axis, axis.rpartition(".")[2])]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{asked!r} may be {' or '.join(found)}; give the whole key.")
    raise DataError(f"No axis {asked!r}.{suggest(asked, axes)} The axes are {', '.join(axes)}.")


def find_metric(known: Sequence[str], asked: str) -> str:
    """The metric of a name, ``accuracy`` for ``test/accuracy``.

    Raises:
        DataError: There is none.
    """
    known = list(dict.fromkeys(known))
    found = [name for name in known if asked == name]
    found = found or [name for name in known if asked == name.rpartition("/")[2]]
    if found:
        return found[0]
    raise DataError(f"No metric {asked!r}.{suggest(asked, known)} There are {', '.join(known)}.")


def is_number(value: float | None) -> bool:
    """Whether there is a finite value."""
    return value is not None and math.isfinite(value)
