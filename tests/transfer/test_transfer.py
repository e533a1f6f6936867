from __future__ import annotations

import copy

import pytest
import torch
from tiny import TinyComplement, TinyMain
from torch import nn

from fusionkit.errors import ConfigError
from fusionkit.transfer.fine_tune import FineTune
from fusionkit.transfer.frozen import Frozen
from fusionkit.transfer.prompt import Prompt


def step(transfer, inputs):
    head = nn.Linear(transfer.out_dim, 2)
    optimizer = torch.optim.SGD([*transfer.parameters(), *head.parameters()], lr=0.5)
    head(transfer(inputs).pooled).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("mode", [Frozen, Prompt])
def test_frozen_weights_and_buffers_are_bit_identical_after_a_step(mode):
    transfer = mode(TinyMain()).train()
    before = copy.deepcopy(transfer.encoder.state_dict())
    step(transfer, {"x": torch.randn(4, 24)})
    for name, value in transfer.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    "transfer", [Frozen(TinyMain()), Frozen(TinyComplement(24)), Prompt(TinyMain(), dropout=0.0)]
)
def test_two_passes_of_a_frozen_encoder_in_train_mode_are_equal(transfer):
    inputs = {"x": torch.randn(4, 24)}
    transfer.train()
    assert torch.equal(transfer(inputs).pooled, transfer(inputs).pooled)


def test_frozen_passes_gradients_to_prompts_but_keeps_no_graph_without():
    transfer = Frozen(TinyMain())
    inputs = {"x": torch.randn(4, 24)}
    assert not transfer(inputs).pooled.requires_grad
    prompts = [torch.randn(4, 2, 8, requires_grad=True) for _ in range(2)]
    transfer(inputs, lambda layer, state: prompts[layer]).pooled.sum().backward()
    assert all(prompt.grad is not None for prompt in prompts)


def test_fine_tune_trains_every_weight():
    transfer = FineTune(TinyComplement(24)).train()
    before = copy.deepcopy(transfer.encoder.state_dict())
    step(transfer, {"x": torch.randn(4, 24)})
    for name, parameter in transfer.encoder.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_prompt_trains_its_rows_only_and_uses_every_layer():
    transfer = Prompt(TinyMain(depth=3), length=4)
    trained = {name for name, p in transfer.named_parameters() if p.requires_grad}
    assert trained == {"prompts.rows.8"}
    transfer({"x": torch.randn(4, 24)}).pooled.square().sum().backward()
    assert (transfer.prompts.rows["8"].grad.abs().sum(dim=-1) > 0).all()


def test_prompt_refuses_an_encoder_without_layers():
    with pytest.raises(ConfigError, match="TinyComplement has none. Use a mode that needs none"):
        Prompt(TinyComplement())


def test_prompt_refuses_prompts_of_others():
    with pytest.raises(ConfigError, match="takes no others"):
        Prompt(TinyMain())({"x": torch.randn(4, 24)}, lambda layer, state: None)
