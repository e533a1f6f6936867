from __future__ import annotations

import math

import pytest
import torch

from fusionkit.errors import ConfigError
from fusionkit.prompts.psi import Psi

DIMS = [5, 3, 7]


def features(batch: int = 4, dims: list[int] = DIMS) -> list[torch.Tensor]:
    return [torch.randn(batch, width, dtype=torch.float64) for width in dims]


def trained(mode: str) -> Psi:
    """With a query that is not 0, as after some training."""
    psi = Psi(DIMS, mode, 6).double()
    if psi.query is not None:
        torch.nn.init.normal_(psi.query)
    return psi


def by_hand(psi: Psi, mode: str, pooled: list[torch.Tensor], row: int) -> list[float]:
    """psi of one sample in plain Python loops."""
    seen = []
    for linear, x in zip(psi.project, pooled, strict=True):
        weight, bias, values = linear.weight.tolist(), linear.bias.tolist(), x[row].tolist()
        seen.append(
            [
                sum(w * v for w, v in zip(weights, values, strict=True)) + b
                for weights, b in zip(weight, bias, strict=True)
            ]
        )
    if mode == "concat":
        return [value for z in seen for value in z]
    shares = [1.0] * len(seen)
    if mode == "attention":
        query = psi.query.tolist()
        scores = [
            sum(q * v for q, v in zip(query, z, strict=True)) / math.sqrt(len(query)) for z in seen
        ]
        exponents = [math.exp(score) for score in scores]
        shares = [value / sum(exponents) for value in exponents]
    return [
        sum(share * z[place] for share, z in zip(shares, seen, strict=True)) for place in range(6)
    ]


@pytest.mark.parametrize(("mode", "width"), [("concat", 18), ("sum", 6), ("attention", 6)])
def test_psi_of_several_complements_follows_its_formula(mode, width):
    psi, pooled = trained(mode), features()
    made = psi(pooled)
    assert made.shape == (4, width) == (4, psi.out_dim)
    expected = [by_hand(psi, mode, pooled, row) for row in range(4)]
    torch.testing.assert_close(
        made, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("mode", ["concat", "sum", "attention"])
def test_psi_of_one_complement_is_its_feature_without_parameters(mode):
    psi = Psi([5], mode, 6)
    (pooled,) = features(dims=[5])
    assert psi([pooled]) is pooled
    assert psi.out_dim == 5
    assert not list(psi.state_dict())


@pytest.mark.parametrize(("mode", "query"), [("concat", 0), ("sum", 0), ("attention", 6)])
def test_parameters_are_those_of_the_formula(mode, query):
    count = sum(parameter.numel() for parameter in Psi(DIMS, mode, 6).parameters())
    assert count == 6 * (5 + 1 + 3 + 1 + 7 + 1) + query


def test_attention_starts_as_the_mean():
    psi, pooled = Psi(DIMS, "attention", 6).double(), features()
    seen = torch.stack([linear(x) for linear, x in zip(psi.project, pooled, strict=True)])
    torch.testing.assert_close(psi(pooled), seen.mean(0))


@pytest.mark.parametrize("mode", ["concat", "sum", "attention"])
def test_gradients_reach_every_projection_and_the_query_from_the_start(mode):
    psi = Psi(DIMS, mode, 6).double()
    psi(features()).square().sum().backward()
    for name, parameter in psi.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("mode", ["concat", "sum", "attention"])
def test_autocast_keeps_its_dtype(mode):
    psi = Psi(DIMS, mode, 6)
    pooled = [x.float() for x in features()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = psi(pooled)
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), psi(pooled), rtol=0.05, atol=0.05)


def test_a_width_below_one_is_refused():
    with pytest.raises(ConfigError, match="psi_dim is at least 1, given 0"):
        Psi(DIMS, "concat", 0)
