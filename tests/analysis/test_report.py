from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from fusionkit.analysis.report import _outcome, report
from fusionkit.cli import main
from fusionkit.errors import DataError


def test_what_a_run_shows(runs):
    found = report(runs["routed"], shown=50)
    assert found["classes"] == ["does not hold", "holds"]
    assert (found["name"], found["split"]) == ("quickstart", "test")
    assert found["best_epoch"] in (1, 2)
    assert [row["label"] for row in found["baselines"]] == ["claim_only"]
    assert [epoch for epoch, _ in found["curves"]["val/loss"]] == [1, 2]
    routing = found["routing"]
    assert (routing["epochs"], routing["layers"], routing["experts"]) == ([1, 2], [0, 1, 2, 3], 16)
    assert np.asarray(routing["importance"]).shape == (2, 4, 16)
    assert np.asarray(routing["entropy"]).shape == (2, 4)
    assert len(found["samples"]) == 50
    sample = found["samples"][7]
    assert set(sample["fields"]) == {"image", "claim"}
    assert sample["right"] == (sample["predicted"] == sample["target"])
    assert np.asarray(sample["route"]).shape == (4, 16)
    kept = pq.read_table(runs["routed"] / "samples.parquet").to_pylist()
    row = next(row for row in kept if row["index"] == sample["index"])
    weights = np.asarray(row["routing"]).reshape(4, 16)
    assert np.abs(np.asarray(sample["route"]) / 100 - weights).max() <= 0.006
    json.dumps(found, allow_nan=False)


def test_cards_of_experts(runs):
    found = report(runs["routed"], shown=1000)
    kept = pq.read_table(runs["routed"] / "samples.parquet").to_pylist()
    weights = np.asarray([row["routing"] for row in kept]).reshape(len(kept), 4, 16)
    targets = np.asarray([row["target"] for row in kept])
    card = found["experts"][2][5]
    assert card["weight"] == pytest.approx(weights[:, 2, 5].mean(), abs=1e-4)
    assert card["first"] == pytest.approx((weights[:, 2].argmax(1) == 5).mean(), abs=1e-4)
    assert card["samples"][0] == weights[:, 2, 5].argmax()
    for c, share in card["classes"]:
        assert share == pytest.approx(weights[targets == c, 2, 5].mean(), abs=1e-3)


def test_a_run_without_experts(runs):
    found = report(runs["plain"], shown=5)
    assert found["routing"] is None
    assert found["experts"] is None
    assert "route" not in found["samples"][0]


def test_two_runs(runs):
    found = report(runs["routed"], runs["plain"], shown=20)
    assert found["other"]["curves"]["val/loss"]
    theirs = {r["index"]: r for r in pq.read_table(runs["plain"] / "samples.parquet").to_pylist()}
    for sample in found["samples"]:
        row = theirs[sample["index"]]
        assert sample["other"]["right"] == (int(np.argmax(row["prediction"])) == row["target"])


def test_outcomes_of_every_task():
    row = {"target": [0.0, 1.0, 1.0], "prediction": [0.7, 0.6, 0.2]}
    found = _outcome(row, "multi_label")
    assert (found["target"], found["predicted"], found["right"]) == ([1, 2], [0, 1], False)
    assert found["top"][0] == [0, 0.7]
    assert _outcome({"target": 1990.0, "prediction": 1992.5}, "regression") == {
        "target": 1990.0, "predicted": 1992.5, "right": None,
    }  # fmt: skip


def test_what_is_no_run(tmp_path, runs):
    old = tmp_path / "old"
    old.mkdir()
    with pytest.raises(DataError, match=r"holds no metrics\.json: the run has not finished yet"):
        report(old)
    for name in ("metrics.json", "config.yaml"):
        (old / name).write_bytes((runs["plain"] / name).read_bytes())
    with pytest.raises(DataError, match=r"holds no samples\.parquet; it is from before"):
        report(old)
    assert main(["report", str(tmp_path / "nowhere")]) == 2


def test_the_command(runs, tmp_path, capsys):
    path = tmp_path / "new" / "page.html"
    assert (
        main(["report", str(runs["routed"].parent), "--output", str(path), "--samples", "9"]) == 0
    )
    assert f"Written to {path} (" in capsys.readouterr().out
    assert main(["report", str(runs["routed"]), "--samples", "0"]) == 2
    assert "--samples is 0" in capsys.readouterr().err
