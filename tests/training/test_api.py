"""Training and prediction from Python, over data that is in memory."""

from __future__ import annotations

import io

import datasets
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image

import fusionkit
from fusionkit.cli import main
from fusionkit.errors import ConfigError, DataError

KINDS = ["odd", "even", "prime"]


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "png")
    return file.getvalue()


def frame(start: int = 0, stop: int = 40) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "photo": [png(6 * i) for i in range(start, stop)],
            "title": [f"it is {KINDS[i % 3]}" for i in range(start, stop)],
            "kind": [KINDS[i % 3] for i in range(start, stop)],
        }
    )


@pytest.fixture
def config(tmp_path):
    (tmp_path / "old.csv").write_text("photo,title,kind\n")
    return {
        "name": "things",
        "output": str(tmp_path / "runs"),
        "main": {"name": "timm_vit", "model": "fusionkit/digits-vit"},
        "complement": {"name": "bert", "model": "fusionkit/claims-transformer"},
        "complement_transfer": "frozen",
        "fusion": {"name": "conditional_prompt", "experts": 2, "prompt_length": 2, "mapper_dim": 8},
        "data": {
            "name": "table",
            "files": {"train": str(tmp_path / "old.csv"), "test": str(tmp_path / "old.csv")},
            "fields": {"image": "photo", "text": "title"},
            "label": "kind",
        },
        "loader": {"batch_size": 8, "workers": 0},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "progress_bar": False},
        "baselines": {"image only": {"complement": None, "fusion": "main_only"}},
    }


def test_a_frame_is_trained_on_tested_on_and_predicted(config, tmp_path, capsys):
    run = fusionkit.fit(config, data={"train": frame(0, 30), "val": frame(30, 40)})
    assert "val/accuracy" in run.metrics
    assert (run.folder / "baselines" / "image_only" / "model.safetensors").is_file()
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())["data"]
    assert saved["files"] == {
        "train": "(in memory) DataFrame, 30 rows, 3 columns",
        "val": "(in memory) DataFrame, 10 rows, 3 columns",
    }
    assert saved["classes"] == ["even", "odd", "prime"]

    predictor = fusionkit.load(run.folder)
    new = frame(0, 10).drop(columns="kind")
    predicted = predictor.predict(new)
    assert predicted.shape == (10, 3)
    rows = [{"image": row.photo, "text": row.title} for row in new.itertuples()]
    torch.testing.assert_close(predicted, predictor.predict(rows))
    torch.testing.assert_close(predicted, predictor.predict(pa.table(new)))

    capsys.readouterr()
    assert main(["test", "--ckpt_path", str(run.folder)]) == 2
    assert "The test split is empty" in capsys.readouterr().err
    assert main(["validate", "--ckpt_path", str(run.folder)]) == 2
    message = (
        "The config was made for data in memory, which no file holds: DataFrame, 10 rows, "
        "3 columns. Name files of the same columns: --data.files"
    )
    assert message in capsys.readouterr().err
    frame(30, 40).to_parquet(tmp_path / "val.parquet")
    words = ["validate", "--ckpt_path", str(run.folder)]
    assert main([*words, "--data.files", f"{{val: {tmp_path}/val.parquet}}"]) == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(shown["val/accuracy"]) == pytest.approx(run.metrics["val/accuracy"], abs=1e-4)


def test_a_data_set_of_hugging_face_is_trained_on_by_the_workers(config, tmp_path):
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "title": datasets.Value("string"),
            "kind": datasets.ClassLabel(names=KINDS),
        }
    )
    cells = frame().assign(kind=[i % 3 for i in range(40)]).to_dict("list")
    whole = datasets.Dataset.from_dict(cells, features=features).train_test_split(0.25, seed=0)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    run = fusionkit.fit(
        tmp_path / "c.yaml", data=whole, overrides={"loader": {"workers": 2}, "baselines": None}
    )
    assert "test/accuracy" in run.metrics
    predictor = fusionkit.load(run.folder)
    assert predictor.description.classes == KINDS
    assert predictor.predict(whole["test"]).shape == (10, 3)


def test_without_data_it_is_the_command(config, tmp_path):
    frame().to_parquet(tmp_path / "t.parquet")
    config["data"]["files"] = str(tmp_path / "t.parquet")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "baselines": None}))
    words = ["fit", "--config", str(tmp_path / "c.yaml"), "--trainer.max_epochs", "2"]
    assert main(words) == 0
    run = fusionkit.fit(tmp_path / "c.yaml", overrides={"trainer": {"max_epochs": 2}})
    first = tmp_path / "runs" / "things" / "000" / "metrics.csv"
    assert run.folder.name == "001"
    assert first.read_text() == (run.folder / "metrics.csv").read_text()


def test_a_run_over_memory_goes_on_with_data_of_the_same_size(config):
    config["baselines"] = None
    run = fusionkit.fit(config, data=frame())
    more = {"trainer": {"max_epochs": 2}}
    again = fusionkit.fit(config, data=frame(), overrides=more, ckpt_path="last")
    assert again.folder == run.folder
    with pytest.raises(ConfigError, match=r"data\.files: '.*40 rows.*' -> '.*39 rows"):
        fusionkit.fit(config, data=frame(0, 39), overrides=more, ckpt_path="last")


@pytest.mark.parametrize(
    ("change", "data", "message"),
    [
        ({"data": "digit_claims"}, frame(), "data: data.fields: table needs it and has no default"),
        ({}, frame().rename(columns={"title": "titel"}), "no column 'title', which field 'text'"),
        ({}, [1, 2], "Data is a pandas DataFrame, a pyarrow Table"),
        ({}, {"val": frame()}, "`files` names no training file. Add train: to it."),
        ({}, frame().assign(kind=None), "DataFrame, row 1: label column 'kind' is empty; fill it"),
        ({}, frame().assign(photo=b"x"), r"field 'image' \(of 1 bytes\) cannot be read: The image"),
    ],
)
def test_what_does_not_fit_says_why(config, change, data, message):
    config["baselines"] = None
    with pytest.raises((ConfigError, DataError), match=message):
        fusionkit.fit({**config, **change}, data=data)


def test_prediction_needs_the_columns_of_training(config):
    config["baselines"] = None
    predictor = fusionkit.load(fusionkit.fit(config, data=frame()).folder)
    with pytest.raises(DataError, match=r"DataFrame has no column 'title', .* Did you mean"):
        predictor.predict(frame().rename(columns={"title": "titles"}))
    with pytest.raises(DataError, match="DataFrame has no rows"):
        predictor.predict(frame()[:0])
    with pytest.raises(DataError, match=r"DataFrame, row 2: field 'image' is missing"):
        predictor.predict(frame()[:3].assign(photo=[png(0), None, png(1)]))
