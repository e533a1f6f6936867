from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn

from fusionkit.compare.measure import WARM_UP, Bench, machine
from fusionkit.compare.memory import PeakMemory
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.errors import ConfigError, DataError
from fusionkit.training.assemble import dry_build
from fusionkit.training.run import make_loaders, prepare

MIB = 2**20

# TinyMain cuts 24 numbers into 3 tokens of width 8; each of its two blocks is a linear map to
# queries, keys and values, attention, and a linear map of the result. The head has 2 outputs.
L, D, DEPTH, CLASSES = 3, 8, 2, 2
LINEAR = 2 * L * D * 3 * D + 2 * L * D * D
ATTENTION = 2 * (2 * L * L * D)
HEAD = 2 * D * CLASSES
FORWARD = DEPTH * (LINEAR + ATTENTION) + HEAD


def experiment(config: dict, **sections):
    merged = {**config, "fusion": "main_only"}
    for key, value in sections.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return experiment_from_mapping(merged)


@pytest.mark.parametrize("batch_size", [16, 5])
def test_flops_of_a_fine_tuned_net_follow_the_formula(tiny_config, batch_size):
    system = experiment(tiny_config, main_transfer="fine_tune", loader={"batch_size": batch_size})
    forward, step = Bench(system).count_flops()
    assert forward == FORWARD
    assert step == 3 * FORWARD  # backward: one product for the inputs, one for the weights


def test_flops_of_a_frozen_net_have_no_backward_pass_but_the_heads(tiny_config):
    forward, step = Bench(experiment(tiny_config)).count_flops()
    assert forward == FORWARD
    assert step == FORWARD + HEAD  # of the head, the gradient of its weights


def test_prompts_cost_what_their_keys_and_values_cost(tiny_config):
    rows = 4
    system = experiment(tiny_config, main_transfer={"name": "prompt", "length": rows})
    forward, step = Bench(system).count_flops()
    # BlockStack runs a block over tokens and prompts together.
    n = L + rows
    block = 2 * n * D * 3 * D + 2 * n * D * D + 2 * (2 * n * n * D)
    assert forward == DEPTH * block + HEAD
    # No weight of a block has a gradient: backward has the products for inputs, two of attention.
    assert forward < step <= 2 * DEPTH * block + 3 * HEAD + DEPTH * 2 * (2 * n * n * D)


def test_a_step_is_that_of_training(tiny_config):
    system = experiment(
        tiny_config, optimizer={"lr": 0.1}, trainer={"gradient_clip_val": 0.01}, loader={}
    )
    bench = Bench(system)
    cost = bench.time(steps=2)
    assert (cost.steps, cost.batch_size, cost.precision) == (2, 16, "32-true")
    assert cost.step_seconds > 0
    measured = {n: p for n, p in bench._model.named_parameters() if p.requires_grad}

    dataset, splits, model, fields = prepare(system, {})
    train = {"train": splits["train"]}
    loader = make_loaders(system, dataset, train, model, fields, {})["train"]
    batch = next(iter(loader))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert measured.keys() == trained.keys() == {"head.weight", "head.bias"}
    weight, bias = trained["head.weight"], trained["head.bias"]
    groups = [{"params": [weight], "weight_decay": 0.01}, {"params": [bias], "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    for _ in range(WARM_UP + 2):
        optimizer.zero_grad()
        logits = model(batch["inputs"]).logits
        nn.functional.cross_entropy(logits, batch["target"]).backward()
        assert nn.utils.clip_grad_norm_([weight, bias], 0.01) > 0.01
        optimizer.step()
    for name, parameter in trained.items():
        torch.testing.assert_close(measured[name], parameter)


def test_the_batch_is_the_configs_with_whatever_the_data_has(tiny_config):
    small = experiment(tiny_config, data={"sizes": [10, 4, 4]})
    assert Bench(small).time(steps=1).batch_size == 10


@pytest.mark.parametrize(
    "trainer",
    [{"precision": "bf16-mixed"}, {"gradient_checkpointing": True}, {"gradient_clip_val": None}],
    ids=str,
)
def test_ways_to_train_are_measured(tiny_config, trainer):
    config = {**tiny_config, "trainer": {**tiny_config["trainer"], **trainer}}
    bench = Bench(experiment_from_mapping(config))
    cost = bench.time(steps=1)
    assert cost.precision == trainer.get("precision", "32-true")
    forward, step = bench.count_flops()
    assert 0 < forward < step


def test_what_cannot_be_read_or_run_says_so(tiny_config):
    with pytest.raises(DataError, match="training split is empty"):
        Bench(experiment(tiny_config, data={"sizes": [0, 4, 4]}))
    with pytest.raises(DataError, match="tiny train, row 4"):
        Bench(experiment(tiny_config, data={"unreadable": True}, loader={"batch_size": 64}))
    gpu = experiment(tiny_config)
    gpu = replace(gpu, trainer=replace(gpu.trainer, accelerator="gpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"^trainer: "):
            Bench(gpu)


def test_a_system_is_built_once_without_weights_and_once_with(tiny_config):
    system = experiment(tiny_config, main_transfer="fine_tune")
    model, _, _ = dry_build(system)
    bench = Bench(system)
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (model, bench._model)]
    assert shapes[0] == shapes[1]


def test_peak_memory_is_what_was_held_at_once():
    watch = PeakMemory(torch.device("cpu"))
    first = torch.ones(48 * MIB // 4)
    del first
    watch.restart()
    held = torch.ones(64 * MIB // 4)
    both = held + 1
    assert float(both[0]) == 2
    del held, both
    gc.collect()
    peak = watch.read()
    if peak is None:
        pytest.skip("this system does not tell resident memory")
    assert 124 * MIB < peak < 160 * MIB


def test_peak_memory_leaves_out_what_was_there_before():
    before = torch.ones(64 * MIB // 4)
    watch = PeakMemory(torch.device("cpu"))
    watch.restart()
    peak = watch.read()
    assert float(before[0]) == 1
    assert peak is None or peak < 16 * MIB


def test_other_devices_do_not_say():
    assert PeakMemory(torch.device("meta")).read() is None


def test_the_machine_is_named():
    assert machine(torch.device("cpu")).endswith(("core", "cores"))


def test_steps_run_in_the_precision_that_is_told(tiny_config):
    bench = Bench(experiment(tiny_config, trainer={"precision": "bf16-mixed"}))
    seen = set()
    block = next(m for m in bench._model.fusion.main.modules() if isinstance(m, nn.Linear))
    block.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    bench.step()
    assert seen == {torch.bfloat16}
    assert block.weight.dtype == torch.bfloat16
