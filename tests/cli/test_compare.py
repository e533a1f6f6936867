from __future__ import annotations

import csv
import inspect
import json
import math
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fusionkit.cli import main
from fusionkit.cli.compare import load_systems
from fusionkit.compare import apart, jobs, run as compare
from fusionkit.compare.apart import Failure, Training
from fusionkit.compare.measure import Cost
from fusionkit.compare.results import Comparison, SeedRun, SystemRow
from fusionkit.compare.tables import (
    cost_notes,
    cost_table,
    duration,
    markdown,
    results_table,
    run_notes,
    setting,
)
from fusionkit.config.systems import SYSTEMS
from fusionkit.errors import ConfigError
from fusionkit.training.folders import CONFIG, METRICS, RESUME

SHORT = {
    "trainer": {
        "max_epochs": 1,
        "limit_train_batches": 2,
        "limit_val_batches": 1,
        "limit_test_batches": 1,
        "progress_bar": False,
    },
    "data": {"claims_per_image": 2},
    "baselines": None,
}
METRIC_NAMES = {"test/accuracy", "test/auroc", "test/f1_macro"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def config(place, root) -> Path:
    """Systems of the quickstart: two that train, one of them failing, and one that refuses."""
    path = place / "mine.yaml"
    systems = {
        "main_only": {},
        "a/broken one": {"system": "prompt_main_only", "trainer": {"monitor": "val/nothing"}},
        "frozen": {},
    }
    content = {
        "base": str(root / "configs" / "quickstart.yaml"),
        "output": str(place / "runs"),
        "systems": systems,
        **SHORT,
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run(*argv: object) -> int:
    return main(["compare", *map(str, argv), "--steps", "1"])


@pytest.fixture(scope="module")
def fitted(config) -> tuple[int, Path]:
    """Exit code and folder of a whole comparison."""
    return run("--config", config, "--fit", "--jobs", 2), config.parent / "runs" / "mine"


def load(folder: Path) -> dict[str, dict]:
    return {s["system"]: s for s in json.loads((folder / "compare.json").read_text())["systems"]}


def table(folder: Path) -> list[list[str]]:
    lines = (folder / "compare.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_a_comparison_counts_measures_and_trains(fitted):
    code, folder = fitted
    assert code == 1  # one of the runs failed
    found = load(folder)
    assert list(found) == ["main_only", "a/broken one", "frozen"]
    trained = found["main_only"]
    assert trained["cost"]["batch_size"] == 64
    assert trained["cost"]["step_flops"] == pytest.approx(3 * trained["cost"]["forward_flops"])
    assert trained["cost"]["peak_bytes"] > 4 * 4 * trained["all"]  # weights, gradients, AdamW's
    (made,) = trained["runs"]
    assert made["error"] is None
    assert made["metrics"].keys() > METRIC_NAMES
    saved = json.loads((folder / "main_only" / "seed-0" / METRICS).read_text())
    assert saved["metrics"] == made["metrics"]
    assert saved["trained_parameters"] == trained["trained"]


def test_a_run_that_fails_is_recorded_and_the_rest_goes_on(fitted):
    _, folder = fitted
    broken = load(folder)["a/broken one"]
    assert broken["cost"]["step_seconds"] > 0
    (made,) = broken["runs"]
    assert made["metrics"] == {}
    assert "trainer.monitor: no metric 'val/nothing'" in made["error"]
    log = folder / "a_broken_one" / "seed-0" / apart.LOG
    assert made["error"] in log.read_text()
    notes = (folder / "compare.md").read_text()
    assert "- a/broken one, seed 0: trainer.monitor: no metric" in notes


def test_a_system_that_refuses_the_encoders_says_why(fitted):
    _, folder = fitted
    refused = load(folder)["frozen"]
    assert "causal language model" in refused["refused"]
    assert refused["cost"] is None
    assert refused["runs"] == []
    assert not (folder / "frozen").exists()
    row = next(row for row in table(folder) if row[0] == "frozen")
    assert row[1] == "refused"
    assert set(row[2:]) == {""}
    assert "- frozen: refused. The fusion 'frozen'" in (folder / "compare.md").read_text()


def test_trained_parameters_are_those_that_check_counts(fitted, config, capsys):
    _, folder = fitted
    found = load(folder)
    for label, system in {"main_only": "main_only", "a/broken one": "prompt_main_only"}.items():
        capsys.readouterr()
        assert main(["check", "--config", str(config), "--json", "--system", system]) == 0
        counted = json.loads(capsys.readouterr().out)
        assert found[label]["trained"] == counted["trained"] > 0
        assert found[label]["all"] == counted["all"]


def test_json_csv_and_markdown_agree(fitted):
    _, folder = fitted
    found = load(folder)
    rows = {row["system"]: row for row in csv.DictReader((folder / "compare.csv").open())}
    assert list(rows) == list(found)
    head, *lines = table(folder)
    assert [line[0] for line in lines] == list(found)
    for line in lines:
        system, row = found[line[0]], rows[line[0]]
        cells = dict(zip(head, line, strict=True))
        if system["refused"]:
            assert row["reason"] == system["refused"]
            continue
        assert int(row["trained"]) == system["trained"]
        assert cells["trained"] == f"{system['trained']:,}"
        assert cells["of all"] == f"{system['trained'] / system['all']:.2%}"
        for key, value in system["cost"].items():
            assert row[key] == str(value)
        flops = system["cost"]["step_flops"]
        assert float(cells["step, MFLOPs"].replace(",", "")) == pytest.approx(flops / 1e6, rel=0.01)
        seconds = system["cost"]["step_seconds"]
        assert float(cells["step, ms"].replace(",", "")) == pytest.approx(1000 * seconds, rel=0.01)
        assert int(row["runs"]) == sum(run["error"] is None for run in system["runs"])
        for metric in METRIC_NAMES:
            spread = system["metrics"].get(metric)
            assert row[f"{metric} mean"] == ("" if spread is None else str(spread["mean"]))
            assert row[f"{metric} sd"] == ""
            shown = cells[metric.partition("/")[2].replace("_", " ") + " %"]
            assert shown == ("" if spread is None else f"{100 * spread['mean']:.1f}")


def test_what_is_finished_is_not_repeated_and_what_was_begun_goes_on(fitted, config, capsys):
    _, folder = fitted
    place = folder / "main_only" / "seed-0"
    before = load(folder)["main_only"]["runs"]
    log, summary = place / apart.LOG, place / METRICS
    stamps = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in (log, summary)]
    capsys.readouterr()
    assert run("--config", config, "--fit", "--only", "main_only") == 0
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in (log, summary)] == stamps
    assert load(folder)["main_only"]["runs"] == before
    out = capsys.readouterr().out
    assert "main_only" in out
    assert "frozen" not in out

    summary.unlink()
    epoch = (place / RESUME).stat().st_mtime_ns
    assert run("--config", config, "--fit", "--only", "main_only") == 0
    again = load(folder)["main_only"]
    assert again["runs"][0]["metrics"] == before[0]["metrics"]
    assert (place / RESUME).stat().st_mtime_ns == epoch  # there was no epoch left to train
    assert again["seconds"] is None  # an interrupt hides how long it took


def test_json_goes_to_standard_output_alone(config, capsys):
    capsys.readouterr()
    assert run("--config", config, "--only", "frozen", "--json") == 2
    captured = capsys.readouterr()
    assert [s["system"] for s in json.loads(captured.out)["systems"]] == ["frozen"]
    assert "Every system refuses these encoders" in captured.err


def test_without_data_parameters_are_told(config, capsys):
    table = "{name: table, files: no.csv, fields: {image: i, text: t}, label: l, classes: [a, b]}"
    argv = ["--config", config, "--data", table, "--only", "main_only"]
    capsys.readouterr()
    assert run(*argv) == 0
    out = capsys.readouterr().out
    assert re.search(r"main_only +207,170 +100\.00% +no data", out)
    assert "no.csv does not exist" in " ".join(out.split())
    assert run(*argv, "--fit") == 1
    out = capsys.readouterr().out
    assert "Nothing was trained" in out
    assert not list(config.parent.glob("runs/mine/main_only/seed-0.*"))  # not even put aside


# What follows starts no training.


def cost(**changed: object) -> Cost:
    known = {"step_seconds": 0.25, "peak_bytes": 3 * 2**20, "forward_flops": 2e6}
    return Cost(
        **{
            **dict(machine="CPU", precision="32-true", batch_size=8, steps=3, step_flops=4e6),
            **known,
            **changed,
        }
    )


def comparison(*rows: SystemRow, seeds: tuple[int, ...] = ()) -> Comparison:
    return Comparison("mine", Path("runs/mine"), "2.0", seeds, list(rows))


def made(seed: int, accuracy: float, seconds: float | None = 60.0) -> SeedRun:
    metrics = {"test/loss": 0.5, "test/accuracy": accuracy, "test/mae": 10 * accuracy}
    return SeedRun(seed, Path("x"), metrics, seconds)


def shown(table) -> str:
    from rich.console import Console

    out = Console(width=80, no_color=True)
    with out.capture() as capture:
        out.print(table)
    return capture.get()


def test_spreads_are_means_and_sample_deviations():
    values = [0.5, 0.6, 0.8]
    row = SystemRow("a", 1, 2, cost=cost())
    row.runs = [made(i, value, 10 * (i + 1)) for i, value in enumerate(values)]
    row.runs.append(SeedRun(3, Path("x"), None, None, "broke"))
    spread = row.spread("test/accuracy")
    assert spread.mean == pytest.approx(statistics.mean(values))
    assert spread.sd == pytest.approx(math.sqrt(sum((v - 1.9 / 3) ** 2 for v in values) / 2))
    assert row.seconds == 20
    found = comparison(row, seeds=(0, 1, 2, 3))
    assert found.failed
    assert found.metrics == ["test/accuracy", "test/mae"]
    text = shown(results_table(found))
    assert "63.3 ± 15.3" in text
    assert "6.333 ± 1.5" in text
    assert "3 of 4" in text
    assert "over 4 seeds" in " ".join(text.split())
    assert list(run_notes(found)) == ["a, seed 3: broke (in x)"]


def test_one_seed_has_no_deviation_and_nan_no_mean():
    row = SystemRow("a", 1, 2, cost=cost(), runs=[made(0, 0.5)])
    assert row.spread("test/accuracy").sd is None
    assert "±" not in shown(results_table(comparison(row, seeds=(0,))))
    row.runs = [made(0, math.nan)]
    assert row.spread("test/accuracy") is None
    text = json.dumps(comparison(row, seeds=(0,)).to_json())
    assert "NaN" not in text


def test_tables_fit_a_terminal_and_say_their_units():
    rows = [
        SystemRow("prompt_late_concat", 123_456_789, 200_000_000, cost=cost(forward_flops=3.4e10)),
        SystemRow("[bold]b", 1, 3, cost=cost(peak_bytes=None, forward_flops=None)),
        SystemRow("no", refused="It reads both ways."),
        SystemRow("gone", 1, 3, failure=Failure("no data", "x.csv\ndoes not exist.")),
        SystemRow("gone too", 1, 3, failure=Failure("no data", "x.csv does not exist.")),
        SystemRow("odd", 1, 3, cost=cost(batch_size=4)),
    ]
    found = comparison(*rows)
    text = shown(cost_table(found))
    assert max(map(len, text.splitlines())) <= 80
    line = re.sub(" +", " ", next(x for x in text.splitlines() if "prompt_late_concat" in x))
    assert line.strip() == "prompt_late_concat 123,456,789 61.73% 34.0 0.00400 3.00 250"
    assert "GFLOPs" in text
    assert "[bold]b" in text
    assert setting(found) == "CPU, batches of 8, precision 32-true, torch 2.0"
    assert list(cost_notes(found)) == [
        "no: refused. It reads both ways.",
        "gone, gone too: no data. x.csv does not exist.",
        "odd: measured on CPU, batches of 4, precision 32-true",
    ]
    assert all(line.count("|") == 8 for line in markdown(found).splitlines()[2:10])


def test_durations_are_read_at_a_glance():
    assert [duration(s) for s in (4.4, 99, 120, 5940, 12240)] == [
        "4 s",
        "99 s",
        "2 min",
        "99 min",
        "3.4 h",
    ]


class Pretended:
    """A training that takes two looks and leaves what a real one leaves."""

    running = most = 0

    def __init__(self, folder: Path, threads: int | None) -> None:
        self.folder, self.threads, self.looks = folder, threads, 0
        self.seed = yaml.safe_load((folder / CONFIG).read_text())["seed"]
        self.error = "out of luck" if (folder.parent.name, self.seed) == ("b", 5) else None
        Pretended.running += 1
        Pretended.most = max(Pretended.most, Pretended.running)

    @property
    def ended(self) -> bool:
        self.looks += 1
        if self.looks < 2:
            return False
        Pretended.running -= 1
        if not self.error:
            summary = {"metrics": {"test/accuracy": self.seed / 10}, "seconds": 2.0}
            (self.folder / METRICS).write_text(json.dumps(summary))
        return True


def test_each_system_is_trained_with_each_seed_several_at_a_time(
    root, tmp_path, monkeypatch, capsys
):
    systems = "{a: {}, b: {seed: 9}, '007': {fusion: main_only}, gone: {}}"
    overrides = [("systems", systems), ("seeds", "[3, 5, 4]"), ("output", str(tmp_path))]
    experiment, found = load_systems([str(root / "configs" / "quickstart.yaml")], overrides)
    rows = [SystemRow(label, 1, 2, cost=cost()) for label in ("a", "b", "007")]
    rows.append(SystemRow("gone", 1, 2, failure=Failure("no data", "x.csv does not exist.")))
    made = Comparison("mine", tmp_path / "mine", "2.0", (), rows)
    monkeypatch.setattr(jobs, "Training", Pretended)
    monkeypatch.setattr(jobs, "_POLL", 0)
    compare.fit_systems(experiment, found, made, jobs=2)

    assert Pretended.most == 2
    assert [[run.seed for run in row.runs] for row in rows] == [[3, 5, 4]] * 4
    assert {run.error for run in rows[3].runs} == {"x.csv does not exist."}
    assert [run.error for run in rows[1].runs] == ["", "out of luck", ""]
    assert rows[0].spread("test/accuracy").mean == pytest.approx(0.4)
    assert rows[0].spread("test/accuracy").sd == pytest.approx(0.1)
    assert rows[1].spread("test/accuracy").sd == pytest.approx(math.sqrt(0.005))
    # A folder that is a number would be taken for a run of `fit`.
    assert {row.runs[0].folder.parent.name for row in rows} == {"a", "b", "_007", "gone"}
    assert not (tmp_path / "mine" / "gone").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 9
    assert "a, seed 3: test/accuracy 30.0 %, 2 s" in lines
    assert any(line.startswith("b, seed 5: failed, see ") for line in lines)
    (row,) = (
        row
        for row in csv.DictReader((tmp_path / "mine/compare.csv").open())
        if row["system"] == "b"
    )
    assert row["runs"] == "2"


def test_an_interrupt_ends_what_runs(root, tmp_path, monkeypatch):
    class Endless(Pretended):
        stopped = 0

        @property
        def ended(self) -> bool:
            raise KeyboardInterrupt

        def stop(self) -> None:
            Endless.stopped += 1

    overrides = [("systems", "{a: {}, b: {}, c: {}}"), ("output", str(tmp_path))]
    experiment, found = load_systems([str(root / "configs" / "quickstart.yaml")], overrides)
    rows = [SystemRow(label, 1, 2, cost=cost()) for label in found]
    monkeypatch.setattr(jobs, "Training", Endless)
    with pytest.raises(KeyboardInterrupt):
        compare.fit_systems(
            experiment, found, Comparison("mine", tmp_path, "2.0", (), rows), jobs=2
        )
    assert Endless.stopped == 2


def test_reasons_of_a_process_that_died(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("Traceback ...\nRuntimeError: no such kernel\n")
    assert apart._why(1, log) == "RuntimeError: no such kernel"
    assert apart._why(-signal.SIGKILL, log).startswith("the process was ended by SIGKILL, most lik")
    assert "loader.batch_size" in apart._why(-signal.SIGKILL, log)
    assert apart._why(-signal.SIGSEGV, log) == "the process was ended by SIGSEGV."
    log.write_text("hello\nfusionkit: error: one\n  two\n")
    assert apart._why(2, log) == "one\n  two"
    log.write_text("")
    assert apart._why(3, log) == "the process ended with exit code 3."


def test_a_training_that_is_stopped_ends(tmp_path, monkeypatch):
    code = f"import os, threading, time\n{inspect.getsource(apart._end_with_parent)}\n"
    code += "threading.Thread(target=_end_with_parent, daemon=True).start()\n"
    code += "print('up', flush=True); time.sleep(600)\n"
    popen = subprocess.Popen
    monkeypatch.setattr(
        apart.subprocess,
        "Popen",
        lambda argv, **kw: popen([sys.executable, "-c", code], **kw),
    )
    training = Training(tmp_path, threads=1)
    while "up" not in (tmp_path / apart.LOG).read_text():
        assert not training.ended
        time.sleep(0.05)
    training.stop()
    assert training.ended
    assert training.error is not None


def test_without_systems_all_are_compared(root):
    quickstart = str(root / "configs" / "quickstart.yaml")
    experiment, systems = load_systems([quickstart], [])
    assert list(systems) == list(SYSTEMS)
    assert experiment.fusion.init["experts"] == 16
    for name, system in systems.items():
        fusion = SYSTEMS[name].overlay["fusion"]
        assert system.fusion.name == (fusion if isinstance(fusion, str) else fusion["name"])


def test_a_named_system_that_is_not_valid_with_these_encoders_refuses_them(root):
    quickstart = str(root / "configs" / "quickstart.yaml")
    names = "[prompt_main_only, prompt_sequential]"
    _, systems = load_systems([quickstart], [("complement", "bow"), ("systems", names)])
    assert isinstance(systems["prompt_sequential"], ConfigError)
    assert "'prompt' needs layers to prompt; 'bow' has none" in str(systems["prompt_sequential"])
    own = "{mine: {system: prompt_sequential}}"
    with pytest.raises(ConfigError, match="needs layers"):
        load_systems([quickstart], [("complement", "bow"), ("systems", own)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only", "main_onli"], "--only: no system 'main_onli' in this comparison. Did you mean"),
        (["--systems", "[man_only]"], "unknown system 'man_only'. Did you mean 'main_only'"),
        (["--systems", "{a: {fusion: {experts: x}}}"], "systems.a.fusion.experts: expected int"),
        (["--jobs", "2"], "--jobs is about training; add --fit"),
        (["--jobs", "0", "--fit"], "--jobs is 0; it must be at least 1"),
        (["--steps", "0"], "--steps is 0; it must be at least 1"),
        (["--seeds", "[1, 1]"], "holds one of its numbers twice"),
        (["--systems", "{a b: {}, a/b: {}}"], "systems: the labels 'a b' and 'a/b' share a folder"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(root, tmp_path, capsys, argv, message):
    quickstart = str(root / "configs" / "quickstart.yaml")
    output = str(tmp_path / "runs")
    assert main(["compare", "--config", quickstart, "--output", output, *argv]) == 2
    assert message in capsys.readouterr().err
    assert not os.path.exists(output)


def test_no_process_is_left(fitted):
    assert not multiprocessing.active_children()
