"""The gated multimodal unit against the paper's sums, number by number."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import TinyComplement, TinyMain
from torch import nn

from fusionkit.errors import ConfigError
from fusionkit.fusion.gated import Gated
from fusionkit.transfer.frozen import Frozen

DIM = 3


def fusion(complements: int) -> Gated:
    made = Gated(
        Frozen(TinyMain()), [Frozen(TinyComplement(dim=4 + i)) for i in range(complements)], DIM
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.double().eval()


def batch(complements: int, size: int = 4) -> dict:
    roles = ["complement", "complement_2", "complement_3"][:complements]
    inputs = {role: {"x": torch.randn(size, 6).double()} for role in roles}
    return {"main": {"x": torch.randn(size, 24).double()}, **inputs}


def dot(weights: torch.Tensor, x: list[float]) -> float:
    assert len(weights) == len(x)
    return sum(w * v for w, v in zip(weights.tolist(), x, strict=True))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def seen_by(made: Gated, inputs: dict, row: int) -> list[list[float]]:
    """Pooled features of a row, by calling the encoders directly."""
    encoders = {"main": made.main, **made.complements}
    return [encoders[role].encoder.encode(inputs[role]).pooled[row].tolist() for role in encoders]


def test_of_two_encoders_one_gate_weighs_the_first_and_its_rest_the_second():
    made, inputs = fusion(1), batch(1)
    feature = made(inputs).feature
    assert feature.shape == (4, DIM)
    first, second = (hidden.weight for hidden in made.hidden)
    for row in range(4):
        main, complement = seen_by(made, inputs, row)
        for unit in range(DIM):
            z = sigmoid(dot(made.gates.weight[unit], main + complement))
            expected = z * math.tanh(dot(first[unit], main))
            expected += (1 - z) * math.tanh(dot(second[unit], complement))
            assert feature[row, unit].item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("complements", [2, 3])
def test_of_more_each_has_a_gate(complements):
    made, inputs = fusion(complements), batch(complements)
    feature = made(inputs).feature
    for row in range(4):
        seen = seen_by(made, inputs, row)
        everything = [value for x in seen for value in x]
        for unit in range(DIM):
            expected = 0.0
            for j, x in enumerate(seen):
                z = sigmoid(dot(made.gates.weight[j * DIM + unit], everything))
                expected += z * math.tanh(dot(made.hidden[j].weight[unit], x))
            assert feature[row, unit].item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("complements", "gates"), [(1, 1), (2, 3)])
def test_parameters_are_as_documented(complements, gates):
    made = fusion(complements)
    widths = [8, 4, 5][: complements + 1]
    trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
    assert trained == DIM * (gates + 1) * sum(widths)


def test_a_width_below_one_is_refused():
    with pytest.raises(ConfigError, match="dim of gated is at least 1, given 0"):
        Gated(Frozen(TinyMain()), [Frozen(TinyComplement())], dim=0)
