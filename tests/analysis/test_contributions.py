from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from fusionkit.analysis.contributions import (
    contributions,
    interactions,
    save,
    shapley_values,
    value_of,
)
from fusionkit.cli import main
from fusionkit.config.validate import experiment_from_mapping, load_config
from fusionkit.errors import ConfigError
from fusionkit.training.predictor import load
from fusionkit.training.run import fit

ROLES = ("main", "complement", "complement_2")


@pytest.fixture
def value():
    rng = np.random.default_rng(0)
    subsets = [
        frozenset(chosen) for size in range(4) for chosen in itertools.combinations(ROLES, size)
    ]
    return {subset: rng.normal(size=5) for subset in subsets}.__getitem__


def by_orders(value):
    """What each role adds when roles come one after the other, over all orders."""
    total = np.zeros((5, len(ROLES)))
    orders = list(itertools.permutations(ROLES))
    for order in orders:
        seen = frozenset()
        for role in order:
            total[:, ROLES.index(role)] += value(seen | {role}) - value(seen)
            seen |= {role}
    return total / len(orders)


def test_shapley_values_are_the_mean_over_orders(value):
    found = shapley_values(ROLES, value)
    np.testing.assert_allclose(found, by_orders(value), atol=1e-12)
    np.testing.assert_allclose(found.sum(1), value(frozenset(ROLES)) - value(frozenset()))


def test_known_games():
    def add(subset):  # main is worth 2, complement 1, the third nothing
        return np.asarray([2.0 * ("main" in subset) + ("complement" in subset)])

    assert shapley_values(ROLES, add).tolist() == [[2, 1, 0]]
    assert interactions(ROLES, add).tolist() == [0]

    def both(subset):  # worth something together only
        return np.asarray([1.0 * ({"main", "complement"} <= subset)])

    assert shapley_values(ROLES, both).tolist() == [[0.5, 0.5, 0]]
    assert interactions(ROLES, both).tolist() == [1]
    assert interactions(("main", "complement"), both).tolist() == [1]

    def either(subset):  # each says the same
        return np.asarray([1.0 * bool({"main", "complement"} & subset)])

    assert interactions(("main", "complement"), either).tolist() == [-1]


def test_values():
    chances = np.asarray([[0.7, 0.3], [0.2, 0.8]])
    assert value_of(chances, np.asarray([0.0, 0.0]), "single_label").tolist() == [0.7, 0.2]
    labels = np.asarray([[1.0, 0.0], [1.0, 1.0]])
    assert value_of(chances, labels, "multi_label").tolist() == pytest.approx([0.7, 0.5])
    assert value_of(np.asarray([3.0]), np.asarray([5.0]), "regression").tolist() == [-2.0]


def test_a_trained_model(short, root, tmp_path, capsys):
    missing = "{allow: [main, complement], dropout: 0.3}"
    config = load_config([root / "configs/quickstart.yaml"], [*short, ("missing", missing)])
    folder = fit(config).folder
    found = contributions(load(folder))
    assert found.roles == ("main", "complement")
    everything, nothing = frozenset(found.roles), frozenset()
    np.testing.assert_allclose(
        found.shapley.sum(1), found.values[everything] - found.values[nothing], atol=1e-6
    )
    assert len(set(found.values[nothing])) <= 2  # class frequencies, whatever the sample
    predictor = load(folder)
    dataset = predictor.experiment.data.build()
    sample = dataset.split("test")[3]
    hidden = {**sample.fields, "image": None}
    alone = predictor.predict([hidden])[0, int(sample.target)].item()
    assert found.values[frozenset({"main"})][3] == pytest.approx(alone, abs=1e-6)

    path = tmp_path / "new" / "each.csv"
    save(found, path)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert rows[3]["id"] == sample.id
    assert float(rows[3]["v(main)"]) == pytest.approx(alone, abs=1e-5)
    assert {"main", "complement", "interaction", "v(none)", "v(main+complement)"} < set(rows[0])

    capsys.readouterr()
    assert main(["contributions", "--ckpt_path", str(folder), "--output", str(path)]) == 0
    out = capsys.readouterr().out
    assert "main and complement" in out
    assert "Mean Shapley value, percentage points" in out


def test_a_model_that_cannot_do_without(tiny_config):
    folder = fit(experiment_from_mapping(tiny_config)).folder
    with pytest.raises(ConfigError, match=r"without main and complement.*--missing\.allow"):
        contributions(load(Path(folder)))
