from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fusionkit.data.base import Sample
from fusionkit.data.masks import Masked
from fusionkit.data.missing import ids_of, lacks, targets_of
from fusionkit.data.subsets import Subset, few_shots
from fusionkit.errors import ConfigError, DataError


class Counting(list):
    """Samples that say which of them were made, and know their targets."""

    def __init__(self, targets):
        super().__init__(
            Sample(f"n{i}", {"text": "" if i % 5 == 0 else "x"}, target, f"row {i + 1}")
            for i, target in enumerate(targets)
        )
        self.targets = targets
        self.made = []

    def __getitem__(self, index):
        self.made.append(index)
        return super().__getitem__(index)

    def __iter__(self):
        raise AssertionError("all samples were made")


SINGLE = [0] * 700 + [1] * 200 + [2] * 90 + [3] * 10


def chosen(subset) -> set[int]:
    return set(subset.chosen.tolist())


def test_no_sample_is_made():
    samples = Counting(SINGLE)
    subset = few_shots(samples, "single_label", 0, total=64)
    assert not samples.made
    assert subset[3].id == f"n{subset.chosen[3]}"
    assert samples.made == [subset.chosen[3]]


SEVERAL = [[i % 3, 3] if i % 2 else [i % 7] for i in range(1000)]


@pytest.mark.parametrize(
    ("task", "targets", "by"),
    [
        ("single_label", SINGLE, "total"),
        ("single_label", SINGLE, "per_class"),
        ("multi_label", SEVERAL, "total"),
        ("multi_label", SEVERAL, "per_class"),
        ("regression", list(np.random.default_rng(0).normal(size=1000)), "total"),
    ],
)
def test_subsets_are_seeded_and_nested(task, targets, by):
    samples = Counting(targets)
    sizes = [64, 256, 512] if by == "total" else [1, 4, 16]
    few, more, most = (few_shots(samples, task, 7, **{by: size}) for size in sizes)
    assert chosen(few) < chosen(more) < chosen(most)
    assert chosen(few) == chosen(few_shots(samples, task, 7, **{by: sizes[0]}))
    assert chosen(few) != chosen(few_shots(samples, task, 8, **{by: sizes[0]}))
    if by == "total":
        assert [len(s) for s in (few, more, most)] == sizes
    assert list(few.chosen) == sorted(chosen(few))


@pytest.mark.parametrize("total", [10, 64, 250, 1000])
def test_a_total_keeps_the_proportions_of_the_classes(total):
    counts = Counter(few_shots(Counting(SINGLE), "single_label", 1, total=total).targets)
    for name, count in Counter(SINGLE).items():
        assert abs(counts[name] - total * count / 1000) <= 1


def test_more_classes_than_shots():
    targets = list(range(101)) * 5
    few = few_shots(Counting(targets), "single_label", 0, total=64)
    assert len(set(few.targets)) == 64


def test_a_regression_keeps_its_quantiles():
    targets = np.arange(1000) / 10
    few = np.array(few_shots(Counting(list(targets)), "regression", 0, total=50).targets)
    assert np.histogram(few, bins=10, range=(0, 100))[0].tolist() == [5] * 10


def test_each_class_has_its_shots_or_all_it_has():
    few = few_shots(Counting(SINGLE), "single_label", 0, per_class=16)
    assert Counter(few.targets) == {0: 16, 1: 16, 2: 16, 3: 10}


def test_each_label_of_several_has_its_shots():
    rng = np.random.default_rng(0)
    targets = [np.flatnonzero(rng.random(5) < [0.5, 0.3, 0.1, 0.05, 0.01]) for _ in range(1000)]
    everything = Counter(int(name) for names in targets for name in names)
    few = few_shots(Counting(targets), "multi_label", 0, per_class=20)
    counts = Counter(int(name) for names in few.targets for name in names)
    assert all(counts[name] >= min(20, everything[name]) for name in range(5))
    assert len(few) < 100


def test_a_subset_answers_as_its_samples_do():
    samples = [Sample(f"n{i}", {"text": "x"}, i % 2, "") for i in range(10)]
    masked = Masked(samples, {"text": np.arange(10) % 2 == 0}, "m.csv")
    subset = Subset(masked, np.array([0, 3, 5, 8]))
    assert ids_of(subset) == ["n0", "n3", "n5", "n8"]
    assert targets_of(subset) == [0, 1, 1, 0]
    assert [sample.fields["text"] for sample in subset] == [None, "x", "x", None]
    assert [sample.id for sample in subset[1:3]] == ["n3", "n5"]
    assert [sample.id for sample in subset] == ["n0", "n3", "n5", "n8"]
    assert subset[-1].id == "n8"


def test_a_subset_lacks_what_its_samples_lack():
    samples = [Sample(str(i), {"text": "" if i % 5 == 0 else "x"}, 0, "") for i in range(20)]
    flags = lacks(Subset(samples, np.array([0, 3, 5])), "text", empty=True)
    assert flags is not None
    assert flags.tolist() == [True, False, True]


def test_refusals():
    samples = Counting(SINGLE)
    with pytest.raises(DataError, match=r"loader.shots is 1001, but there are 1,000 training"):
        few_shots(samples, "single_label", 0, total=1001)
    with pytest.raises(ConfigError, match="a regression has no classes; set loader.shots instead"):
        few_shots(samples, "regression", 0, per_class=4)
    with pytest.raises(DataError, match="targets of these samples are not known"):
        targets_of([Sample("1", {}, None, "")])
