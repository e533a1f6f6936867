"""Two processes on one machine: one run folder, one checkpoint, the metrics of the whole split."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fusionkit.data.digit_claims import DigitClaims
from fusionkit.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]


# As in a fresh shell: no trace of another run, and no worker of the test runner.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("FUSIONKIT", "PYTEST"))}

MISSING = """
main: {name: bert, model: fusionkit/claims-transformer}
complement: {name: timm_vit, model: fusionkit/digits-vit}
complement_transfer: fine_tune
fusion: {name: conditional_prompt, experts: 2, prompt_length: 1, mapper_dim: 8}
data:
  name: table
  files: {train: t.csv, val: t.csv}
  fields: {image: photo, text: title}
  label: kind
missing: {allow: [complement], unreadable: true, dropout: 0.8}
loader: {batch_size: 2, workers: 0}
trainer: {max_epochs: 2, accelerator: cpu, devices: 2, strategy: ddp}
"""


def test_processes_may_differ_in_who_has_a_field(tmp_path):
    rows = ["photo,title,kind"]
    for i in range(24):
        photo = tmp_path / f"{i}.png"
        Image.new("L", (8, 8), 9 * i).save(photo)
        if i % 5 == 3:
            photo.write_bytes(b"no picture")
        rows.append(f"{photo.name if i % 4 else ''},it is {i},{'odd' if i % 2 else 'even'}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "c.yaml").write_text(MISSING)
    done = subprocess.run(
        [sys.executable, "-m", "fusionkit", "fit", "--config", "c.yaml"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("train: complement (image) missing in 6 of 24 samples") == 1
    # Both processes' findings, each once: 3, 13, 18, 23 (8 has no photo).
    assert (
        done.stderr.count("val: unreadable and taken for missing, field 'image': 4 (t.csv, r") == 1
    )


CLAIMS = f"""
base: {ROOT}/configs/quickstart.yaml
name: claims
baselines: null
data: {{name: digit_claims, claims_per_image: 2}}
loader: {{workers: 0, batch_size: 7}}
trainer: {{max_epochs: 1, accelerator: cpu, limit_train_batches: 3}}
"""


@pytest.mark.parametrize("settings", [[], ["--loader.tokens_per_batch=91"]], ids=["size", "tokens"])
def test_two_processes_count_each_sample_once(tmp_path, settings):
    (tmp_path / "c.yaml").write_text(CLAIMS)
    found = {}
    for name, devices in (("two", 2), ("one", 1)):
        words = [
            *("fit", "--config=c.yaml", f"--name={name}", f"--trainer.devices={devices}"),
            # Without a step, both end with the same weights.
            *("--optimizer.lr=0", "--optimizer.schedule=cosine", *settings),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "fusionkit", *words],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        folder = tmp_path / "runs" / name / "000"
        test = json.loads((folder / "metrics.json").read_text())["metrics"]
        found[name] = test | checkpoint.describe(folder).metrics
    assert found["two"].keys() == found["one"].keys() >= {"val/loss", "test/loss", "test/auroc"}
    for metric, value in found["one"].items():
        assert found["two"][metric] == pytest.approx(value, abs=1e-5), metric
    splits = DigitClaims(2)
    sizes = [len(splits.split(name)) for name in ("val", "test")]
    assert any(size % 2 or -(-size // 7) % 2 for size in sizes), "they divide evenly"


def test_more_processes_than_samples_is_said(tmp_path):
    (tmp_path / "t.csv").write_text("title,kind\na,x\nb,y\n")
    (tmp_path / "v.csv").write_text("title,kind\na,x\n")
    (tmp_path / "c.yaml").write_text(
        MISSING.replace("complement: {name: timm_vit, model: fusionkit/digits-vit}", "")
        .replace("complement_transfer: fine_tune", "main_transfer: fine_tune")
        .replace("conditional_prompt, experts: 2, prompt_length: 1, mapper_dim: 8", "main_only")
        .replace("image: photo, ", "")
        .replace("val: t.csv", "val: v.csv")
        .replace("missing: {allow: [complement], unreadable: true, dropout: 0.8}", "")
    )
    done = subprocess.run(
        [sys.executable, "-m", "fusionkit", "fit", "--config", "c.yaml"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "A split of 1 samples cannot be shared by 2 processes" in done.stderr


def test_two_processes_train_one_model(tmp_path):
    command = f"""{sys.executable} -m fusionkit fit --config {ROOT}/configs/quickstart.yaml
        --output {tmp_path} --data.claims_per_image 2 --trainer.max_epochs 1 --baselines null
        --trainer.devices 2 --trainer.strategy ddp --trainer.limit_train_batches 3
        --trainer.progress_bar false"""
    done = subprocess.run(
        command.split(), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Results on the test split") == 1
    (run,) = (tmp_path / "quickstart").iterdir()
    assert (run / "model.safetensors").is_file()
    both = json.loads((run / "metrics.json").read_text())["metrics"]["test/accuracy"]

    words = ["test", "--ckpt_path", str(run), "--trainer.accelerator", "cpu"]
    alone = subprocess.run(
        [sys.executable, "-m", "fusionkit", *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert alone.returncode == 0, alone.stderr[-2000:]
    shown = dict(line.split() for line in alone.stdout.splitlines() if line.startswith("test/"))
    assert float(shown["test/accuracy"]) == pytest.approx(both, abs=1e-3)
