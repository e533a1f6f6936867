"""Standardizer against numpy on everything at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusionkit.encoders.standardize import Standardizer


def fitted(blocks):
    scale = Standardizer(blocks[0].shape[1]).double()
    scale.fit(iter(blocks))
    return scale


@pytest.mark.parametrize("sizes", [[1] * 200, [200], [7, 100, 1, 92]])
def test_statistics_are_numpys_however_the_rows_arrive(sizes):
    rng = np.random.default_rng(0)
    values = rng.normal([0, 1e6, -3, 5], [1, 2, 1e-3, 100], (200, 4))
    values[rng.random(values.shape) < 0.3] = np.nan
    scale = fitted(np.split(values, np.cumsum(sizes)[:-1]))
    np.testing.assert_allclose(scale.mean, np.nanmean(values, axis=0), rtol=1e-12)
    np.testing.assert_allclose(scale.std, np.nanstd(values, axis=0), rtol=1e-9)
    standard = scale(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(np.nanmean(standard, axis=0), 0, atol=1e-8)
    np.testing.assert_allclose(np.nanstd(standard, axis=0), 1, rtol=1e-9)


def test_a_column_without_spread_keeps_one():
    constant = np.array([[0.1, 7.0, np.nan, 0.0]] * 3)  # the mean of three 0.1 is not quite 0.1
    for blocks in ([constant], list(constant[:, None])):
        scale = fitted(blocks)
        assert scale.std.tolist() == [1, 1, 1, 1]
        assert scale.mean.tolist() == pytest.approx([0.1, 7, 0, 0])


def test_nothing_to_see_changes_nothing():
    scale = Standardizer(2)
    scale.fit(iter([]))
    x = torch.tensor([[3.0, -2.0]])
    assert torch.equal(scale(x), x)
