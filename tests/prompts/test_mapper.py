from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fusionkit.encoders.base import Features
from fusionkit.errors import ConfigError
from fusionkit.prompts.mapper import HEADS, Mapper, SequenceMapper

WIDTHS = [4, 6, 4]
HIDDEN = 8


def sequence(batch: int, length: int, width: int, lengths: list[int] | None = None) -> Features:
    tokens = torch.randn(batch, length, width, dtype=torch.float64)
    keep = None
    if lengths is not None:
        keep = torch.arange(length) < torch.tensor(lengths).unsqueeze(1)
    return Features(tokens[:, 0], tokens, keep)


def vectors(batch: int, width: int) -> Features:
    return Features(torch.randn(batch, width, dtype=torch.float64))


def make(dims: list[int], length: int = 2, hidden: int = HIDDEN) -> SequenceMapper:
    torch.manual_seed(0)
    return SequenceMapper(dims, hidden, WIDTHS, length).double()


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def layer_by_hand(linear: nn.Linear, values: list[float]) -> list[float]:
    weight, bias = linear.weight.tolist(), linear.bias.tolist()
    return [
        gelu(sum(w * v for w, v in zip(row, values, strict=True)) + b)
        for row, b in zip(weight, bias, strict=True)
    ]


def row_by_hand(mapper: SequenceMapper, seen: list[Features], b: int, i: int, a: int) -> list:
    """Row ``a`` of layer ``i`` for sample ``b``, in plain Python loops."""
    hidden = []
    for shared, features in zip(mapper.shared, seen, strict=True):
        if features.tokens is None:
            hidden.append(layer_by_hand(shared[0], features.pooled[b].tolist()))
            continue
        for t in range(features.tokens.shape[1]):
            if features.keep is None or features.keep[b, t]:
                hidden.append(layer_by_hand(shared[0], features.tokens[b, t].tolist()))
    query = mapper.queries[i * mapper.length + a].tolist()
    d = len(query) // HEADS
    read = [0.0] * len(query)
    for head in range(HEADS):
        places = range(head * d, (head + 1) * d)
        exponents = [math.exp(sum(query[p] * h[p] for p in places) / math.sqrt(d)) for h in hidden]
        for p in places:
            read[p] = sum(e / sum(exponents) * h[p] for e, h in zip(exponents, hidden, strict=True))
    return layer_by_hand(mapper.by_width[str(WIDTHS[i])][0], read)


CASES = {
    "one complement": ([5], [sequence(3, 4, 5)]),
    "masked": ([5], [sequence(3, 4, 5, [4, 1, 2])]),
    "one without tokens": ([5], [vectors(3, 5)]),
    "three of different widths, masked, unmasked and without tokens": (
        [5, 3, 7],
        [sequence(3, 4, 5, [4, 1, 2]), sequence(3, 2, 3), vectors(3, 7)],
    ),
    "nothing real in a row": ([5, 3], [sequence(3, 4, 5, [4, 0, 2]), sequence(3, 2, 3, [2, 0, 0])]),
}


