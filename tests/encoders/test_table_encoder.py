"""TableEncoder: cells to inputs, statistics, errors."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fusionkit.encoders.table import TableEncoder, TablePreprocessor
from fusionkit.errors import ConfigError, DataError

PREPROCESS = TablePreprocessor(["age", "price"], ["sex", "city"], 1000)


def row(**cells):
    return PREPROCESS({"age": 1, "price": 2, "sex": "f", "city": "Rome"} | cells)


def categories(cell):
    return row(sex=cell)["categories"][0].tolist()


def encode(encoder, *values):
    preprocess = encoder.preprocessor(train=False)
    return encoder.encode(preprocess.collate([preprocess(value) for value in values]))


def test_numbers_are_read_as_such_or_written_out():
    made = row(age=" 31 ", price=np.float32(2.5))
    assert made["numbers"].tolist() == [31, 2.5]
    assert made["numbers"].dtype == torch.float32
    assert not made["empty"].any()
    assert row(age=True)["numbers"][0] == 1


@pytest.mark.parametrize("empty", [None, "", "  ", float("nan"), np.float64("nan")])
def test_empty_cells(empty):
    made = row(age=empty, sex=empty)
    assert made["numbers"].tolist() == [0, 2]
    assert made["empty"].tolist() == [True, False]
    assert made["categories"][0].tolist() == [1000, 1000]
    assert row(city=empty)["categories"][1].tolist() == [1001, 1001]


def test_a_category_reads_the_same_in_every_format():
    assert categories("3") == categories(3) == categories(3.0) == categories(" 3 ")
    assert categories("true") == categories(True) == categories(np.bool_(True))
    assert categories("True") == categories(True) != categories("False") == categories(False)
    assert categories("3.0") == categories(3.0) != categories("3.01")
    assert categories(2.5) == categories("2.5") != categories("2")


def test_categories_are_hashed_by_column_and_value():
    found = {tuple(categories(f"value {i}")) for i in range(200)}
    assert len(found) == 200
    assert {place for pair in found for place in pair} <= set(range(1000))
    made = row(sex="same", city="same")["categories"]
    assert made[0].tolist() != made[1].tolist()


def test_the_hash_is_the_same_in_every_process():
    assert categories("m") == [143, 970]  # Python's own hash of a text is another in each


def test_statistics_are_those_of_the_values_and_leave_empty_cells_out():
    encoder = TableEncoder(["a", "b"], ["c"], dim=8, layers=1)
    values = [{"a": 1, "b": "5"}, {"a": None, "b": 5}, {"a": "4", "b": 5.0}]
    encoder.fit_statistics({**value, "c": "x"} for value in values)
    assert encoder.backbone.scale.mean.tolist() == [2.5, 5]
    assert encoder.backbone.scale.std.tolist() == [1.5, 1]


def test_an_empty_number_is_the_mean_and_a_sign_that_it_is_empty():
    encoder = TableEncoder(["a"], dim=8, layers=1).eval()
    encoder.fit_statistics([{"a": 10}, {"a": 30}])
    empty, mean = encode(encoder, {"a": None}, {"a": 20}).pooled
    assert not torch.allclose(empty, mean)
    torch.nn.init.zeros_(encoder.backbone.empty)
    empty, mean = encode(encoder, {"a": None}, {"a": 20}).pooled
    torch.testing.assert_close(empty, mean)


def test_columns_are_read_by_name():
    encoder = TableEncoder(["a", "b"], ["c"], dim=16, layers=2).eval()
    one, two = encode(encoder, {"a": 1, "b": 2, "c": 3}, {"more": 0, "c": 3, "b": 2, "a": 1}).pooled
    assert torch.equal(one, two)
    features = encode(encoder, {"a": 1, "b": 2, "c": 3})
    assert features.tokens.shape == (1, 3, 16)
    assert encoder.out_dim == 16
    assert features.keep is None


def test_every_part_is_trained():
    encoder = TableEncoder(["a", "b"], ["c"], dim=16, layers=2, buckets=4)
    values = [{"a": i or None, "b": -i, "c": None if i == 5 else str(i)} for i in range(30)]
    features = encode(encoder, *values)
    (features.pooled.square().sum() + features.tokens[..., 0].sum()).backward()
    untouched = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


def test_learns_what_only_two_columns_say_together():
    encoder = TableEncoder(["a"], ["c"], dim=16, layers=1, buckets=64).train()
    head = torch.nn.Linear(16, 1)
    rng = np.random.default_rng(0)
    values = [{"a": float(rng.normal()) + 1e4, "c": str(rng.integers(2))} for _ in range(256)]
    target = torch.tensor([float((v["a"] > 1e4) == (v["c"] == "1")) for v in values])
    encoder.fit_statistics(values)
    preprocess = encoder.preprocessor(train=True)
    inputs = preprocess.collate([preprocess(value) for value in values])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(120):
        logits = head(encoder.encode(inputs).pooled)[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.eval()
    with torch.no_grad():
        right = (head(encoder.encode(inputs).pooled)[:, 0] > 0) == target.bool()
    assert right.float().mean() > 0.9  # either column alone says nothing


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"age": "old", "price": 1, "sex": "f", "city": "x"},
            "Column 'age' holds 'old', which is no finite number. Leave the cell empty, or list",
        ),
        ({"age": 1, "price": "inf", "sex": "f", "city": "x"}, "Column 'price' holds 'inf', which"),
        ({"age": [1], "price": 1, "sex": "f", "city": "x"}, "Column 'age' holds [1], which is no"),
        (
            {"ages": 1, "price": 1, "sex": "f", "city": "x"},
            "no column 'age', which the encoder table reads. Did you mean 'ages'? Columns of this "
            "field: ages, price, sex, city.",
        ),
        ("31", "A table is a mapping of column to cell, given str. Make it a field of modality"),
    ],
)
def test_cells_that_cannot_be_read(raw, message):
    with pytest.raises((ConfigError, DataError), match=re.escape(message)):
        PREPROCESS(raw)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "table has no columns. Name those to read: {name: table, numeric: [age]"),
        ({"numeric": ["a", "a"]}, "`numeric` is ['a', 'a']; name each column once"),
        ({"numeric": ["a"], "dim": 12}, "dim is a multiple of 8, layers and buckets are at least"),
        ({"numeric": ["a"], "layers": 0}, "given dim 192, layers 0, buckets 1024"),
    ],
)
def test_arguments_that_make_no_net(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        TableEncoder(**arguments)
