import numpy as np
import pytest

from fusionkit.data.splits import grouped_split, stratified_split

SHARES = (0.8, 0.1, 0.1)


def test_parts_hold_each_row_once():
    labels = np.random.default_rng(0).integers(0, 7, 503)
    parts = stratified_split(labels, SHARES, seed=3)
    assert sorted(np.concatenate(parts)) == list(range(503))
    assert [len(part) for part in parts] == [403, 50, 50]


def test_every_label_has_its_share_of_each_part():
    labels = np.repeat([0, 1, 2], [500, 200, 40])
    for part, share in zip(stratified_split(labels, SHARES, seed=0), SHARES, strict=True):
        found = np.bincount(labels[part], minlength=3)
        assert np.abs(found - share * np.array([500, 200, 40])).max() <= 2


def test_same_seed_gives_same_parts_and_another_seed_others():
    labels = np.arange(200) % 5
    first, again, other = (stratified_split(labels, SHARES, seed)[2] for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 11, 40])
def test_labels_with_few_rows_are_all_met_in_the_first_part(rows, seed):
    labels = np.random.default_rng(seed).integers(0, rows, rows)
    parts = stratified_split(labels, SHARES, seed)
    assert sorted(np.concatenate(parts)) == list(range(rows))
    assert set(labels[parts[0]]) == set(labels)


def test_part_without_share_is_empty():
    train, val, test = stratified_split([0] * 50, (0.9, 0.1, 0.0), seed=0)
    assert (len(train), len(val), len(test)) == (45, 5, 0)


def test_small_tables_have_a_row_in_each_part():
    assert [len(part) for part in stratified_split([0] * 4, SHARES, seed=0)] == [2, 1, 1]


def test_groups_stay_together_and_parts_get_their_shares():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), rng.integers(1, 9, 300))
    labels = rng.integers(0, 4, len(groups))
    parts = grouped_split(labels, groups, SHARES, seed=3)
    assert sorted(np.concatenate(parts)) == list(range(len(groups)))
    kept = [set(groups[part]) for part in parts]
    assert sum(map(len, kept)) == len(set.union(*kept)) == 300
    for part, share in zip(parts, SHARES, strict=True):
        assert abs(len(part) - share * len(groups)) <= 8  # the size of a group


def test_groups_of_one_label_have_their_share_of_each_part():
    of_group = np.repeat([0, 1, 2], [100, 40, 10])
    groups = np.repeat(np.arange(150), 4)
    labels = of_group[groups]
    for part, share in zip(grouped_split(labels, groups, SHARES, seed=0), SHARES, strict=True):
        found = np.bincount(labels[part], minlength=3)
        assert np.abs(found - share * np.array([400, 160, 40])).max() <= 8  # two groups


def test_same_seed_deals_the_same_groups_out_and_another_seed_others():
    groups, labels = np.arange(200) // 4, np.arange(200) % 5
    first, again, other = (grouped_split(labels, groups, SHARES, seed)[2] for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 11, 40])
def test_labels_of_few_groups_are_all_met_in_the_first_part(rows, seed):
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(0, rows, rows), rng.integers(0, rows, rows)
    parts = grouped_split(labels, groups, SHARES, seed)
    assert sorted(np.concatenate(parts)) == list(range(rows))
    assert set(labels[parts[0]]) == set(labels)


def test_few_groups_are_one_in_each_part_where_no_label_needs_them():
    groups = [0, 0, 1, 1, 1, 2]
    assert [len(part) for part in grouped_split([0] * 6, groups, SHARES, seed=0)] == [3, 1, 2]
    train, val, test = grouped_split([0, 0, 1, 1, 1, 2], groups, SHARES, seed=0)
    assert (len(train), len(val), len(test)) == (6, 0, 0)
    train, val, test = grouped_split([0] * 6, groups, (0.5, 0.5, 0.0), seed=0)
    assert (len(train), len(val), len(test)) == (4, 2, 0)
