"""Low-rank fusion against the full tensor product it stands for."""

from __future__ import annotations

import pytest
import torch
from tiny import TinyComplement, TinyMain
from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.fusion.low_rank_tensor import LowRankTensor
from fusionkit.transfer.frozen import Frozen

RANK, DIM = 3, 4


def fusion(complements: int, rank: int = RANK) -> LowRankTensor:
    made = LowRankTensor(
        Frozen(TinyMain()),
        [Frozen(TinyComplement(dim=4 + i)) for i in range(complements)],
        rank=rank,
        dim=DIM,
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.double().eval()


def batch(complements: int, size: int = 4) -> dict:
    roles = ["complement", "complement_2"][:complements]
    inputs = {role: {"x": torch.randn(size, 6).double()} for role in roles}
    return {"main": {"x": torch.randn(size, 24).double()}, **inputs}


def outer(vectors: list[Tensor]) -> Tensor:
    """v_1 x ... x v_n."""
    product = vectors[0]
    for vector in vectors[1:]:
        product = product.unsqueeze(-1) * vector
    return product


def full_weights(made: LowRankTensor, rank: int, unit: int) -> Tensor:
    """(C_1 + 1) x ... x (C_n + 1) weights of one unit of h, a sum of outer products."""
    rows = [torch.cat([f.weight, f.bias.unsqueeze(1)], dim=1) for f in made.factors]
    return sum(outer([row[r * DIM + unit] for row in rows]) for r in range(rank))


@pytest.mark.parametrize("complements", [1, 2])
@pytest.mark.parametrize("rank", [1, RANK])
def test_it_is_the_full_outer_product_through_the_full_weight_tensor(complements, rank):
    made, inputs = fusion(complements, rank), batch(complements)
    feature = made(inputs).feature
    assert feature.shape == (4, DIM)
    encoders = {"main": made.main, **made.complements}
    pooled = [encoders[role].encoder.encode(inputs[role]).pooled for role in encoders]
    for row in range(4):
        z = outer([torch.cat([x[row], x.new_ones(1)]) for x in pooled])
        assert z.shape == (9, 5, 6)[: complements + 1]
        for unit in range(DIM):
            expected = (full_weights(made, rank, unit) * z).sum()
            torch.testing.assert_close(feature[row, unit], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("complements", [1, 2])
def test_parameters_are_as_documented(complements):
    trained = sum(p.numel() for p in fusion(complements).parameters() if p.requires_grad)
    assert trained == RANK * DIM * sum([9, 5, 6][: complements + 1])


@pytest.mark.parametrize(("rank", "dim"), [(0, 4), (3, 0)])
def test_numbers_below_one_are_refused(rank, dim):
    with pytest.raises(
        ConfigError, match=f"rank and dim of low_rank_tensor are at least 1, given {rank} and {dim}"
    ):
        LowRankTensor(Frozen(TinyMain()), [Frozen(TinyComplement())], rank=rank, dim=dim)
