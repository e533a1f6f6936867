import numpy as np
import pytest

from fusionkit.data.splits import stratified_split

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
