"""Batches of samples of which some lack a field; the rest of loading is in test_loading.py."""

from __future__ import annotations

import re

import pytest
import torch

from fusionkit.config.schema import LoaderConfig
from fusionkit.data.base import Sample
from fusionkit.data.loading import FusionDataset, make_loader
from fusionkit.data.values import RoleInput
from fusionkit.encoders.base import PRESENT
from fusionkit.errors import DataError, MissingExtraError


class Length:
    """Reads a text to its length; refuses "broken" and collates no more rows than it is given."""

    def __init__(self):
        self.read = []

    def __call__(self, raw):
        if raw == "broken":
            raise DataError("no such text.")
        if raw == "bug":
            raise KeyError("first")
        if raw == "extra":
            raise MissingExtraError("This needs 'soundfile'.")
        self.read.append(raw)
        return len(raw)

    def collate(self, rows):
        assert rows
        return {"length": torch.tensor(rows)}


def samples(*rows: tuple) -> list[Sample]:
    return [
        Sample(str(i), {"a": a, "b": b}, 0, f"t.csv, row {i + 1}") for i, (a, b) in enumerate(rows)
    ]


def roles(main: dict | None = None, **complement) -> list[RoleInput]:
    complement = {"may_lack": True} | complement
    return [
        RoleInput("main", "a", Length(), **(main or {})),
        RoleInput("complement", "b", Length(), **complement),
    ]


def loader(rows, reads, *, train=False, workers=0, batch_size=2, seed=0):
    config = LoaderConfig(batch_size=batch_size, workers=workers)
    return make_loader(rows, reads, "single_label", 2, config, train, seed)


def values(batch, role: str) -> list[int]:
    return batch["inputs"][role]["length"].tolist()


def presence(batch, role: str) -> list[bool]:
    found = batch["inputs"][role][PRESENT]
    assert found.dtype == torch.bool
    return found.tolist()


FOUR = samples(("a", "bb"), ("aa", None), ("aaa", ""), ("aaaa", None))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_complement_collates_only_the_rows_that_are_there(workers):
    some, none = loader(FOUR, roles(), workers=workers)
    assert values(some, "complement") == [2]
    assert presence(some, "complement") == [True, False]
    assert list(none["inputs"]["complement"]) == [PRESENT]
    assert presence(none, "complement") == [False, False]
    assert values(some, "main") == [1, 2]
    assert PRESENT not in some["inputs"]["main"]
    assert "unreadable" not in some


def test_a_main_encoder_gets_a_blank_where_its_field_is_missing():
    rows = samples(("a", "b"), (None, "b"), ("", "b"))
    (batch,) = loader(rows, roles({"may_lack": True, "blank": "blank"}), batch_size=3)
    assert values(batch, "main") == [1, 5, 5]
    assert presence(batch, "main") == [True, False, False]
    assert presence(batch, "complement") == [True] * 3


def test_samples_know_what_they_lack_before_anything_is_read():
    dataset = FusionDataset(FOUR, roles())
    assert dataset.missing == {"complement": 3}
    assert loader(FOUR, roles()).dataset.missing == {"complement": 3}


def test_a_field_that_may_not_be_missing_is_refused_before_the_first_batch():
    message = "t.csv, row 2: field 'b' is missing in 2 samples, this one first, and complement "
    with pytest.raises(DataError, match=re.escape(message)):
        loader(FOUR, roles(may_lack=False))


def test_samples_that_are_made_on_access_are_refused_when_they_are_read():
    stream = type("Stream", (), {"__len__": lambda _: 4, "__getitem__": lambda _, i: FOUR[i]})()
    batches = iter(loader(stream, roles(may_lack=False), batch_size=1))
    next(batches)
    with pytest.raises(DataError, match=r"row 2: field 'b' is missing, and complement reads it"):
        next(batches)
    assert [presence(b, "complement") for b in loader(stream, roles(), batch_size=4)] == [
        [True, False, False, False]
    ]


def test_an_empty_text_is_a_text_where_the_role_may_not_lack_it():
    (batch,) = loader(samples(("a", "")), roles(may_lack=False))
    assert values(batch, "complement") == [0]


MANY = samples(*[("a", "b")] * 400)


def dropped(dataset: FusionDataset) -> list[tuple[bool, bool]]:
    rows = [dataset[i]["inputs"] for i in range(len(dataset))]
    return [(row["main"] is None, row["complement"] is None) for row in rows]


def both(main=0.5, complement=0.5) -> list[RoleInput]:
    return roles({"may_lack": True, "blank": "", "dropout": main}, dropout=complement)


