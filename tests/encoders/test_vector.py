"""Vector: what may be given, statistics, sequences, errors."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fusionkit.config.arguments import check_arguments
from fusionkit.encoders.vector import Vector
from fusionkit.errors import ConfigError, DataError, EncoderError

ROWS = [[0.5, 2.0, -1.0], [1.5, 2.0, 3.0], [-4.0, 2.0, 9.0]]


def encode(encoder, *values):
    preprocess = encoder.preprocessor(train=False)
    return encoder.encode(preprocess.collate([preprocess(value) for value in values]))


def test_lists_arrays_tensors_and_files_are_the_same(tmp_path):
    np.save(tmp_path / "v.npy", np.array(ROWS[0]))
    given = [ROWS[0], tuple(ROWS[0]), np.array(ROWS[0], dtype=np.float16), torch.tensor(ROWS[0])]
    given += [tmp_path / "v.npy", str(tmp_path / "v.npy"), [ROWS[0]]]
    pooled = encode(Vector(3), *given).pooled
    assert torch.equal(pooled, torch.tensor([ROWS[0]] * len(given)))
    assert encode(Vector(1), 2.5).pooled.tolist() == [[2.5]]


def test_standardised_by_the_training_values():
    encoder = Vector(3)
    encoder.fit_statistics(iter(ROWS))
    pooled = encode(encoder, *ROWS).pooled.numpy()
    expected = (np.array(ROWS) - np.mean(ROWS, 0)) / [
        np.std([r[0] for r in ROWS]),
        1,
        np.std([-1, 3, 9]),
    ]
    np.testing.assert_allclose(pooled, expected, atol=1e-6)
    plain = Vector(3, standardize=False)
    plain.fit_statistics(iter(ROWS))
    assert encode(plain, *ROWS).pooled.tolist() == ROWS
    assert not plain.state_dict()


def test_nothing_is_trained():
    encoder = Vector(3)
    assert not list(encoder.parameters())
    assert set(encoder.state_dict()) == {"backbone.mean", "backbone.std"}
    assert encoder.out_dim == 3


def test_a_sequence_is_pooled_over_what_is_there():
    encoder = Vector(3)
    encoder.fit_statistics([ROWS])
    features = encode(encoder, ROWS, ROWS[1], ROWS[1:])
    assert features.tokens.shape == (3, 3, 3)
    assert features.keep.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    alone = [encode(encoder, value).pooled[0] for value in (ROWS, ROWS[1], ROWS[1:])]
    torch.testing.assert_close(features.pooled, torch.stack(alone))
    torch.testing.assert_close(features.pooled[0], torch.zeros(3), atol=1e-6, rtol=0)
    expected = (encode(encoder, ROWS[1]).pooled + encode(encoder, ROWS[2]).pooled)[0] / 2
    torch.testing.assert_close(features.pooled[2], expected)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([1, 2], "The vector has shape (2,), but the encoder's dim is 3. Set dim to the width"),
        (np.zeros((3, 2)), "The vector has shape (3, 2), but the encoder's dim is 3."),
        (np.zeros((1, 1, 3)), "The vector has shape (1, 1, 3), but the encoder's dim is 3."),
        ([1, float("nan"), 3], "The vector holds nan in dimension 1. Repair it or remove the row."),
        ([[1, 2, 3], [4, 5, None]], "The vector holds nan in dimension 2."),
        (np.zeros((0, 3)), "The vector is a sequence of none. Repair it or remove the row."),
        ([1, "two", 3], "A vector is a list of 3 numbers or an array: could not convert string"),
        ([[1, 2, 3], [4]], "A vector is a list of 3 numbers or an array: setting an array element"),
        ({"a": 1}, "A vector is a list of 3 numbers or an array: "),
        ("nowhere.npy", "The vector nowhere.npy cannot be read: [Errno 2] No such file"),
    ],
)
def test_what_is_no_vector(raw, message):
    encoder = Vector(3)
    with pytest.raises(DataError, match=re.escape(message)):
        encoder.preprocessor(train=True)(raw)
    with pytest.raises(DataError, match=re.escape(message)):
        encoder.fit_statistics([ROWS[0], raw])


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "v.npy"
    np.save(path, np.zeros(300))
    whole = path.read_bytes()
    for content in (b"", b"\x93NUMPY", whole[:500], b"1 2 3"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"The vector .*v\.npy cannot be read: "):
            Vector(300).preprocessor(train=False)(path)


def test_the_width_must_be_given_and_make_sense():
    _, problems = check_arguments(Vector, "vector", {})
    assert problems == [("dim", "vector needs it and has no default: int.")]
    with pytest.raises(ConfigError, match="vector has dim 0; give the width"):
        Vector(0)
    given = {"vectors": torch.zeros(2, 1, 4), "keep": torch.ones(2, 1, dtype=torch.bool)}
    with pytest.raises(EncoderError, match=r"shape \(B, T, 3\), given \(2, 1, 4\)"):
        Vector(3).encode(given)
