"""Two processes on one machine: one run folder, one checkpoint, the metrics of the whole split."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_train_one_model(tmp_path):
    command = f"""{sys.executable} -m fusionkit fit --config {ROOT}/configs/quickstart.yaml
        --output {tmp_path} --data.claims_per_image 2 --trainer.max_epochs 1 --baselines null
        --trainer.devices 2 --trainer.strategy ddp --trainer.limit_train_batches 3
        --trainer.progress_bar false"""
    # As in a fresh shell: no trace of another run, and no worker of the test runner.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FUSIONKIT", "PYTEST"))}
    done = subprocess.run(
        command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Results on the test split") == 1
    (run,) = (tmp_path / "quickstart").iterdir()
    assert (run / "model.safetensors").is_file()
    both = json.loads((run / "metrics.json").read_text())["metrics"]["test/accuracy"]

    words = ["test", "--ckpt_path", str(run), "--trainer.accelerator", "cpu"]
    alone = subprocess.run(
        [sys.executable, "-m", "fusionkit", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert alone.returncode == 0, alone.stderr[-2000:]
    shown = dict(line.split() for line in alone.stdout.splitlines() if line.startswith("test/"))
    assert float(shown["test/accuracy"]) == pytest.approx(both, abs=1e-3)
