"""configs/three_modalities.yaml on the table that scripts/spoken_hints.py makes of recordings."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from fusionkit.cli import main
from fusionkit.data.claims import claims

TINY_SPEECH = (
    "{name: wav2vec2, weights: random, config: {model_type: wav2vec2, hidden_size: 16, "
    "num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 24, conv_dim: [8, 8, 8], "
    "conv_kernel: [10, 3, 3], conv_stride: [20, 4, 2], num_conv_pos_embeddings: 6, "
    "num_conv_pos_embedding_groups: 2}}"
)


@pytest.fixture(scope="module")
def hints(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """Recordings and pictures of digits, with a hint for each."""
    folder = tmp_path_factory.mktemp("digits")
    rows = []
    for i in range(60):
        sound = np.sin(np.arange(1600) * (i % 10 + 1) / 20).astype(np.float32)
        soundfile.write(folder / f"{i}.wav", sound, 8000)
        Image.new("L", (28, 28), 20 * (i % 10)).save(folder / f"{i}.png")
        split = ("train", "val", "test")[i // 20]
        rows.append({"audio": f"{i}.wav", "image": f"{i}.png", "digit": i % 10, "split": split})
    with (folder / "digits.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    command = [sys.executable, root / "scripts/spoken_hints.py", folder / "digits.csv"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.startswith("60 rows with hints in "), done.stderr
    return folder / "hints.csv"


def test_hints_are_true_and_do_not_tell_the_digit(hints: Path) -> None:
    with hints.open(newline="") as file:
        rows = list(csv.DictReader(file))
    holds_for = {claim.text: claim.holds_for for claim in claims()}
    assert [row["audio"] for row in rows] == [f"{i}.wav" for i in range(60)]
    for row in rows:
        digits = holds_for[row["hint"]]
        assert int(row["digit"]) in digits
        assert 3 <= len(digits) <= 7
    assert len({row["hint"] for row in rows}) > 20


def test_a_table_without_the_columns_is_refused(tmp_path: Path, root: Path) -> None:
    (tmp_path / "a.csv").write_text("audio,digit\n")
    command = [sys.executable, root / "scripts/spoken_hints.py", tmp_path / "a.csv"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "lacks the columns image, split" in done.stderr


@pytest.mark.parametrize("psi", ["concat", "sum", "attention"])
def test_three_modalities_train_and_test(
    hints: Path, root: Path, tmp_path: Path, psi: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(root / "configs/three_modalities.yaml")
    encoder = ["--more_complements.0.encoder", TINY_SPEECH]
    short = ["--trainer.max_epochs", "1", "--trainer.progress_bar", "false"]
    short += ["--loader.workers", "0", "--data.files", str(hints), "--output", str(tmp_path)]
    assert main(["fit", "--config", config, "--fusion.psi", psi, *encoder, *short]) == 0
    assert "complement_2" in capsys.readouterr().out
    assert main(["test", "--ckpt_path", str(tmp_path / "three_modalities")]) == 0