@pytest.mark.parametrize(("dims", "seen"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("length", [1, 2])
def test_rows_equal_those_made_in_plain_loops(dims, seen, length):
    mapper = make(dims, length)
    rows = mapper(seen)
    assert [tuple(row.shape) for row in rows] == [(3, length, width) for width in WIDTHS]
    for i, made in enumerate(rows):
        expected = [[row_by_hand(mapper, seen, b, i, a) for a in range(length)] for b in range(3)]
        torch.testing.assert_close(
            made, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("with_tokens", [False, True])
def test_a_sequence_of_one_is_the_papers_mapper(with_tokens):
    mapper, paper = make([5], length=1), Mapper(5, HIDDEN, WIDTHS).double()
    paper.shared.load_state_dict(mapper.shared[0].state_dict())
    paper.by_width.load_state_dict(mapper.by_width.state_dict())
    pooled = torch.randn(3, 5, dtype=torch.float64)
    seen = Features(pooled, pooled.unsqueeze(1) if with_tokens else None)
    for row, expected in zip(mapper([seen]), paper(pooled), strict=True):
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-12)


def test_padding_changes_nothing():
    mapper, seen = make([5]), sequence(3, 4, 5, [4, 1, 2])
    padding = torch.full((3, 3, 5), 100.0, dtype=torch.float64)
    padded = Features(
        seen.pooled,
        torch.cat([seen.tokens, padding], dim=1),
        torch.cat([seen.keep, torch.zeros(3, 3, dtype=torch.bool)], dim=1),
    )
    for row, expected in zip(mapper([padded]), mapper([seen]), strict=True):
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-10)


def test_the_order_of_tokens_changes_nothing_but_tokens_do():
    mapper, seen = make([5]), sequence(3, 4, 5, [4, 1, 2])
    order = torch.tensor([2, 0, 3, 1])
    turned = Features(seen.pooled, seen.tokens[:, order], seen.keep[:, order])
    for row, expected in zip(mapper([turned]), mapper([seen]), strict=True):
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-10)
    other = Features(seen.pooled, seen.tokens + 1, seen.keep)
    assert not torch.allclose(mapper([other])[0], mapper([seen])[0])


def test_a_row_does_not_depend_on_its_batch_mates():
    mapper, seen = make([5]), sequence(3, 4, 5, [4, 0, 2])
    alone = Features(seen.pooled[:1], seen.tokens[:1], seen.keep[:1])
    for row, expected in zip(mapper([alone]), mapper([seen]), strict=True):
        torch.testing.assert_close(row, expected[:1], rtol=0, atol=1e-10)


def test_every_layer_and_every_row_reads_the_sequence_its_own_way():
    first, second, third = make([5])([sequence(3, 4, 5)])
    assert not torch.allclose(first, third)  # of one width, so of one map
    assert not torch.allclose(second[:, 0], second[:, 1])


def test_a_row_without_tokens_is_finite_and_passes_no_gradient_to_its_padding():
    mapper, seen = make([5]), sequence(2, 4, 5, [0, 3])
    tokens = seen.tokens.requires_grad_()
    rows = mapper([Features(seen.pooled, tokens, seen.keep)])
    nothing = layer_by_hand(mapper.by_width["4"][0], [0.0] * HIDDEN)
    torch.testing.assert_close(rows[0][0], torch.tensor([nothing] * 2, dtype=torch.float64))
    sum(row.square().sum() for row in rows).backward()
    assert (tokens.grad[0] == 0).all()
    assert (tokens.grad[1, :3] != 0).any()
    for name, parameter in mapper.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


def test_gradients_reach_every_query_and_every_projection():
    mapper = make([5, 3])
    rows = mapper([sequence(3, 4, 5, [4, 1, 2]), sequence(3, 2, 3)])
    sum(row.square().sum() for row in rows).backward()
    assert (mapper.queries.grad.abs().sum(dim=-1) > 0).all()
    for name, parameter in mapper.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_parameters_are_those_of_the_formula():
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    widths = (4 * 8 + 4) + (6 * 8 + 6)
    assert count(Mapper(5, 8, WIDTHS)) == (5 + 1) * 8 + widths
    assert count(make([5, 3], length=2)) == (5 + 1 + 3 + 1) * 8 + widths + 3 * 2 * 8


@pytest.mark.parametrize("lengths", [None, [4, 0, 2]])
def test_autocast_keeps_its_dtype(lengths):
    mapper, seen = make([5]).float(), sequence(3, 4, 5, lengths)
    seen = Features(seen.pooled.float(), seen.tokens.float(), seen.keep)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = mapper([seen])
    for row, expected in zip(rows, mapper([seen]), strict=True):
        assert row.dtype == torch.bfloat16
        torch.testing.assert_close(row.float(), expected, rtol=0.05, atol=0.05)


def test_a_hidden_width_that_heads_cannot_share_is_refused():
    with pytest.raises(ConfigError, match="mapper_dim is a multiple of 4, given 10"):
        make([5], hidden=10)
