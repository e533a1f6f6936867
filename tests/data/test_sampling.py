from __future__ import annotations

import numpy as np
import pytest

from fusionkit.data.lengths import padded_tokens, padding_share
from fusionkit.data.sampling import Batches
from fusionkit.errors import DataError

RNG = np.random.default_rng(0)
# Two roles; a few samples are far longer than most.
LENGTHS = np.stack([RNG.geometric(0.05, 1000), RNG.integers(0, 9, 1000)], axis=1)


def batches(train=True, seed=0, epoch=0, size=16, lengths=LENGTHS, **settings) -> Batches:
    made = Batches(len(lengths), size, train, seed, lengths, **settings)
    made.epoch = epoch
    return made


def plain(samples=50, size=8, train=True, seed=0, **settings) -> Batches:
    return Batches(samples, size, train, seed, **settings)


def numbers(plan) -> list[int]:
    return [number for batch in plan for number in batch]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("settings", [{}, {"tokens": 600}], ids=["size", "tokens"])
def test_an_epoch_holds_every_sample_once(train, settings):
    assert sorted(numbers(batches(train, **settings))) == list(range(1000))


def test_evaluation_without_lengths_keeps_the_order():
    assert list(plain(5, 2, train=False)) == [[0, 1], [2, 3], [4]]


def test_order_follows_seed_and_epoch():
    for make in (batches, plain):
        first, again, other = (list(make(seed=seed)) for seed in (1, 1, 2))
        assert first == again != other
        later = make(seed=1)
        later.epoch = 1
        assert list(later) != first


def test_batches_are_as_many_as_without_buckets():
    for size in (1, 7, 16, 999, 5000):
        assert len(batches(size=size)) == -(-1000 // size)
        assert len(batches(size=size, train=False)) == -(-1000 // size)


def test_the_number_of_batches_is_the_same_in_every_epoch():
    for settings in ({}, {"tokens": 600}, {"tokens": 600, "classes": np.arange(1000) % 7 // 3}):
        found = {len(list(batches(epoch=epoch, **settings))) for epoch in range(5)}
        assert found == {len(batches(**settings))}


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("train", [True, False])
def test_no_batch_is_over_its_budget(train, world):
    for epoch in range(3):
        plan = batches(train, epoch=epoch, tokens=500).plan(world)
        for batch in plan:
            rows = LENGTHS[batch]
            assert len(batch) * rows.max(axis=0).sum() == padded_tokens(rows) <= 500


def test_budgets_are_used():
    lengths = RNG.geometric(0.05, (20_000, 1))
    plan = batches(lengths=lengths, tokens=2000).plan()
    assert np.mean([padded_tokens(lengths[batch]) for batch in plan]) > 0.85 * 2000


def test_buckets_pad_less_than_random_batches_and_sorting_pads_least():
    lengths = RNG.geometric(0.05, (20_000, 1))
    random, bucketed, sorted_ = (
        padding_share(made.plan(), lengths)
        for made in (
            plain(20_000, 16),
            batches(lengths=lengths),
            batches(train=False, lengths=lengths),
        )
    )
    assert random > 0.6
    assert sorted_ < bucketed < 0.1 * random
    # By hand: two of three and one of one token make 4 of 6 positions real.
    assert padding_share([np.array([0, 1])], np.array([[3], [1]])) == pytest.approx(2 / 6)


def test_samples_meet_others_in_each_epoch():
    def mates(epoch):
        return next(set(batch) for batch in batches(epoch=epoch) if 17 in batch)

    assert mates(0) != mates(1) != mates(2)


def test_similar_lengths_are_not_met_in_order():
    tokens = [padded_tokens(LENGTHS[batch]) for batch in batches().plan()]
    assert np.abs(np.corrcoef(tokens, np.arange(len(tokens)))[0, 1]) < 0.5


def test_two_long_roles_share_a_budget():
    lengths = np.array([[90, 1], [1, 90]] * 8)
    for batch in batches(lengths=lengths, tokens=200).plan():
        assert padded_tokens(lengths[batch]) <= 200


def test_a_start_leaves_out_what_was_seen_once():
    made = batches()
    whole = list(made)
    made.start = 20
    assert list(made) == whole[20:]
    assert list(made) == whole


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("samples", "size"), [(50, 8), (51, 1), (7, 100), (49, 7), (8, 1)], ids=str
)
def test_processes_share_every_sample_once_in_as_many_batches(train, world, samples, size):
    for made in (
        plain(samples, size, train),
        Batches(samples, size, train, 0, LENGTHS[:samples]),
    ):
        plan = made.plan(world)
        assert sorted(numbers(plan)) == list(range(samples))
        assert len(plan) % world == 0
        assert all(len(batch) for batch in plan)
        if world == 1:
            assert max(map(len, plan)) <= size


def test_processes_get_batches_of_similar_length_in_each_step():
    lengths = RNG.geometric(0.05, (5000, 1))
    plan = batches(lengths=lengths).plan(4)
    sizes = np.array([padded_tokens(lengths[batch]) for batch in plan]).reshape(-1, 4)
    waste = 1 - sizes.sum() / (4 * sizes.max(axis=1).sum())
    assert waste < 0.1


def test_fewer_samples_than_processes():
    with pytest.raises(DataError, match=r"of 3 samples cannot be shared by 4 .* to 3 or fewer"):
        plain(3).plan(4)


def test_balanced_epochs_draw_each_class_equally_often():
    classes = np.array([0] * 90 + [1] * 9 + [2])
    made = plain(100, 10, classes=classes)
    drawn = np.array(numbers(made))
    assert len(set(drawn)) == 100  # another draw of a sample is another number
    counts = np.bincount(classes[drawn % 100])
    assert counts.sum() == 100
    assert counts.max() - counts.min() <= 1
    rare = np.bincount(drawn[classes[drawn % 100] == 1] % 100)[90:99]
    assert rare.max() - rare.min() <= 1  # none is drawn again before the others


def test_over_epochs_a_common_class_is_seen_whole():
    made = plain(100, 10, classes=np.array([0] * 90 + [1] * 10))
    seen = set()
    for made.epoch in range(30):
        seen |= {number % 100 for number in numbers(made)}
    assert seen == set(range(100))
