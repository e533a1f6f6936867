"""What encoders take from the training split: when, from which rows, and where it is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import TinyComplement

import fusionkit
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.encoders.vector import Vector
from fusionkit.errors import DataError
from fusionkit.training.evaluate import evaluate, predict
from fusionkit.training.run import fit

BUFFERS = "fusion.encoders.complement.encoder.backbone"


def run(config, ckpt_path=None, **changes):
    return fit(experiment_from_mapping({**config, **changes}), ckpt_path)


@pytest.fixture
def vectors(tiny_config):
    return {**tiny_config, "complement": {"name": "vector", "dim": 6}}


@pytest.fixture
def products(tiny_config, tmp_path):
    """A table whose label is whether the price is high for its kind; some cells are empty."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(120):
        kind, price = ("cup", "car")[i % 2], float(rng.normal())
        cells = {"price": 1000 + 100 * price if i % 10 else None, "kind": kind if i % 7 else ""}
        split = ("train", "train", "val", "test")[i % 4]
        label = "high" if (price > 0) == (kind == "cup") else "low"
        rows.append({"v": rng.normal(size=24).tolist(), **cells, "split": split, "label": label})
    (tmp_path / "products.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {key: value for key, value in tiny_config.items() if not key.endswith("_field")}
    return config | {
        "complement": {"name": "table", "numeric": ["price"], "categorical": ["kind"], "dim": 16},
        "complement_transfer": "fine_tune",
        "data": {
            "name": "table",
            "files": str(tmp_path / "products.jsonl"),
            "fields": {"vector": "v", "table": {"columns": ["price", "kind"]}},
            "label": "label",
            "split": "split",
        },
    }


def test_statistics_are_those_of_the_training_split(products):
    result = run(products)
    with open(products["data"]["files"]) as file:
        rows = [json.loads(line) for line in file]
    prices = [r["price"] for r in rows if r["split"] == "train" and r["price"] is not None]
    saved = load_file(result.folder / "model.safetensors")
    assert saved[f"{BUFFERS}.scale.mean"].item() == pytest.approx(np.mean(prices), rel=1e-6)
    assert saved[f"{BUFFERS}.scale.std"].item() == pytest.approx(np.std(prices), rel=1e-6)


@pytest.mark.parametrize("transfer", ["frozen", "fine_tune"])
def test_what_is_nowhere_trained_is_saved_and_rebuilt(vectors, transfer):
    result = run(vectors, complement_transfer=transfer)
    saved = load_file(result.folder / "model.safetensors")
    assert saved[f"{BUFFERS}.std"].shape == (6,)
    assert not torch.equal(saved[f"{BUFFERS}.mean"], torch.zeros(6))
    model = fusionkit.load(result.folder).model
    for name in ("mean", "std"):
        assert torch.equal(model.state_dict()[f"{BUFFERS}.{name}"], saved[f"{BUFFERS}.{name}"])
    tested = evaluate(str(result.folder), "test", overrides=[("trainer.progress_bar", "false")])
    assert tested == pytest.approx(dict(result.metrics), abs=1e-6)


@pytest.mark.parametrize("transfer", ["frozen", "fine_tune"])
def test_a_table_is_tested_and_predicted_as_it_was_trained(products, transfer, tmp_path):
    result = run(products, complement_transfer=transfer)
    quiet = [("trainer.progress_bar", "false")]
    tested = evaluate(str(result.folder), "test", overrides=quiet)
    assert tested == pytest.approx(dict(result.metrics), abs=1e-6)
    (tmp_path / "new.csv").write_text("price,kind,v\n" + f',ship,"{[0.5] * 24}"\n' * 2)
    written = predict(str(result.folder), str(tmp_path / "new.csv"), str(tmp_path / "out.csv"))
    assert len(written.read_text().splitlines()) == 3


def test_a_continued_run_keeps_the_statistics_it_began_with(vectors, monkeypatch):
    calls = []
    fit_statistics = Vector.fit_statistics
    monkeypatch.setattr(Vector, "fit_statistics", lambda *a: calls.append(a) or fit_statistics(*a))
    whole = run(vectors, name="whole", trainer={**vectors["trainer"], "max_epochs": 3})
    run(vectors, name="parts")
    assert len(calls) == 2
    parts = run(vectors, "last", name="parts", trainer={**vectors["trainer"], "max_epochs": 3})
    fusionkit.load(parts.folder)
    assert len(calls) == 2
    assert parts.metrics == whole.metrics
    files = [load_file(result.folder / "model.safetensors") for result in (whole, parts)]
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())


def test_an_encoder_that_takes_none_reads_nothing(tiny_config, monkeypatch):
    seen = []
    monkeypatch.setattr(TinyComplement, "fit_statistics", lambda self, values: seen.append(values))
    run(tiny_config, trainer={**tiny_config["trainer"], "max_epochs": 1})
    (values,) = seen
    assert len(list(values)) == 64  # had not been read


def test_a_cell_that_is_no_number_is_named_with_its_row(products):
    file = Path(products["data"]["files"])
    lines = file.read_text().splitlines()
    row = json.loads(lines[4])
    assert row["split"] == "train"
    lines[4] = json.dumps({**row, "price": "cheap"})
    file.write_text("\n".join(lines))
    message = r"products.jsonl, row 5: field 'table': Column 'price' holds 'cheap', which is no"
    with pytest.raises(DataError, match=message):
        run(products)
    assert not Path(products["output"]).exists()


def test_a_sample_that_cannot_be_made_names_itself(products):
    data = {**products["data"], "files": products["data"]["files"].replace(".jsonl", ".csv")}
    Path(data["files"]).write_text(
        'v,price,kind,split,label\n"1 2",1,a,train,x\n"1 b",1,a,train,y\n"1 2",1,a,test,y\n'
    )
    with pytest.raises(DataError) as caught:
        run(products, data=data)
    assert str(caught.value).startswith("products.csv, row 2: field 'vector' is '1 b', no list of")
