"""What the runs of a sweep left, as two tables.

They are made from the run folders whenever they are asked for, so that shards on several machines
need nothing but a folder that they share, and a run that was copied there later counts.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fusionkit.data.folders import replace_whole
from fusionkit.errors import DataError, suggest
from fusionkit.sweep.grid import EPOCH_COLUMNS
from fusionkit.training.folders import CONFIG, METRICS, logged_by_epoch

POINT = "point.json"
RESULTS, EPOCHS = "results", "epochs"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is built in


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
        config: The whole of it; empty if the run was not begun.
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
    config: dict[str, Any]

    @property
    def data(self) -> str:
        """Name of the data set that it is tested on."""
        return str(self.config.get("data", {}).get("name", ""))

    def epochs(self) -> Iterator[tuple[int, str, float]]:
        """See :func:`fusionkit.training.folders.logged_by_epoch`."""
        return logged_by_epoch(self.folder)


def collect(folder: Path) -> list[Run]:
    """The runs of a sweep in the order of its grid.

    Raises:
        DataError: There are none.
    """
    runs = []
    for note in folder.glob(f"*/seed-*/{POINT}"):
        # Those of another config, which were put aside, are called seed-0.1 and so on.
        if note.parent.name[5:].isdigit():
            try:
                runs.append(_read(note.parent))
            except FileNotFoundError:  # another shard has put it aside by now
                continue
    if not runs:
        raise DataError(
            f"{folder} holds no runs of a sweep. Give the folder that `fusionkit sweep` names, "
            f"OUTPUT/NAME of its config."
        )
    # A point that was in the grid once may have the place of another one.
    return sorted(runs, key=lambda run: (run.place, run.folder.parent.name, run.seed))


def _read(folder: Path) -> Run:
    about = json.loads((folder / POINT).read_text(encoding="utf-8"))
    summary: dict[str, Any] = {}
    if about["error"] is None and (folder / METRICS).is_file():
        summary = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    status = "finished" if summary else "failed" if about["error"] else "unfinished"
    begun = (folder / CONFIG).is_file()
    config = yaml.load((folder / CONFIG).read_text("utf-8"), _Loader) if begun else {}
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
        config,
    )


def axes_of(runs: Sequence[Run]) -> list[str]:
    """The axes of the grid that runs are of.

    Raises:
        DataError: They are of two grids.
    """
    grids = list(dict.fromkeys(tuple(run.labels) for run in runs))
    if len(grids) > 1:
        first, second = (", ".join(grid) for grid in grids[:2])
        place = runs[0].folder.parent.parent
        raise DataError(
            f"{place} holds runs of two grids, over {first} and over {second}. Move those of one "
            f"away, and give each grid a --name of its own."
        )
    return list(grids[0])


def select(runs: Sequence[Run], only: Sequence[str]) -> list[Run]:
    """Runs with some labels; an axis of which one label is left is no axis any more.

    Args:
        runs: What :func:`collect` found.
        only: ``AXIS=LABEL``; several of one axis add up.

    Raises:
        DataError: An axis or a label does not exist.
    """
    kept: dict[str, list[str]] = {}
    for text in only:
        asked, equals, label = text.partition("=")
        if not equals:
            raise DataError(f"--only is AXIS=LABEL, such as data=digits; given {text!r}.")
        axis = find_axis(runs, asked)
        labels = list(dict.fromkeys(run.labels[axis] for run in runs))
        if label not in labels:
            raise DataError(
                f"--only: {axis} has no label {label!r}.{suggest(label, labels)} "
                f"There are {', '.join(labels)}."
            )
        kept.setdefault(axis, []).append(label)
    fixed = {axis for axis, labels in kept.items() if len(set(labels)) == 1}
    return [
        replace(run, labels={a: label for a, label in run.labels.items() if a not in fixed})
        for run in runs
        if all(run.labels[axis] in labels for axis, labels in kept.items())
    ]


def write_results(folder: Path) -> None:
    """Write ``results`` and ``epochs`` as Parquet, and ``results`` as CSV."""
    runs = collect(folder)
    axes = list(dict.fromkeys(axis for run in runs for axis in run.labels))
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
    columns = {axis: _column(runs, axis) for axis in axes}
    rows = []
    for number, run in enumerate(runs):
        rows.append(
            {
                "run": str(run.folder.relative_to(folder)),
                **{axis: columns[axis][number] for axis in axes},
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
                "config": json.dumps(run.config or None),
            }
        )
    _write(folder / f"{RESULTS}.parquet", pa.Table.from_pylist(rows))
    _write_csv(folder / f"{RESULTS}.csv", rows)
    epochs = [
        dict(zip(EPOCH_COLUMNS, (str(run.folder.relative_to(folder)), *row), strict=True))
        for run in runs
        for row in run.epochs()
    ]
    kinds = (pa.string(), pa.int64(), pa.string(), pa.float64())
    schema = pa.schema(zip(EPOCH_COLUMNS, kinds, strict=True))
    _write(folder / f"{EPOCHS}.parquet", pa.Table.from_pylist(epochs, schema=schema))


def _column(runs: Sequence[Run], axis: str) -> list[Any]:
    """Numbers where all are numbers or null, else labels."""
    values = [run.values.get(axis) for run in runs]
    kinds = {type(value) for value in values if value is not None}
    if kinds and (kinds <= {int, float} or kinds == {bool}):
        return values
    return [run.labels.get(axis) for run in runs]


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
    axes = axes_of(runs)
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
