"""All benchmarks that have targets: tables to read, JSON to keep.

    make bench
    python -m benchmarks [NAME ...] [--quick] [--threads N] [--json FILE]

Each ratio is that of the medians of two sides that took turns in one process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Row
from fusionkit.compare.measure import machine
from fusionkit.training.checkpoint import library_versions

NAMES = ("steps", "tuning", "loading", "prediction", "compiled", "complements", "start")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure fusionkit against what it is compared with, side by side.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that they run")
    parser.add_argument("--threads", type=int, help="of torch; as many as it takes by itself")
    parser.add_argument("--json", type=Path, default=Path("runs/bench.json"), help="written there")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    if given.threads:
        torch.set_num_threads(given.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {
        "machine": machine(device),
        "python": platform.python_version(),
        "versions": library_versions(),
        "quick": given.quick,
        "results": {},
    }
    console = Console(highlight=False)
    console.print(f"{found['machine']}, Python {found['python']}, torch {torch.__version__}\n")
    started = time.monotonic()
    given.json.parent.mkdir(parents=True, exist_ok=True)
    for name in given.names or NAMES:
        rows: list[Row] = []
        for row in _watched(name, given.quick, console):
            rows.append(row)
            found["results"][name] = [asdict(row) for row in rows]  # type: ignore[index]
            given.json.write_text(json.dumps(found, indent=2) + "\n")  # what is done is not lost
        console.print(table(name, rows))
    console.print(f"{time.monotonic() - started:.0f} s; also in {given.json}")


def _watched(name: str, quick: bool, console: Console) -> Iterator[Row]:
    """The rows of a benchmark, with a line that says how far it is."""
    measure = importlib.import_module(f"benchmarks.{name}").rows
    with console.status(f"{name} ...") as status:
        for row in measure(quick):
            status.update(f"{name}: {row.name}: {row.ratio:.2f} ...")
            yield row


def table(title: str, rows: list[Row]) -> Table:
    """What was measured, and whether it keeps to its target."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    made.add_column("")
    for column in ("ratio", "target", "", "medians"):
        made.add_column(column, justify="left" if column == "medians" else "right")
    for row in rows:
        sign = ">=" if row.at_least else "<="
        target = "" if row.target is None else f"{sign} {row.target:.2f}"
        met = {None: "", True: "met", False: "missed"}[row.met]
        amounts = ", ".join(f"{side} {_amount(n, row.unit)}" for side, n in row.amounts.items())
        made.add_row(row.name, f"{row.ratio:.3f}", target, met, amounts)
    return made


def _amount(value: float, unit: str) -> str:
    return f"{value / 2**20:,.0f} MiB" if unit == "bytes" else f"{1000 * value:,.0f} ms"


if __name__ == "__main__":
    main()
