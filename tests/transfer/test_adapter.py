from __future__ import annotations

import pytest
import torch
from tiny import TinyComplement, TinyMain
from torch import nn

from fusionkit.encoders.base import Features, TokenState
from fusionkit.errors import ConfigError, EncoderError
from fusionkit.transfer.adapter import Adapter, Bottleneck
from fusionkit.transfer.frozen import Frozen


class Shrinking(TinyMain):
    """Its second layer is narrower, as in Swin; what leaves the last one may not be."""

    def __init__(self, last: int = 4) -> None:
        super().__init__(dim=8, depth=2)
        self.widths = (8, 4)
        self.last = last

    @property
    def layer_widths(self):
        return self.widths

    @property
    def out_dim(self):
        return self.last

    def run_layer(self, layer, state, prompts):
        width = (*self.widths[1:], self.last)[layer]
        return state.with_tokens(state.tokens[..., :width] * 2)


class Grid(TinyMain):
    """Tokens in rows and columns."""

    def embed(self, inputs):
        return TokenState(inputs["x"].unflatten(-1, (3, 1, self.dim)))

    def run_layer(self, layer, state, prompts):
        return state.with_tokens(state.tokens + 1)

    def readout(self, state):
        return Features(state.tokens.mean(dim=(1, 2)), state.tokens.flatten(1, 2))


class Sequence(TinyComplement):
    """A complement with tokens."""

    def encode(self, inputs):
        tokens = self.backbone[0](inputs["x"].unflatten(-1, (-1, 6)))
        return Features(tokens.mean(dim=1), tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


def opened(transfer):
    """With an up-projection that does something."""
    for part in transfer.adapters:
        nn.init.normal_(part.up.weight)
    return transfer


@pytest.mark.parametrize("encoder", [TinyMain(), TinyComplement(24), Shrinking(), Grid()])
def test_it_starts_as_the_identity(encoder):
    inputs = {"x": torch.randn(4, 24)}
    expected = Frozen(encoder)(inputs)
    found = Adapter(encoder)(inputs)
    assert torch.equal(found.pooled, expected.pooled)


def test_the_default_bottleneck_is_64_wide_and_zero_is_refused():
    assert Adapter(TinyMain()).adapters[0].down.out_features == 64
    with pytest.raises(ConfigError, match="dim is at least 1, given 0"):
        Adapter(TinyMain(), dim=0)


def test_each_layer_has_one_and_it_stands_behind_the_layer():
    transfer = opened(Adapter(TinyMain(depth=3), dim=4))
    inputs = {"x": torch.randn(4, 24)}
    state = transfer.encoder.embed(inputs)
    for layer in range(3):
        state = transfer.encoder.run_layer(layer, state, None)
        state = state.with_tokens(transfer.adapters[layer](state.tokens))
    assert len(transfer.adapters) == 3
    assert torch.equal(transfer(inputs).pooled, transfer.encoder.readout(state).pooled)


def test_widths_follow_what_leaves_a_layer():
    transfer = opened(Adapter(Shrinking(), dim=3))
    assert [part.down.in_features for part in transfer.adapters] == [4, 4]
    assert transfer({"x": torch.randn(4, 24)}).pooled.shape == (4, 4)


def test_a_projection_behind_the_last_layer_is_refused_with_both_widths():
    with pytest.raises(EncoderError, match="Layer 1 of Shrinking returns tokens 2 wide.*is 4 wide"):
        Adapter(Shrinking(last=2))({"x": torch.randn(4, 24)})


def test_tokens_in_rows_and_columns_are_adapted_one_by_one():
    transfer = opened(Adapter(Grid(depth=1), dim=3))
    tokens = torch.randn(2, 3, 1, 8)
    found = transfer({"x": tokens.flatten(1)}).tokens
    assert torch.allclose(found, transfer.adapters[0](tokens + 1).flatten(1, 2))


def test_a_feature_and_its_tokens_pass_through_the_same_adapter():
    transfer = opened(Adapter(Sequence(), dim=3))
    inputs = {"x": torch.randn(2, 12)}
    plain, found = transfer.encoder.encode(inputs), transfer(inputs)
    adapt = transfer.adapters[0]
    assert len(transfer.adapters) == 1
    assert torch.equal(found.pooled, adapt(plain.pooled))
    assert torch.equal(found.tokens, adapt(plain.tokens))
    assert torch.equal(found.keep, plain.keep)


def test_an_edit_of_the_fusion_comes_after_the_adapter():
    transfer = opened(Adapter(TinyMain(depth=2), dim=3))
    inputs = {"x": torch.randn(4, 24)}
    seen = []

    def edit(layer, state):
        seen.append(state.tokens)
        return state.with_tokens(torch.zeros_like(state.tokens)) if layer == 0 else state

    found = transfer(inputs, None, edit)
    state = TokenState(torch.zeros_like(seen[0]))
    state = transfer.encoder.run_layer(0, state, None)
    assert torch.equal(seen[1], transfer.adapters[0](state.tokens))
    assert torch.equal(found.tokens, seen[2])


def test_gradients_reach_every_adapter_and_every_prompt():
    transfer = opened(Adapter(TinyMain(depth=2), dim=8))
    prompts = [torch.randn(4, 2, 8, requires_grad=True) for _ in range(2)]
    inputs = {"x": torch.randn(4, 24)}
    transfer(inputs, lambda layer, state: prompts[layer]).pooled.square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in transfer.adapters.parameters())
    assert all(rows.grad.abs().sum() > 0 for rows in prompts)
    assert all(weight.grad is None for weight in transfer.encoder.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_of_the_tokens_stays_under_autocast(dtype):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Bottleneck(8, 4)(torch.randn(2, 8, dtype=dtype)).dtype == dtype
