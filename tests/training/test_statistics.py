"""What encoders and modes take from the training split: when, and from which rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import TinyComplement, TinyData

import fusionkit
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.data.base import Stream
from fusionkit.encoders.vector import Vector
from fusionkit.errors import DataError
from fusionkit.training import statistics
from fusionkit.training.evaluate import evaluate, predict
from fusionkit.training.run import fit, prepare
from fusionkit.transfer.prompt import Prompt

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


STARTED = {"name": "prompt", "length": 3, "init": "tokens"}


@pytest.fixture
def prompted(tiny_config):
    """Whose complement, three tokens of two numbers, has prompts that start from samples."""
    complement = {"name": "tiny_main", "dim": 2}
    return {**tiny_config, "complement": complement, "complement_transfer": STARTED}


def rows_of(folder: Path) -> torch.Tensor:
    """(layers, length, dim)."""
    saved = load_file(folder / "model.safetensors")
    return saved["fusion.encoders.complement.prompts.rows.2"]


def are_among(rows, others) -> bool:
    """Whether each of rows (n, D) is one of others (m, D)."""
    near = torch.as_tensor(rows)[:, None] - torch.as_tensor(others)
    return bool((near.abs().amax(dim=-1).amin(dim=1) < 1e-6).all())


def starts(monkeypatch) -> list[torch.Tensor]:
    """What every start of prompts is given from here on."""
    seen, start_from = [], Prompt.start_from
    monkeypatch.setattr(
        Prompt,
        "start_from",
        lambda self, inputs: seen.append(inputs["x"]) or start_from(self, inputs),
    )
    return seen


def test_prompts_start_from_samples_of_the_training_split_as_the_seed_draws_them(
    prompted, monkeypatch
):
    seen = starts(monkeypatch)
    for seed in (0, 0, 1):
        run(prompted, seed=seed, optimizer={"lr": 1e-12})
    first, again, other = seen
    assert are_among(first, [sample.fields["b"] for sample in TinyData().split("train")])
    assert len(first.unique(dim=0)) == 32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    runs = sorted((Path(prompted["output"]) / "tiny").iterdir())
    saved = [rows_of(folder) for folder in runs]
    assert torch.equal(saved[0], saved[1])
    assert are_among(saved[0][0], first.reshape(-1, 2))


def test_a_continued_run_does_not_start_anew(prompted, monkeypatch):
    seen = starts(monkeypatch)
    whole = run(prompted, name="whole", trainer={**prompted["trainer"], "max_epochs": 3})
    run(prompted, name="parts")
    parts = run(prompted, "last", name="parts", trainer={**prompted["trainer"], "max_epochs": 3})
    assert len(seen) == 2
    assert torch.equal(rows_of(whole.folder), rows_of(parts.folder))


def test_prompts_start_from_samples_that_have_the_field(prompted, monkeypatch):
    seen = starts(monkeypatch)
    lacking = {"data": {"name": "tiny_data", "lack": "b"}, "missing": {"allow": ["complement"]}}
    run(prompted, **lacking)
    present = [s.fields["b"] for s in TinyData(lack="b").split("train") if s.fields.get("b")]
    (values,) = seen
    assert len(present) > 32 == len(values)
    assert are_among(values, present)


def test_a_field_that_no_sample_has_starts_no_prompts(prompted, monkeypatch):
    monkeypatch.setattr(statistics, "is_missing", lambda sample, role: True)
    with pytest.raises(DataError, match="No training sample has the field 'b', and the weights of"):
        run(prompted)
    assert not Path(prompted["output"]).exists()


def test_prompts_start_from_a_stream(prompted):
    class Numbers(Stream):
        def read(self, part, parts, shuffle):
            assert (part, parts) == (0, 1)
            assert shuffle is not None
            return iter(TinyData().split("train"))

    experiment = experiment_from_mapping(prompted)
    *_, model, fields = prepare(experiment, {})
    before = model.fusion.complements["complement"].prompts.rows["2"].clone()
    statistics.start_from_samples(experiment, model, Numbers(), fields)
    assert not torch.equal(model.fusion.complements["complement"].prompts.rows["2"], before)
    assert model.fusion.complements["complement"].training


def test_a_value_that_cannot_be_read_names_its_sample_or_is_left_out(prompted):
    experiment = experiment_from_mapping(prompted)
    _, splits, model, fields = prepare(experiment, {})
    samples = [replace(s, fields={**s.fields, "b": "words"}) for s in splits["train"]]
    with pytest.raises(
        DataError, match=r"tiny train, row \d+: field 'b' \('words'\) cannot be read"
    ):
        statistics.start_from_samples(experiment, model, samples, fields)
    missing = {"allow": ["complement"], "unreadable": True}
    experiment = experiment_from_mapping({**prompted, "missing": missing})
    *_, model, fields = prepare(experiment, {})
    mixed = [*samples, *list(splits["train"])[:2]]
    statistics.start_from_samples(experiment, model, mixed, fields)
    with pytest.raises(DataError, match="No training sample has the field 'b'"):
        statistics.start_from_samples(experiment, model, samples, fields)
