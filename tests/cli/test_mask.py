"""The command line over a table with holes, and the robustness of what was trained on it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from fusionkit.cli import main

CONFIG = """
name: things
output: {folder}/runs
main: {{name: bert, model: fusionkit/claims-transformer}}
complement: {{name: timm_vit, model: fusionkit/digits-vit}}
complement_transfer: frozen
fusion: {{name: conditional_prompt, experts: 2, prompt_length: 2, mapper_dim: 8}}
data:
  name: table
  files: {folder}/things.csv
  fields: {{image: photo, text: title}}
  label: kind
  id: name
  split: part
missing: {{allow: [main, complement]}}
loader: {{batch_size: 8, workers: 0}}
trainer: {{max_epochs: 1, accelerator: cpu, progress_bar: false}}
"""
KINDS = ("even", "odd", "prime")


@pytest.fixture
def place(tmp_path) -> Path:
    rows = []
    for i in range(40):
        Image.new("L", (8, 8), 6 * i).save(tmp_path / f"{i}.png")
        rows.append(
            {
                "name": f"thing {i}",
                "photo": "" if i % 8 == 1 else f"{i}.png",
                "title": "" if i % 8 == 3 else f"it is {KINDS[i % 3]}",
                "kind": KINDS[i % 3],
                "part": "train" if i < 24 else "val" if i < 32 else "test",
            }
        )
    write(tmp_path / "things.csv", rows)
    (tmp_path / "c.yaml").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path


def write(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def make_mask(place: Path, *words: str) -> int:
    return main(
        ["mask", "--config", str(place / "c.yaml"), "--output", str(place / "m.csv"), *words]
    )


def test_fit_mask_test_and_predict(place, capsys):
    assert main(["fit", "--config", str(place / "c.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "train: main (text) missing in 3 of 24 samples" in printed
    assert "test: complement (image) missing in 1 of 8 samples" in printed

    run = str(place / "runs" / "things")
    assert make_mask(place, "--rate", "0.5", "--splits", "test") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["split", "field", "missing", "of", "rate"],
        ["test", "text", "4", "8", "50.0%"],
        ["test", "image", "4", "8", "50.0%"],
    ]
    with (place / "m.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"thing {i}" for i in range(32, 40)]
    assert all("1" in (row["text"], row["image"]) for row in rows)
    assert (rows[1]["image"], rows[3]["text"]) == ("0", "0")  # the data's own holes

    words = ["test", "--ckpt_path", run]
    losses = []
    for more in ([], ["--missing.mask", str(place / "m.csv")]):
        assert main([*words, *more]) == 0
        shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
        losses.append(shown["test/loss"])
    assert losses[0] != losses[1]

    new = [
        {"photo": "5.png", "title": "it is odd"},
        {"photo": "", "title": "it is odd"},
        {"photo": "5.png", "title": ""},
        {"photo": "", "title": ""},
    ]
    write(place / "new.csv", [{"name": "x", **row} for row in new])
    out = place / "out.jsonl"
    words = ["predict", "--ckpt_path", run, "--output", str(out), "--input"]
    assert main([*words, str(place / "new.csv")]) == 0
    predicted = [json.loads(line)["p(odd)"] for line in out.read_text().splitlines()]
    assert main([*words, str(place / "new.csv"), "--missing.mask", "mask.csv"]) == 2
    assert "predict takes no mask" in capsys.readouterr().err
    assert len(set(predicted)) == 4
    write(place / "one.csv", [{"name": "x", **new[2]}])
    assert main([*words, str(place / "one.csv")]) == 0
    assert json.loads(out.read_text())["p(odd)"] == pytest.approx(predicted[2], abs=1e-6)


def test_a_mask_that_no_longer_fits_the_table(place, capsys):
    assert main(["fit", "--config", str(place / "c.yaml")]) == 0
    assert make_mask(place, "--rate", "0.25", "--fields", "image", "--splits", "test") == 0
    text = (place / "things.csv").read_text()
    (place / "things.csv").write_text(text.replace("thing 33,", "thing 99,"))
    capsys.readouterr()
    words = ["--ckpt_path", str(place / "runs" / "things"), "--missing.mask", str(place / "m.csv")]
    assert main(["test", *words]) == 2
    error = capsys.readouterr().err
    assert "m.csv: row 2 of test has the id 'thing 33', in the data (things.csv, row 34)" in error
    assert "'thing 99'" in error
    words[-1] = str(place / "none.csv")
    assert main(["test", *words]) == 2
    assert "none.csv does not exist" in capsys.readouterr().err


def test_what_may_not_be_missing_is_refused_with_the_row(place, capsys):
    words = ["--config", str(place / "c.yaml"), "--missing.allow", "[main]"]
    message = (
        "things.csv, row 2: field 'image' is missing in 3 samples, this one first, and complement "
        "reads it. Fill it in, remove the rows, or let a learned stand-in take its place: "
        "missing.allow: [main, complement]."
    )
    assert main(["fit", *words]) == 2
    assert message in capsys.readouterr().err
    assert main(["check", *words]) == 0
    assert "field 'image' is missing" in " ".join(capsys.readouterr().out.split())
    assert not (place / "runs").exists()


def test_prediction_refuses_what_the_model_was_not_trained_without(place, capsys):
    full = (place / "things.csv").read_text().replace(",,", ",0.png,")
    (place / "things.csv").write_text(full)
    assert main(["fit", "--config", str(place / "c.yaml"), "--missing.allow", "[]"]) == 0
    write(place / "new.csv", [{"name": "a", "photo": "5.png", "title": ""}, {"name": "b"}])
    run = str(place / "runs" / "things")
    words = ["--input", str(place / "new.csv"), "--output", str(place / "out.csv")]
    assert main(["predict", "--ckpt_path", run, *words]) == 2
    assert "new.csv, row 2: field 'image' is missing, and complement" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rate", "half"], "Argument --rate: invalid float value: 'half'"),
        (["--rate", "0.6"], "Without 60% of each of text, image, some samples would have nothing"),
        (["--rate", "0.3", "--fields", "photo"], "--fields: 'photo' is none of them."),
        (
            ["--rate", "0.3", "--splits", "train,tets"],
            "'tets' is none of them. Did you mean 'test'",
        ),
        ([], "The following arguments are required: --rate"),
    ],
)
def test_what_the_command_can_get_wrong(place, capsys, words, message):
    assert make_mask(place, *words) == 2
    assert message in capsys.readouterr().err
    assert not (place / "m.csv").exists()
