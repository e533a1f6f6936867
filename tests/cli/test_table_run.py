"""The command line over a table of photos and titles, then all that can go wrong."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fusionkit.cli import main
from fusionkit.data.read import read_columns

CONFIG = """
name: things
output: {folder}/runs
main: {{name: timm_vit, model: fusionkit/digits-vit}}
complement: {{name: bert, model: fusionkit/claims-transformer}}
fusion: {{name: conditional_prompt, experts: 2, prompt_length: 2, mapper_dim: 8}}
data:
  name: table
  files: {folder}/things.csv
  fields: {{image: photo, text: title}}
  label: kind
  split: part
loader: {{batch_size: 8, workers: 0}}
trainer: {{max_epochs: 1, accelerator: cpu, progress_bar: false}}
"""
KINDS = ("even", "odd", "prime")


def write_table(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def make_rows(folder: Path) -> list[dict]:
    rows = []
    for i in range(40):
        Image.new("L", (8, 8), 6 * i).save(folder / f"{i}.png")
        part = "train" if i < 24 else "val" if i < 32 else "test"
        kind = KINDS[i % 3]
        rows.append({"photo": f"{i}.png", "title": f"it is {kind}", "kind": kind, "part": part})
    return rows


@pytest.fixture
def place(tmp_path) -> Path:
    write_table(tmp_path / "things.csv", make_rows(tmp_path))
    (tmp_path / "c.yaml").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path


def fit(place: Path, *words: str) -> int:
    return main(["fit", "--config", str(place / "c.yaml"), *words])


def test_fit_validate_test_and_predict(place, capsys):
    assert fit(place) == 0
    printed = capsys.readouterr().out
    assert "Results on the test split" in printed
    run = str(place / "runs" / "things")
    tested = json.loads((Path(run) / "000" / "metrics.json").read_text())["metrics"]
    assert main(["test", "--ckpt_path", run]) == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(shown["test/accuracy"]) == pytest.approx(tested["test/accuracy"], abs=1e-4)
    assert main(["validate", "--ckpt_path", run, "--loader.batch_size", "3"]) == 0
    assert "val/accuracy" in capsys.readouterr().out

    rows = [{"photo": f"{i}.png", "title": "it is odd", "note": "x"} for i in (5, 4, 3)]
    write_table(place / "new.csv", rows)
    (place / "new.csv.gz").write_bytes(gzip.compress((place / "new.csv").read_bytes()))
    inputs = {"csv": "new.csv", "jsonl": "new.csv.gz", "parquet": "ne*.csv", "arrow": "out.jsonl"}
    for suffix, given in inputs.items():
        out = place / f"out.{suffix}"
        words = ["--ckpt_path", run, "--input", str(place / given), "--output", str(out)]
        assert main(["predict", *words]) == 0
    table = pq.read_table(place / "out.parquet")
    assert table.column_names[:5] == ["photo", "title", "note", "prediction", "probability"]
    for row in table.to_pylist():
        probabilities = {name: row[f"p({name})"] for name in KINDS}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert row["prediction"] == max(probabilities, key=probabilities.get)
        assert row["probability"] == max(probabilities.values())
    assert read_columns(place / "out.arrow").to_pydict() == table.to_pydict()
    written = list(csv.DictReader((place / "out.csv").open()))
    assert [row["photo"] for row in written] == ["5.png", "4.png", "3.png"]
    assert json.loads((place / "out.jsonl").read_text().splitlines()[0])["note"] == "x"


def test_predictions_follow_the_order_of_rows(place, capsys):
    assert fit(place) == 0
    run = str(place / "runs" / "things")
    words = ["predict", "--ckpt_path", run, "--input", str(place / "things.csv"), "--output"]
    assert main([*words, str(place / "all.jsonl")]) == 0
    together = [json.loads(line) for line in (place / "all.jsonl").read_text().splitlines()]
    write_table(place / "one.csv", [{"photo": "17.png", "title": "it is prime"}])
    words[4] = str(place / "one.csv")
    assert main([*words, str(place / "one.jsonl")]) == 0
    alone = json.loads((place / "one.jsonl").read_text())
    assert together[17]["photo"] == "17.png"
    assert alone["p(odd)"] == pytest.approx(together[17]["p(odd)"], abs=1e-6)


def broken(place: Path, change) -> None:
    rows = make_rows(place)
    change(rows)
    write_table(place / "things.csv", rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--complement", "brt"], "Unknown complement encoder 'brt'. Did you mean 'bert'"),
        (["--main", "bow"], "'bow' has no layers to prompt"),
        (
            ["--fusion.expert", "3"],
            "fusion.expert: conditional_prompt has no argument 'expert'. Did",
        ),
        (["--fusion.experts", "many"], "fusion.experts: expected int, given 'many'"),
        (["--data.files", "PLACE/thing.csv"], "thing.csv does not exist"),
        (["--data.label", "sort"], "'sort'"),
        (["--data.fields.image", "foto"], "no column 'foto'"),
        (["--complement_field", "image"], "field 'image' is image"),
        (["--main.weights", "PLACE/no.safetensors"], "no.safetensors"),
        (["--data.split", "null", "--data.files", "{test: PLACE/things.csv}"], "train"),
    ],
)
def test_what_a_config_can_get_wrong(place, capsys, words, message):
    assert fit(place, *(word.replace("PLACE", str(place)) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("fusionkit: error: ")
    assert message in error
    assert "Traceback" not in error


def test_a_corrupt_image_names_its_row_and_path(place, capsys):
    (place / "2.png").write_bytes(b"not a picture")
    assert fit(place) == 2
    error = capsys.readouterr().err
    assert "things.csv, row 3: field 'image'" in error
    assert "2.png" in error
    assert "cannot be read" in error


def test_a_label_that_training_has_not_seen_names_its_row(place, capsys):
    broken(place, lambda rows: rows[35].update(kind="huge"))
    assert fit(place) == 2
    error = capsys.readouterr().err
    assert "row 36" in error
    assert "'huge'" in error
    assert "even, odd, prime" in error


def test_an_empty_training_split_names_the_values_there_are(place, capsys):
    broken(place, lambda rows: [row.update(part="test") for row in rows])
    assert fit(place) == 2
    assert "train" in capsys.readouterr().err


def test_an_empty_test_split_is_said_by_test(place, capsys):
    broken(place, lambda rows: [row.update(part="val") for row in rows if row["part"] == "test"])
    assert fit(place) == 0
    assert "validation split" in capsys.readouterr().out
    assert main(["test", "--ckpt_path", str(place / "runs" / "things")]) == 2
    assert "The test split is empty" in capsys.readouterr().err


def test_other_classes_are_refused_at_test(place, capsys):
    assert fit(place) == 0
    broken(place, lambda rows: [row.update(kind="x" + row["kind"]) for row in rows])
    assert main(["test", "--ckpt_path", str(place / "runs" / "things")]) == 2
    assert "State the checkpoint's classes in data.classes" in capsys.readouterr().err


def test_check_as_json(place, capsys):
    assert main(["check", "--config", str(place / "c.yaml"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["data"] == {"train": 24, "val": 8, "test": 8}
    assert report["outputs"] == 3
    assert report["trained"] == sum(count["trained"] for count in report["counts"])


def test_a_table_whose_columns_the_output_cannot_hold_is_refused_before_the_work(place, capsys):
    assert fit(place) == 0
    rows = [{"photo": (place / "3.png").read_bytes(), "title": "it is odd"}]
    pq.write_table(pa.Table.from_pylist(rows), place / "new.parquet")
    words = ["predict", "--ckpt_path", str(place / "runs" / "things")]
    words += ["--input", str(place / "new.parquet"), "--output"]
    assert main([*words, str(place / "out.csv")]) == 2
    assert "Column 'photo' holds binary, which .csv cannot hold" in capsys.readouterr().err
    assert main([*words, str(place / "out.parquet")]) == 0
    assert pq.read_table(place / "out.parquet").column("photo")[0].as_py() == rows[0]["photo"]
