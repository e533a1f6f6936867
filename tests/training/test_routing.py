from __future__ import annotations

import csv
import json
import math

import pyarrow.parquet as pq
import pytest
import torch

from fusionkit.config.validate import experiment_from_mapping
from fusionkit.prompts.engine import Routing
from fusionkit.training.routing import RecordRouting, RoutingStatistics, entropy
from fusionkit.training.run import fit

SUMS = ("routing_entropy", "effective_experts", "importance_cv2")


def run(config: dict, **more):
    merged = {**config, **more}
    merged["trainer"] = {**config["trainer"], **more.get("trainer", {})}
    return fit(experiment_from_mapping(merged)).folder


def test_entropy_in_bits():
    rows = torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    assert entropy(rows).tolist() == [2.0, 0.0, 1.0]


def test_statistics_by_hand():
    # Two samples, one layer, four experts: each sample certain, of another expert.
    certain = torch.eye(4)[:2].unsqueeze(1)
    statistics = RoutingStatistics((5,), 4)
    for row in certain:  # sums do not depend on how samples are batched
        statistics.update(Routing(row[None] / 2, row[None], (5,)))
    (layer,) = statistics.by_layer()
    assert layer.layer == 5
    assert layer.importance == layer.top == [0.5, 0.5, 0.0, 0.0]
    assert layer.weight == [0.25, 0.25, 0.0, 0.0]
    assert layer.entropy == 0  # of each sample
    assert layer.effective_experts == pytest.approx(2)  # of both
    assert layer.cv2 == pytest.approx((2 * 0.25**2 + 2 * 0.25**2) / 3 / 0.25**2)


def test_one_expert_is_never_out_of_balance():
    statistics = RoutingStatistics((0,), 1)
    statistics.update(Routing(torch.ones(3, 1, 1), torch.ones(3, 1, 1), (0,)))
    (layer,) = statistics.by_layer()
    assert (layer.cv2, layer.effective_experts, layer.entropy) == (0, 1, 0)


def test_every_validation_is_recorded(tiny_config):
    folder = run(tiny_config)
    rows = pq.read_table(folder / "routing.parquet").to_pylist()
    assert [(row["epoch"], row["layer"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for row in rows:
        assert math.isclose(sum(row["importance"]), 1, rel_tol=1e-5)
        assert math.isclose(sum(row["top"]), 1, rel_tol=1e-5)
    with (folder / "metrics.csv").open() as file:
        log = [line for line in csv.DictReader(file) if line["val/loss"]]
    assert all(line[f"val/{name}"] for line in log for name in SUMS)
    logged = [float(line["val/routing_entropy"]) for line in log]
    means = [(rows[i]["entropy"] + rows[i + 1]["entropy"]) / 2 for i in (0, 2)]
    assert logged == pytest.approx(means, abs=1e-5)


def test_a_continued_run_goes_on_with_its_rows(tiny_config):
    folder = run(tiny_config)
    longer = {**tiny_config, "trainer": {**tiny_config["trainer"], "max_epochs": 3}}
    first = pq.read_table(folder / "routing.parquet").to_pylist()
    fit(experiment_from_mapping(longer), ckpt_path="last")
    rows = pq.read_table(folder / "routing.parquet").to_pylist()
    assert rows[:4] == first
    assert [row["epoch"] for row in rows] == [1, 1, 2, 2, 3, 3]


def test_a_system_without_experts_leaves_predictions_only(tiny_config):
    folder = run(tiny_config, fusion="late_concat")
    assert not (folder / "routing.parquet").exists()
    assert "routing" not in pq.read_table(folder / "samples.parquet").column_names


def test_a_collapse_is_told_once(tmp_path, caplog):
    def layers(probabilities: list[float]) -> list:
        statistics = RoutingStatistics((0, 1, 2), len(probabilities))
        rows = torch.tensor(probabilities).expand(2, 3, -1)
        statistics.update(Routing(rows, rows, (0, 1, 2)))
        return statistics.by_layer()

    record = RecordRouting(tmp_path)
    record._warn(layers([0.25] * 4))
    record._warn(layers([0.9, 0.1]))  # of two, one may well be enough
    healthy, *_ = layers([0.25] * 4)
    collapsed = layers([0.97, 0.01, 0.01, 0.01])
    record._warn([healthy, healthy, collapsed[0]])
    assert not caplog.records
    record._warn([healthy, *collapsed[1:]])
    record._warn(collapsed)
    (told,) = caplog.messages
    assert told.startswith(
        "Routing has collapsed: in 2 of 3 layers, the 4 experts are used like 1.2. "
        "A larger fusion.importance_weight"
    )


def test_samples_are_kept_with_their_routing(tiny_config):
    folder = run(tiny_config)
    table = pq.read_table(folder / "samples.parquet")
    about = {key.decode(): json.loads(value) for key, value in table.schema.metadata.items()}
    assert about == {"split": "test", "layers": [0, 1], "experts": 2}
    rows = table.to_pylist()
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert all(len(row["routing"]) == 4 for row in rows)
    right = [row["target"] == max(range(2), key=row["prediction"].__getitem__) for row in rows]
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert sum(right) / len(right) == pytest.approx(metrics["test/accuracy"])