def test_dropout_is_a_function_of_seed_epoch_and_sample():
    dataset = FusionDataset(MANY, both(), train=True, seed=3)
    first = dropped(dataset)
    assert dropped(dataset) == first == dropped(FusionDataset(MANY, both(), train=True, seed=3))
    assert first != dropped(FusionDataset(MANY, both(), train=True, seed=4))
    dataset.epoch = 1
    assert dropped(dataset) != first


def test_dropout_has_the_rate_of_its_role_and_spares_the_last_field():
    found = dropped(FusionDataset(MANY, both(0.0, 0.3), train=True))
    assert sum(main for main, _ in found) == 0
    assert 0.22 < sum(complement for _, complement in found) / 400 < 0.38
    found = dropped(FusionDataset(MANY, both(0.9, 0.9), train=True))
    assert (True, True) not in found
    for place in (0, 1):  # either is spared about as often
        assert 0.35 < sum(row[place] for row in found) / 400 < 0.6


def test_dropout_never_takes_what_is_left_of_a_sample():
    rows = samples(*[(None, "b")] * 50, *[("a", None)] * 50)
    found = dropped(FusionDataset(rows, both(0.9, 0.9), train=True))
    assert found == [(True, False)] * 50 + [(False, True)] * 50
    nothing = samples((None, None))
    assert dropped(FusionDataset(nothing, both(), train=True)) == [(True, True)]


def test_what_is_dropped_is_not_read():
    reads = both(0.0, 0.5)
    dataset = FusionDataset(MANY, reads, train=True)
    kept = [complement for _, complement in dropped(dataset)].count(False)
    assert len(reads[1].preprocessor.read) == kept < 400


def test_nothing_is_dropped_outside_of_training():
    assert dropped(FusionDataset(MANY, both())) == [(False, False)] * 400
    batches = list(loader(MANY, both(), batch_size=400))
    assert presence(batches[0], "complement") == [True] * 400


@pytest.mark.parametrize("workers", [0, 2])
def test_dropout_does_not_depend_on_workers(workers):
    found = {}
    for batch in loader(MANY, both(), train=True, workers=workers, batch_size=16):
        found |= dict(zip(batch["index"].tolist(), presence(batch, "complement"), strict=True))
    expected = dropped(FusionDataset(MANY, both(), train=True))
    assert [not found[i] for i in range(400)] == [complement for _, complement in expected]


BROKEN = samples(("a", "b"), ("a", "broken"), ("broken", "b"), ("a", "broken"))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_missing_and_counted(workers):
    lenient = {"may_lack": True, "unreadable": True}
    batches = loader(BROKEN, roles(lenient | {"blank": ""}, **lenient), workers=workers)
    for _ in range(2):
        first, second = batches
        assert presence(first, "complement") == [True, False]
        assert presence(second, "main") == [False, True]
        assert values(second, "main") == [0, 1]
    assert batches.dataset.unreadable.describe("train") == [
        "train: unreadable and taken for missing, field 'b': 2 (t.csv, row 2; t.csv, row 4)",
        "train: unreadable and taken for missing, field 'a': 1 (t.csv, row 3)",
    ]


def test_what_cannot_be_read_stops_unless_that_is_allowed():
    with pytest.raises(DataError, match=r"row 2: field 'b' \('broken'\) cannot be read"):
        list(loader(BROKEN[:2], roles()))
    lenient = {"may_lack": True, "unreadable": True}
    with pytest.raises(DataError, match=r"row 3: field 'a' \('broken'\) cannot be read"):
        list(loader(BROKEN, roles(**lenient)))
    with pytest.raises(MissingExtraError, match="soundfile"):  # not the row's fault
        list(loader(samples(("a", "extra")), roles(**lenient)))


def test_a_fault_of_the_preprocessor_is_not_taken_for_a_missing_value():
    lenient = roles(may_lack=True, unreadable=True)
    with pytest.raises(DataError, match="row 1: field 'b' .* cannot be read: KeyError: 'first'"):
        list(loader(samples(("a", "bug"), ("a", "b")), lenient, train=True))


def test_training_stops_where_nothing_of_a_small_set_can_be_read():
    rows = samples(*[("a", "broken")] * 4)
    with pytest.raises(DataError, match="Not one of the first 4 values of field 'b' can be read"):
        list(loader(rows, roles(may_lack=True, unreadable=True), train=True))


def test_training_stops_where_nothing_at_all_can_be_read():
    rows = samples(*[("a", "broken")] * 120)
    lenient = roles(may_lack=True, unreadable=True)
    with pytest.raises(DataError, match=r"Not one of the first 100 values of field 'b' can be"):
        list(loader(rows, lenient, train=True))
    assert len(list(loader(rows, lenient))) == 60  # a prediction may have none
