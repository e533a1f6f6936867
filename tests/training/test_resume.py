"""A run that stopped anywhere within an epoch goes on as if it had not."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fusionkit.config.validate import experiment_from_mapping
from fusionkit.errors import CheckpointError
from fusionkit.training.run import fit
from fusionkit.training.task import FusionTask

ROOT = Path(__file__).resolve().parents[2]


class Stopped(Exception):
    pass


def run(config: dict, ckpt_path: str | None = None, **sections):
    merged = {**config}
    for key, value in sections.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return fit(experiment_from_mapping(merged), ckpt_path).folder


def stop(monkeypatch: pytest.MonkeyPatch, epoch: int, batch: int, where: str) -> None:
    """Let the run break off before a batch of an epoch."""
    step = getattr(FusionTask, where)

    def stopping(self, given, batch_idx):
        if (self.current_epoch, batch_idx) == (epoch, batch):
            raise Stopped
        return step(self, given, batch_idx)

    monkeypatch.setattr(FusionTask, where, stopping)


def last(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "last.ckpt", weights_only=True)
    return content


def epochs(folder: Path) -> dict[str, dict[str, str]]:
    """What was logged at the end of each epoch; of an epoch that was logged twice, the latter."""
    found: dict[str, dict[str, str]] = {}
    for name in [*sorted(folder.glob("metrics.*.csv")), folder / "metrics.csv"]:
        for row in csv.DictReader(name.open()):
            logged = {k: v for k, v in row.items() if v and k.startswith(("val/", "train/loss"))}
            logged.pop("train/loss_step", None)
            if logged:
                found.setdefault(row["epoch"], {}).update(logged)
    assert found
    assert all("train/loss" in row for row in found.values())
    return found


def assert_same(one: Path, other: Path) -> None:
    a, b = last(one), last(other)
    assert a["global_step"] == b["global_step"]
    assert a["lr_schedulers"] == b["lr_schedulers"]
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for name, value in a["state_dict"].items():
        torch.testing.assert_close(value, b["state_dict"][name], rtol=0, atol=0, msg=name)
    assert epochs(one) == epochs(other)
    assert (one / "metrics.json").read_text().partition("seconds")[0] == (
        other / "metrics.json"
    ).read_text().partition("seconds")[0]


EVERY_STEP = {"max_epochs": 3, "save_every_n_steps": 1}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"loader": {"workers": 2}},
        {"loader": {"balanced": True}},
        {"trainer": {"accumulate_grad_batches": 2}},
        {"trainer": {"save_every_n_steps": 3}, "optimizer": {"schedule": "cosine"}},
        {
            "missing": {"allow": ["complement"], "dropout": 0.5},
            "complement_transfer": "fine_tune",
            "data": {"lack": "b"},
        },
        {"data": {"sizes": [60, 0, 16]}},
    ],
    ids=str,
)
def test_what_stopped_within_an_epoch_goes_on_as_if_it_had_not(tiny_config, monkeypatch, sections):
    config = {**tiny_config, "loader": {"batch_size": 8, "workers": 0}}
    for key in sections:
        if isinstance(sections[key], dict):
            config[key] = {**config.get(key, {}), **sections[key]}
        else:
            config[key] = sections[key]
    config["trainer"] = {**tiny_config["trainer"], **EVERY_STEP, **sections.get("trainer", {})}
    whole = run(config, name="whole")
    with monkeypatch.context() as patch:
        stop(patch, 1, 5, "training_step")
        with pytest.raises(Stopped):
            run(config, name="parts")
    parts = Path(config["output"]) / "parts" / "000"
    steps = last(parts)["global_step"]
    assert steps % (4 if "accumulate_grad_batches" in config["trainer"] else 8) != 0
    assert run(config, "last", name="parts") == parts
    assert_same(whole, parts)


@pytest.mark.parametrize(
    ("epoch", "batch", "where"),
    [
        (0, 1, "training_step"),
        (1, 7, "training_step"),  # the last of its epoch
        (0, 0, "validation_step"),
        (1, 1, "validation_step"),
        (2, 0, "training_step"),
    ],
)
def test_wherever_it_stopped(tiny_config, monkeypatch, epoch, batch, where):
    config = {**tiny_config, "loader": {"batch_size": 8, "workers": 0}}
    config["trainer"] = {**tiny_config["trainer"], **EVERY_STEP}
    whole = run(config, name="whole")
    with monkeypatch.context() as patch:
        stop(patch, epoch, batch, where)
        with pytest.raises(Stopped):
            run(config, name="parts")
    assert_same(whole, run(config, "last", name="parts"))


def test_it_may_stop_twice_in_an_epoch(tiny_config, monkeypatch):
    config = {**tiny_config, "loader": {"batch_size": 8, "workers": 0}}
    config["trainer"] = {**tiny_config["trainer"], **EVERY_STEP}
    whole = run(config, name="whole")
    for resume, batch in ((None, 2), ("last", 5)):
        with monkeypatch.context() as patch:
            stop(patch, 1, batch, "training_step")
            with pytest.raises(Stopped):
                run(config, resume, name="parts")
    assert_same(whole, run(config, "last", name="parts"))


def test_a_continued_run_sees_the_rest_of_its_epoch_and_no_more(tiny_config, monkeypatch):
    config = {**tiny_config, "loader": {"batch_size": 8, "workers": 0}}
    config["trainer"] = {**tiny_config["trainer"], **EVERY_STEP, "max_epochs": 2}
    seen: list[list[int]] = []
    step = FusionTask.training_step

    def watch(self, batch, batch_idx):
        if (self.current_epoch, batch_idx, len(seen)) == (1, 3, 11):
            raise Stopped
        seen.append(batch["index"].tolist())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(FusionTask, "training_step", watch)
    with pytest.raises(Stopped):
        run(config)
    seen.append([])  # the batch it stopped before comes again
    run(config, "last")
    seen.remove([])
    assert len(seen) == 16
    second = [index for batch in seen[8:] for index in batch]
    assert sorted(second) == list(range(64))


def test_within_an_epoch_as_many_processes_go_on_as_stopped(tiny_config, monkeypatch):
    config = {**tiny_config, "trainer": {**tiny_config["trainer"], **EVERY_STEP}}
    with monkeypatch.context() as patch:
        stop(patch, 1, 2, "training_step")
        with pytest.raises(Stopped):
            run(config)
    path = Path(config["output"]) / "tiny" / "000" / "last.ckpt"
    content = last(path.parent)
    content["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["processes"] = 4
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"on 4 processes and cannot .* trainer.devices to 4"):
        run(config, "last")


KILLED = """
import os, signal, sys
from fusionkit.cli import main
from fusionkit.training.task import FusionTask

