"""Estimates from fake tensors, against what the real model computes and holds."""

from __future__ import annotations

import pytest
import torch
from tiny import TinyComplement, TinyMain
from torch import nn

from fusionkit.compare.measure import Bench
from fusionkit.config.validate import load_config
from fusionkit.encoders.base import Features
from fusionkit.errors import ConfigError
from fusionkit.fusion.late_concat import LateConcat
from fusionkit.fusion.model import FusionModel
from fusionkit.training.check import check
from fusionkit.training.cost import step_cost
from fusionkit.transfer.fine_tune import FineTune


@pytest.mark.parametrize("overrides", [
    [],
    [("fusion.router", "multimodal")],
    [("fusion.layers", "[1, 2]")],
    [("trainer.gradient_checkpointing", "true")],
    [("main_transfer", "lora"), ("complement_transfer", "fine_tune")],
    [("missing.allow", "[complement]")],
])  # fmt: skip
def test_flops_are_those_of_the_real_model(root, overrides):
    common = [("loader.batch_size", "4"), ("loader.workers", "0")]
    experiment = load_config([root / "configs/quickstart.yaml"], [*common, *overrides])
    report = check(experiment)
    assert not isinstance(report.cost, str), report.cost
    forward, step = Bench(experiment).count_flops()
    assert report.cost.forward_flops == forward
    assert report.cost.forward_flops + report.cost.backward_flops == step
    assert report.cost.backward_flops > 0


def test_recomputation_takes_less_memory_and_more_flops(root):
    name = root / "configs/quickstart.yaml"
    plain, recomputed = (
        check(load_config([name], [("trainer.gradient_checkpointing", value)])).cost
        for value in ("false", "true")
    )
    assert recomputed.passes < plain.passes
    assert recomputed.backward_flops > plain.backward_flops


def test_mixed_precision_keeps_less(root):
    plain, mixed = (
        check(load_config([root / "configs/quickstart.yaml"], [("trainer.precision", name)])).cost
        for name in ("32-true", "bf16-mixed")
    )
    assert mixed.passes < plain.passes
    assert mixed.weights < plain.weights  # the frozen ones are kept rounded


def test_weights_and_optimizer_are_counted_in_bytes():
    model = FusionModel(LateConcat(FineTune(TinyMain()), [FineTune(TinyComplement())]), 2)
    inputs = {"main": {"x": torch.randn(3, 24)}, "complement": {"x": torch.randn(3, 6)}}
    cost = step_cost(model, inputs, "32-true")
    values = sum(p.numel() for p in model.parameters())
    assert cost.weights == 4 * values + sum(b.numel() * b.element_size() for b in model.buffers())
    assert cost.optimizer == 8 * values
    assert cost.memory == cost.weights + cost.optimizer + cost.passes
    assert cost.passes > 4 * values  # gradients are among what the passes hold
    assert cost.batch_size == 3
    assert all(p.grad is None for p in model.parameters())


class Decides(TinyComplement):
    def encode(self, inputs):
        x = inputs["x"]
        return Features(nn.functional.pad(x, (0, 0)) if x.sum().item() > 0 else x)

    @property
    def out_dim(self):
        return 6


def test_a_model_that_decides_by_values_says_so():
    model = FusionModel(LateConcat(FineTune(TinyMain()), [FineTune(Decides())]), 2)
    inputs = {"main": {"x": torch.randn(3, 24)}, "complement": {"x": torch.randn(3, 6)}}
    with pytest.raises(ConfigError, match="decides by the values of its input"):
        step_cost(model, inputs, "32-true")


def test_without_data_it_is_not_known(root):
    report = check(load_config([root / "configs/food101.yaml"], []))
    assert report.cost == "not known without data"
    assert "last layer for the pooled token only: complement" in report.fast_paths
