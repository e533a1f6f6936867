"""``fusionkit data prepare``, then check, fit, test and predict, on small replicas."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import replicas

from fusionkit.cli import main

IMAGE = "{name: timm_vit, model: fusionkit/digits-vit}"
TEXT = "{name: bert, model: fusionkit/claims-transformer}"
SPEECH = (
    "{name: wav2vec2, weights: random, config: {model_type: wav2vec2, hidden_size: 16, "
    "num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 24, conv_dim: [8, 8, 8], "
    "conv_kernel: [10, 3, 3], conv_stride: [20, 4, 2], num_conv_pos_embeddings: 6, "
    "num_conv_pos_embedding_groups: 2}}"
)
CONFIG = f"""
name: replica
main: {IMAGE}
complement: {TEXT}
complement_transfer: frozen
fusion: {{name: conditional_prompt, experts: 2, prompt_length: 2, mapper_dim: 8}}
loader: {{batch_size: 8, workers: 0}}
trainer: {{max_epochs: 1, accelerator: cpu, progress_bar: false}}
"""


def make(name: str, folder: Path) -> Path:
    root = folder / name
    root.mkdir()
    getattr(replicas, name)(root)
    (folder / "c.yaml").write_text(
        CONFIG + f"output: {folder}/runs\ndata: {{name: {name}, root: {root}}}\n"
    )
    return root


def run(folder: Path, command: str, *words: str) -> int:
    return main([command, "--config", str(folder / "c.yaml"), *words])


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("food101", {"train": 50, "val": 5, "test": 19}),
        ("mmimdb", {"train": 33, "val": 12, "test": 12}),
        ("snli_ve", {"train": 25, "val": 9, "test": 9}),
    ],
)
def test_prepare_check_fit_and_test(name, sizes, tmp_path, capsys):
    root = make(name, tmp_path)
    assert run(tmp_path, "fit") == 2
    assert f"Run: fusionkit data prepare {name} --root {root}" in capsys.readouterr().err

    assert main(["data", "prepare", name, "--root", str(root)]) == 0
    printed = capsys.readouterr().out
    assert f"{root}/fusionkit/findings.csv" in printed
    assert f"data: {{name: {name}, root: {root}}}" in printed

    assert run(tmp_path, "check", "--json") == 0
    assert json.loads(capsys.readouterr().out)["data"] == sizes
    assert run(tmp_path, "fit") == 0
    assert main(["test", "--ckpt_path", str(tmp_path / "runs" / "replica")]) == 0
    assert "test/" in capsys.readouterr().out


def test_mustard_by_words_voice_and_face(tmp_path, capsys):
    root = make("mustard", tmp_path)
    assert main(["data", "prepare", "mustard", "--root", str(root)]) == 0
    words = [
        *("--main", TEXT, "--complement", SPEECH),
        *(
            "--more_complements",
            f"[{{encoder: {{name: video, encoder: {IMAGE}, frames: 2}}, transfer: frozen}}]",
        ),
    ]
    capsys.readouterr()
    assert run(tmp_path, "check", "--json", *words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["data"] == {"train": 11, "val": 1, "test": 10}
    assert report["fields"] == {"main": "text", "complement": "audio", "complement_2": "video"}
    assert run(tmp_path, "fit", *words) == 0


def test_predict_takes_columns_named_after_the_fields(tmp_path):
    root = make("food101", tmp_path)
    assert main(["data", "prepare", "food101", "--root", str(root)]) == 0
    assert run(tmp_path, "fit") == 0
    new = root / "new.csv"
    new.write_text("image,text\nimages/test/baklava/baklava_100.jpg,Baklava with honey\n")
    out = tmp_path / "out.csv"
    ckpt = str(tmp_path / "runs" / "replica")
    assert main(["predict", "--ckpt_path", ckpt, "--input", str(new), "--output", str(out)]) == 0
    (row,) = csv.DictReader(out.open())
    assert "p(baklava)" in row


def test_incomplete_rows_are_kept_for_stand_ins(tmp_path, capsys):
    root = make("food101", tmp_path)
    assert main(["data", "prepare", "food101", "--root", str(root), "--keep-incomplete"]) == 0
    assert "kept without image" in capsys.readouterr().out
    assert run(tmp_path, "fit") == 2
    assert "field 'image' is missing in 3 samples" in capsys.readouterr().err
    assert run(tmp_path, "fit", "--missing.allow", "[main]") == 0
    assert "main (image) missing in 3 of" in capsys.readouterr().out


def test_the_closing_tables(tmp_path, capsys):
    root = make("mmimdb", tmp_path)
    assert main(["data", "prepare", "mmimdb", "--root", str(root)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "found rows outcome first"
    assert "image missing 1 dropped dataset/0000009.jpeg" in lines
    assert "split listed dropped rows published" in lines
    assert "train 41 8 33 15,552 listed" in lines
    assert "in all 65 8 57 25,959 listed, 25,956 used in arXiv 2312.03734" in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["food"], "Unknown data set 'food'. Did you mean 'food101'?"),
        (["table"], "table needs no preparation: it is read as it is."),
        (["mmimdb"], "mmimdb cannot be prepared: PLACE/nowhere does not exist."),
        (["mmimdb", "--keep-incomplet"], "Did you mean '--keep-incomplete'?"),
    ],
)
def test_what_cannot_be_prepared(words, message, tmp_path, capsys):
    assert main(["data", "prepare", *words, "--root", f"{tmp_path}/nowhere"]) == 2
    error = capsys.readouterr().err
    assert message.replace("PLACE", str(tmp_path)) in error
    assert "Traceback" not in error


def test_the_root_must_be_given(capsys):
    assert main(["data", "prepare", "mmimdb"]) == 2
    assert "--root. See `fusionkit data prepare --help`" in capsys.readouterr().err


def test_help_names_every_data_set_that_can_be_prepared(capsys):
    assert main(["data", "prepare", "--help"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    for name in ("food101", "mmimdb", "snli_ve", "mustard"):
        assert f"\n  {name} " in printed
