import functools
import pickle
from collections import Counter, defaultdict

import numpy as np
import pytest

from fusionkit.data.claims import claims, predicates
from fusionkit.data.digit_claims import DigitClaims, load_digits, split_indices
from fusionkit.errors import DataError

SPLITS = ("train", "val", "test")


@functools.cache
def drawn(seed):
    dataset = DigitClaims(seed=seed)
    return {name: dataset.split(name) for name in SPLITS}


@pytest.fixture
def data():
    return drawn(0)


@pytest.fixture(scope="module")
def digits():
    return load_digits()[1]


def image_of(sample):
    return int(sample.id.split("-")[0])


def majority_accuracy(train, test, key):
    """Fit the commonest label of each key on train, score on test; unseen keys say 1."""
    votes = defaultdict(Counter)
    for sample in train:
        votes[key(sample)][sample.target] += 1
    told = {value: counts.most_common(1)[0][0] for value, counts in votes.items()}
    return np.mean([told.get(key(sample), 1) == sample.target for sample in test])


def test_fields_and_sizes(data):
    assert DigitClaims().outputs == 2
    assert [len(data[name]) for name in SPLITS] == [10064, 1432, 2880]
    sample = data["train"][0]
    assert set(sample.fields) == set(DigitClaims.fields)
    assert sample.fields["image"].size == (8, 8)
    assert sample.fields["image"].mode == "L"
    assert len({sample.id for name in SPLITS for sample in data[name]}) == 14376
    assert DigitClaims().split("predict") == ()


@pytest.mark.parametrize("name", SPLITS)
def test_half_of_the_claims_of_each_image_and_of_each_digit_hold(data, digits, name):
    images, numbers = defaultdict(list), defaultdict(list)
    for sample in data[name]:
        images[image_of(sample)].append(sample.target)
        numbers[digits[image_of(sample)]].append(sample.target)
    assert all(np.mean(targets) == 0.5 for targets in images.values())
    assert all(np.mean(targets) == 0.5 for targets in numbers.values())


@pytest.mark.parametrize("name", SPLITS)
def test_each_sentence_holds_in_half_of_its_pairs(data, name):
    surplus = Counter()
    for sample in data[name]:
        surplus[sample.fields["claim"]] += 2 * sample.target - 1
    assert len(surplus) == len(claims())
    assert all(abs(excess) <= 1 for excess in surplus.values())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("side", ["claim", "word", "digit", "image ink"])
def test_neither_modality_alone_predicts(digits, seed, side):
    key = {
        "claim": lambda sample: sample.fields["claim"],
        "word": lambda sample: sample.fields["claim"].split()[-1],
        "digit": lambda sample: digits[image_of(sample)],
        "image ink": lambda sample: np.asarray(sample.fields["image"]).mean() // 4,
    }[side]
    accuracy = majority_accuracy(drawn(seed)["train"], drawn(seed)["test"], key)
    assert accuracy == pytest.approx(0.5, abs=0.03)


def test_both_modalities_together_decide(data, digits):
    truth = {claim.text: claim.holds_for for claim in claims()}
    for name in SPLITS:
        for sample in data[name]:
            holds = digits[image_of(sample)] in truth[sample.fields["claim"]]
            assert sample.target == int(holds)


def test_no_image_gets_a_claim_twice(data):
    pairs = Counter((image_of(sample), sample.fields["claim"]) for sample in data["train"])
    assert set(pairs.values()) == {1}


def test_splits_share_no_image_and_are_stratified(data, digits):
    images = {name: {image_of(sample) for sample in data[name]} for name in SPLITS}
    assert sum(map(len, images.values())) == len(set.union(*images.values())) == 1797
    for name, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
        counts = np.bincount(digits[sorted(images[name])]) / np.bincount(digits)
        assert counts == pytest.approx(share, abs=0.01)


def test_the_split_is_the_one_the_shipped_encoders_were_made_with(digits):
    """A change here would put images the shipped ViT has seen into the test split."""
    parts = split_indices(digits)
    assert [len(part) for part in parts.values()] == [1258, 179, 360]
    assert parts["test"][:8].tolist() == [2, 4, 5, 7, 12, 21, 26, 37]
    assert int(parts["test"].sum()) == 315741


def test_the_same_seed_gives_the_same_pairs_and_another_seed_others_of_the_same_images(data):
    again, other = DigitClaims(seed=0).split("test"), drawn(1)["test"]
    as_rows = [[(s.id, s.fields["claim"], s.target) for s in part] for part in (again, other)]
    assert as_rows[0] == [(s.id, s.fields["claim"], s.target) for s in data["test"]]
    assert as_rows[0] != as_rows[1]
    assert {image_of(s) for s in again} == {image_of(s) for s in other}


def test_samples_are_picklable(data):
    assert pickle.loads(pickle.dumps(data["val"]))[0].origin == data["val"][0].origin


@pytest.mark.parametrize("count", [0, 1, 7, 42])
def test_a_count_that_cannot_be_balanced_is_refused(count):
    with pytest.raises(DataError, match=f"even number from 2 to 40, given {count}"):
        DigitClaims(claims_per_image=count)


@pytest.mark.parametrize("count", [2, 40])
def test_the_ends_of_the_range_can_be_drawn(count):
    samples = DigitClaims(claims_per_image=count).split("val")
    assert np.mean([sample.target for sample in samples]) == 0.5
    assert len({(image_of(s), s.fields["claim"]) for s in samples}) == len(samples)


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("is greater than four", {5, 6, 7, 8, 9}),
        ("is at most four", {0, 1, 2, 3, 4}),
        ("is odd", {1, 3, 5, 7, 9}),
        ("is prime", {2, 3, 5, 7}),
        ("is a multiple of three", {0, 3, 6, 9}),
        ("is drawn with a closed loop", {0, 6, 8, 9}),
        ("is not an eight", {0, 1, 2, 3, 4, 5, 6, 7, 9}),
        ("is one more than five", {6}),
        ("is between two and six", {3, 4, 5}),
        ("is neither two nor four", {0, 1, 3, 5, 6, 7, 8, 9}),
    ],
)
def test_claims_mean_what_they_say(text, digits):
    assert dict(predicates())[text] == digits


def test_every_sentence_is_made_once_and_can_be_true_and_false():
    language = claims()
    assert len({claim.text for claim in language}) == len(language) == 174
    assert all(0 < len(claim.holds_for) < 10 for claim in language)