step = FusionTask.training_step

def killed(self, batch, batch_idx):
    if (self.current_epoch, batch_idx) == (1, 5) and self.global_rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)

if os.environ.get("KILL"):
    FusionTask.training_step = killed
sys.exit(main(sys.argv[1:]))
"""

AUGMENTED = f"""
base: {ROOT}/configs/quickstart.yaml
baselines: null
main: {{weights: random}}
main_transfer: fine_tune
complement: {{augment: randaugment}}
complement_transfer: lora
data: {{name: digit_claims, claims_per_image: 2}}
loader: {{batch_size: 16, tokens_per_batch: 256, workers: 2}}
optimizer: {{schedule: cosine}}
trainer:
  max_epochs: 2
  accelerator: cpu
  save_every_n_steps: 2
  limit_train_batches: 9
  limit_val_batches: 2
  limit_test_batches: 2
  log_every_n_steps: 1
  progress_bar: false
"""


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_that_was_killed_equals_one_that_was_not(tmp_path, devices):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FUSIONKIT", "PYTEST"))}
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "c.yaml").write_text(AUGMENTED)

    def fit_as(name, *words, **extra):
        given = ["fit", "--config=c.yaml", f"--name={name}", f"--trainer.devices={devices}", *words]
        return subprocess.run(
            [sys.executable, "killed.py", *given],
            cwd=tmp_path,
            env=environment | extra,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    whole, killed = (tmp_path / "runs" / name / "000" for name in ("whole", "killed"))
    assert fit_as("whole").returncode == 0
    assert fit_as("killed", KILL="1").returncode == -9
    assert last(killed)["global_step"] == 14  # five batches into the second epoch of nine
    again = fit_as("killed", "--ckpt_path=last")
    assert again.returncode == 0, again.stderr[-2000:]
    assert_same(whole, killed)
