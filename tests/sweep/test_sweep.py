"""A sweep that is really run: several runs at a time, a failure, a second call, shards."""

from __future__ import annotations

import csv
import json

import pyarrow.parquet as pq
import pytest
import yaml

from fusionkit.cli import main
from fusionkit.errors import DataError
from fusionkit.sweep.grid import COLUMNS
from fusionkit.sweep.results import collect, find_axis, find_metric

AXES = {"fusion.experts": [2, 3], "rate": {"usual": {}, "none": {"optimizer": {"lr": 1e-9}}}}
# Refused only once data are read: a field that no sample has.
BROKEN = {"loader": {"shots": 20_000}}


@pytest.fixture
def sweep(tiny_config, tmp_path, monkeypatch, root):
    """Runs a sweep in processes of its own, which find the tiny classes as plug-ins."""
    path = tmp_path / "mine.yaml"
    trainer = {**tiny_config["trainer"], "max_epochs": 1}

    def sweep(*arguments: str, **more) -> int:
        config = {**tiny_config, "trainer": trainer, "seeds": [0, 1], **more}
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return main(["sweep", "--config", str(path), *arguments])

    return sweep


@pytest.fixture
def tiny_config(tmp_path):
    """Registered classes only: another process knows nothing of a test's."""
    return {
        "name": "tiny",
        "output": str(tmp_path / "runs"),
        "main": {"name": "bert", "model": "fusionkit/claims-transformer"},
        "complement": {"name": "timm_vit", "model": "fusionkit/digits-vit"},
        "complement_transfer": "frozen",
        "fusion": {"name": "conditional_prompt", "prompt_length": 1},
        "data": "digit_claims",
        "loader": {"batch_size": 16, "workers": 0, "shots": 32, "eval_batch_size": 256},
        "trainer": {
            "accelerator": "cpu", "progress_bar": False, "limit_val_batches": 1,
            "limit_test_batches": 1,
        },
    }  # fmt: skip


def test_a_sweep_with_a_failure_is_finished_by_a_second_call(sweep, tmp_path, capsys):
    axes = {"size": {"small": {}, "too large": BROKEN}}
    assert sweep("--jobs", "2", sweep=axes) == 1
    out, err = capsys.readouterr()
    assert "4 runs made now, 4 in all" in out
    assert out.count("failed: size=too large, seed") == 2
    assert "size=small, seed 0: test/accuracy" in err
    folder = tmp_path / "runs" / "tiny"
    runs = {(run.labels["size"], run.seed): run for run in collect(folder)}
    assert runs["small", 1].status == "finished"
    assert runs["small", 1].data == "digit_claims"  # rows of one data set are compared
    assert runs["too large", 0].status == "failed"
    assert "20000" in runs["too large", 0].error.replace(",", "")

    rows = pq.read_table(folder / "results.parquet").to_pylist()
    assert [row["status"] for row in rows].count("finished") == 2
    done = next(row for row in rows if row["size"] == "small" and row["seed"] == 0)
    assert done["run"] == "size=small/seed-0"
    assert done.keys() == {*COLUMNS, "size", *(name for name in done if name.startswith("test/"))}
    assert json.loads(done["config"])["loader"]["shots"] == 32
    assert "torch" in json.loads(done["versions"])
    assert done["trained_parameters"] < done["all_parameters"]
    epochs = pq.read_table(folder / "epochs.parquet").to_pylist()
    assert {"val/accuracy", "val/routing_entropy", "train/loss"} <= {r["metric"] for r in epochs}
    assert {row["epoch"] for row in epochs} == {1}
    with (folder / "results.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == [row["status"] for row in rows]

    before = (folder / "size=small" / "seed-0" / "metrics.json").stat().st_mtime_ns
    assert sweep("--jobs", "2", sweep={"size": {"small": {}, "too large": {}}}) == 0
    assert "2 runs made now, 4 in all" in capsys.readouterr().out  # of another config: again
    assert (folder / "size=small" / "seed-0" / "metrics.json").stat().st_mtime_ns == before
    runs = collect(folder)
    assert {run.status for run in runs} == {"finished"}
    labels = ["small", "small", "too large", "too large"]  # in the order of the grid
    assert [run.labels["size"] for run in runs] == labels
    assert sweep(sweep={"size": {"small": {}, "too large": {}}}) == 0
    assert "0 runs made now" in capsys.readouterr().out

    assert main(["table", str(folder), "--metric", "accuracy"]) == 0
    table = capsys.readouterr().out
    assert "| size | accuracy % |" in table
    assert "Two seeds are too few to test" in table
    assert (
        main(["plot", str(folder), "--x", "epoch", "--y", "routing_entropy", "--hue", "size"]) == 0
    )
    assert (folder / "routing_entropy_by_epoch.png").stat().st_size > 5000


def test_shards_are_disjoint_and_share_a_folder(sweep, tmp_path, capsys):
    places = []
    for number in (1, 2):
        assert sweep("--shard", f"{number}/2", sweep={"fusion.experts": [2, 3]}, seeds=[5]) == 0
        assert f"1 runs made now, in share {number}/2 of 2 in all" in capsys.readouterr().out
        places.append({str(run.folder) for run in collect(tmp_path / "runs" / "tiny")})
    assert len(places[0]) == 1
    assert places[0] < places[1]
    table = tmp_path / "runs/tiny/results.parquet"
    assert pq.read_table(table)["fusion.experts"].to_pylist() == [2, 3]
    before = [run.environment for run in collect(tmp_path / "runs/tiny")]

    # The grid is turned round: runs stay, and what is known of them follows it.
    assert sweep(sweep={"fusion.experts": [3, 2]}, seeds=[5]) == 0
    assert "0 runs made now" in capsys.readouterr().out
    assert pq.read_table(table)["fusion.experts"].to_pylist() == [3, 2]
    assert [run.environment for run in collect(tmp_path / "runs/tiny")] == before[::-1]
    assert all(environment["versions"]["torch"] for environment in before)


def test_a_dry_run_builds_every_point(sweep, tmp_path, capsys):
    assert sweep("--dry-run", sweep=AXES) == 0
    out = capsys.readouterr().out
    assert "tiny: 4 points, 2 seeds each" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "3/2"], "--shard is I/N with 1 <= I <= N, such as 2/8; given '3/2'"),
        (["--jobs", "0"], "--jobs is 0; it must be at least 1"),
        (["--sweep.a", "null"], "there is no sweep"),
    ],
)
def test_wrong_arguments(sweep, arguments, message, capsys):
    assert sweep(*arguments, sweep={"a": {"x": {}}}) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_runs(tmp_path):
    with pytest.raises(DataError, match=r"holds no runs of a sweep\. Give the folder"):
        collect(tmp_path)


def test_names_are_found_by_their_last_part():
    from types import SimpleNamespace

    runs = [SimpleNamespace(labels={"fusion.experts": "2", "a.x": "1", "b.x": "1"})]
    assert find_axis(runs, "experts") == "fusion.experts"
    with pytest.raises(DataError, match=r"'x' may be a\.x or b\.x"):
        find_axis(runs, "x")
    with pytest.raises(DataError, match=r"No axis 'expert'\. Did you mean"):
        find_axis(runs, "expert")
    assert find_metric(["test/loss", "test/accuracy"], "accuracy") == "test/accuracy"
    with pytest.raises(DataError, match=r"No metric 'acuracy'"):
        find_metric(["test/accuracy"], "acuracy")
