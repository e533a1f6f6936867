"""That the benchmarks run and compare what they say, on tiny encoders."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import compiled, complements, loading, prediction, scaling, start, steps
from benchmarks.__main__ import table
from benchmarks.harness import Row, take_turns

BERT = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2,
    "intermediate_size": 64, "vocab_size": 20_000,
}  # fmt: skip
TINY = steps.Case("tiny", "bert", {"config": BERT, "weights": "random"}, 4, steps._texts(6))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(steps, "CASES", (TINY,))
    monkeypatch.setattr(prediction, "CASES", (TINY,))
    monkeypatch.setattr(compiled, "CASES", (TINY,))
    monkeypatch.setattr(complements, "MODELS", {"tiny": "resnet10t"})


def test_turns_give_medians_of_each_side():
    taken = take_turns({"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.02)}, 3)
    assert taken["long"] > taken["short"] >= 0.001


def test_rows_of_steps():
    names = [row.name for row in steps.rows(quick=True)]
    assert names == [
        "tiny: prompted / bare",
        "tiny: prompted / concatenated",
        "tiny: k = 128 / k = 4",
        "tiny: stored complement / main encoder prompted alone",
        "tiny, prompts in the last third: stored prefix / all layers",
    ]


def test_concatenation_computes_the_same():
    step = steps.Step(TINY, "cpu", dropout=0.0, noise=0.0)
    step.model.double().eval()
    inputs = step.batch["inputs"]
    inputs["complement"]["vectors"] = inputs["complement"]["vectors"].double()
    short = step.model(inputs).logits
    step.model.fusion.run_main = step._run_concatenated
    torch.testing.assert_close(step.model(inputs).logits, short, rtol=0, atol=1e-10)


def test_rows_of_prediction_complements_and_start():
    (row,) = prediction.rows(quick=True)
    assert row.at_least
    assert row.ratio == row.amounts["upstream"] / row.amounts["predicted"]
    (row,) = complements.rows(quick=True)
    assert row.ratio == row.amounts["encoded"] / row.amounts["upstream"]
    assert [row.target for row in start.rows(quick=True)] == [0.5, 0.5, 0.5, 3.0]


def test_rows_of_compiled():
    torch.compiler.set_default_backend("eager")
    try:
        step, prediction = compiled.rows(quick=True)
    finally:
        torch.compiler.set_default_backend(None)
        torch.compiler.reset()
    assert step.ratio == step.amounts["compiled"] / step.amounts["bare"]
    assert step.amounts["first step"] > step.amounts["compiled"]
    assert prediction.ratio == prediction.amounts["upstream"] / prediction.amounts["compiled"]


def test_data_of_loading_can_be_read(tmp_path):
    data = loading.write_table(tmp_path, 3)
    assert len(list(tmp_path.glob("*.jpg"))) == 3
    assert data["files"]["train"].endswith("table.csv")


def test_a_table_says_what_was_missed():
    rows = [Row("a", 1.2, 1.1), Row("b", 0.9, 0.8, at_least=True), Row("c", 2.0, None)]
    assert [list(column.cells) for column in table("t", rows).columns[1:4]] == [
        ["1.200", "0.900", "2.000"],
        ["<= 1.10", ">= 0.80", ""],
        ["missed", "met", ""],
    ]


def test_the_model_of_scaling():
    assert scaling._all_reduce(1, 1e9, 1e9, 1.0) == 0
    assert scaling._all_reduce(4, 1e9, 1e9, 1.0) == pytest.approx(1.5 + 4)


def test_an_unknown_name_is_refused(root, tmp_path):
    command = [sys.executable, "-m", "benchmarks", "stpes"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no benchmark 'stpes'; there are steps, tuning" in done.stderr


def test_results_are_written(root, tmp_path):
    place = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks", "start", "--quick", "--json", str(place)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(place.read_text())
    assert found["results"]["start"][0]["name"] == "fusionkit --help: seconds"
    assert {"machine", "python", "versions"} <= set(found)
