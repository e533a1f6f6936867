"""Mixed precision with frozen weights that are kept rounded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.steps import CASES, Case, Step
from fusionkit.training.precision import frozen_products, hold_frozen

_SMALL = {
    "bert": {"config": {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2,
                        "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 20_000}},
    "gpt2": {"config": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2,
                        "vocab_size": 20_000}},
    "timm_vit": {"model": "vit_tiny_patch16_224"},
    "timm_swin": {"model": "swin_tiny_patch4_window7_224"},
    "wav2vec2": {"config": {"model_type": "wav2vec2", "hidden_size": 32, "num_hidden_layers": 2,
                            "num_attention_heads": 2, "intermediate_size": 64,
                            "conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [20, 8],
                            "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16,
                            "num_conv_pos_embedding_groups": 2}},
}  # fmt: skip
_INPUTS = {case.name: case.inputs for case in CASES}


def _step(name: str) -> Step:
    init = {**_SMALL[name], "weights": "random"}
    step = Step(Case(name, name, init, 2, _INPUTS[name]), "cpu", dropout=0.0, noise=0.0)
    step.precision = torch.autocast("cpu", torch.bfloat16)
    return step


def _loss_and_gradients(step: Step) -> list[torch.Tensor]:
    with step.precision:
        loss, _ = step._task.total_loss(step.batch)
    loss.backward()
    return [loss, *(p.grad for p in step.model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("name", _SMALL)
def test_rounded_weights_give_exactly_what_mixed_precision_gives(name):
    plain, held = _step(name), _step(name)
    hold_frozen(held.model, "bf16-mixed")
    names = frozen_products(held.model)
    assert names
    assert {held.model.get_parameter(n).dtype for n in names} == {torch.bfloat16}
    assert all(p.dtype == torch.float for p in held.model.parameters() if p.requires_grad)
    for ours, theirs in zip(*map(_loss_and_gradients, (held, plain)), strict=True):
        assert torch.equal(ours, theirs)


def test_only_frozen_weights_of_products_are_rounded():
    class Twice(nn.Linear):
        pass

    embedding, tied = nn.Embedding(5, 4), nn.Linear(4, 5)
    tied.weight = embedding.weight
    model = nn.ModuleDict(
        {
            "frozen": nn.Linear(4, 4),
            "norm": nn.LayerNorm(4),
            "more": Twice(4, 4),
            "embedding": embedding,
            "tied": tied,
        }
    ).requires_grad_(False)
    model["trained"] = nn.Linear(4, 4)
    model["bias"] = nn.Linear(4, 4)
    model["bias"].weight.requires_grad_(False)
    assert frozen_products(model) == ["frozen.weight", "frozen.bias", "tied.bias", "bias.weight"]


def test_full_precision_changes_nothing():
    step = _step("bert")
    hold_frozen(step.model, "32-true")
    assert {p.dtype for p in step.model.parameters()} == {torch.float}
