"""Tables and figures that documents show of the declared experiments can be made of their grids.

Nothing is trained: run folders with made-up metrics stand for the runs.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from fusionkit.cli import main
from fusionkit.cli.plot import _EXAMPLES as PLOT
from fusionkit.cli.sweep import _EXAMPLES as SWEEP
from fusionkit.cli.table import _EXAMPLES as TABLE
from fusionkit.config.merge import read_config
from fusionkit.sweep.grid import _choices, _place
from fusionkit.sweep.results import POINT
from fusionkit.training.folders import CONFIG, METRICS

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "configs" / "experiments"
TEXTS = [
    PLOT, TABLE, SWEEP, (ROOT / "docs" / "sweeps.md").read_text(),
    *(path.read_text() for path in sorted(EXPERIMENTS.glob("*.yaml"))),
]  # fmt: skip
COMMANDS = sorted(
    {found[0] for text in TEXTS for found in re.finditer(r"fusionkit (table|plot) runs/.*", text)}
)


def make_runs(name: str, folder: Path) -> None:
    digits = name == "digits"  # Table 2 on the embedded data
    merged = read_config([EXPERIMENTS / f"{'table2' if digits else name}.yaml"])
    axes = {
        axis: _choices(axis, given, Path(merged.source(("sweep", axis))).parent)
        for axis, given in merged.values["sweep"].items()
        if not (digits and axis == "data")
    }
    for place, choices in enumerate(itertools.product(*axes.values())):
        labels, values = _place(axes, choices)
        data = labels.get("data", "digits")
        measured = ("f1_macro", "f1_micro") if data == "MM-IMDB" else ("accuracy",)
        for seed in range(3):
            run = folder / ",".join(labels.values()) / f"seed-{seed}"
            run.mkdir(parents=True)
            about = {"place": place, "labels": labels, "values": values, "seed": seed}
            (run / POINT).write_text(json.dumps({**about, "error": None, "environment": {}}))
            (run / CONFIG).write_text(yaml.safe_dump({"data": {"name": data}}))
            metrics = {f"test/{metric}": 0.5 + place / 500 + seed / 9 for metric in measured}
            (run / METRICS).write_text(json.dumps({"metrics": metrics, "seconds": 1.0}))
            with (run / "metrics.csv").open("w") as file:
                writer = csv.writer(file)
                writer.writerow(["epoch", "val/routing_entropy"])
                writer.writerows([[0, 3.0 + seed / 9], [1, 2.0 + seed / 9]])


def test_there_are_such_commands():
    assert len(COMMANDS) >= 9
    assert {re.search(r"runs/(\w+)", c)[1] for c in COMMANDS} >= {"table2", "fig4", "fig6", "fig7"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_works(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = re.search(r"runs/(\w+)", command)[1]
    make_runs(name, tmp_path / "runs" / name)
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    if command.startswith("fusionkit plot"):
        assert (tmp_path / out.removeprefix("Written to ").strip()).stat().st_size > 4000
    elif "--output" not in command:
        rows = [line for line in out.splitlines() if line.startswith("| ")][1:]
        assert rows
        assert all("±" in row for row in rows)
