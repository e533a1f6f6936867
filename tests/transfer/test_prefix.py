from __future__ import annotations

import math

import pytest
import torch
from tiny import TinyComplement, TinyMain

from fusionkit.encoders.attention import join_parts, parts_of
from fusionkit.encoders.base import ExtraTokens
from fusionkit.encoders.bert import Bert
from fusionkit.encoders.timm_swin import TimmSwin
from fusionkit.errors import ConfigError
from fusionkit.transfer.prefix import Prefix
from fusionkit.transfer.prompt import Prompt

SWIN = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (2, 1)}
SWIN |= {"num_heads": (2, 4)}
BERT = {
    "model_type": "bert",
    "vocab_size": 12,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
WORDS = {
    "input_ids": torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}


def swin() -> TimmSwin:
    """Its layers are 16, 16 and 32 wide."""
    made = TimmSwin("swin_tiny_patch4_window7_224", weights="random", options=dict(SWIN))
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return made


def images() -> dict:
    return {"pixels": torch.randn(2, 3, 32, 32, dtype=torch.float64)}


def bert() -> Bert:
    return Bert(config=dict(BERT), weights="random")


def words() -> dict:
    return WORDS


def prefix(encoder, **options) -> Prefix:
    return Prefix(encoder, **{"length": 3, "hidden_dim": 5, "dropout": 0.0, **options}).double()


def rows_of(transfer: Prefix, inputs: dict) -> list[torch.Tensor]:
    """The prompts that each layer is given."""
    seen = {}
    run_layer = transfer.encoder.run_layer

    def run(layer, state, prompts):
        seen[layer] = join_parts(parts_of(prompts), len(state.tokens))
        return run_layer(layer, state, prompts)

    transfer.encoder.run_layer = run
    transfer(inputs)
    del transfer.encoder.run_layer
    return [seen[layer] for layer in range(len(transfer.encoder.layers))]


def test_rows_are_those_of_the_mlp_by_hand():
    transfer = prefix(swin())
    start = transfer.rows.weight.tolist()
    (w1, b1), (w2, b2) = (
        (transfer.mlp[i].weight.tolist(), transfer.mlp[i].bias.tolist()) for i in (0, 2)
    )
    found = rows_of(transfer, images())
    assert [tuple(rows.shape) for rows in found] == [(2, 3, 16), (2, 3, 16), (2, 3, 32)]
    for j in range(3):
        hidden = [
            math.tanh(sum(w1[h][d] * start[j][d] for d in range(16)) + b1[h]) for h in range(5)
        ]
        whole = [sum(w2[o][h] * hidden[h] for h in range(5)) + b2[o] for o in range(64)]
        expected = (whole[:16], whole[16:32], whole[32:])
        for rows, by_hand in zip(found, expected, strict=True):
            for row in rows[:, j]:
                torch.testing.assert_close(
                    row, torch.tensor(by_hand, dtype=torch.float64), rtol=0, atol=1e-12
                )


@pytest.mark.parametrize(("make", "inputs"), [(swin, images), (bert, words)])
def test_it_equals_static_prompts_of_these_values(make, inputs):
    encoder, batch = make().double(), inputs()
    transfer = prefix(encoder)
    static = Prompt(encoder, length=3, dropout=0.0).double()
    before = static(batch).pooled
    with torch.no_grad():
        rows = static.prompts.rows.in_order()
        for row, values in zip(rows, rows_of(transfer, batch), strict=True):
            row.copy_(values[0])
    found = transfer(batch).pooled
    torch.testing.assert_close(found, static(batch).pooled, rtol=0, atol=1e-10)
    assert not torch.allclose(found, before, atol=1e-6)


@pytest.mark.parametrize(("length", "hidden"), [(4, 512), (2, 3)])
def test_the_number_of_its_weights(length, hidden):
    transfer = Prefix(swin(), length=length, hidden_dim=hidden)
    trained = sum(p.numel() for p in transfer.parameters() if p.requires_grad)
    assert trained == length * 16 + (16 + 1) * hidden + (hidden + 1) * (16 + 16 + 32)


def test_by_default_it_is_as_long_as_prompts_and_as_wide_as_its_source():
    transfer, prompt = Prefix(TinyMain()), Prompt(TinyMain())
    assert transfer.rows.weight.shape == prompt.prompts.rows.in_order()[0].shape
    assert transfer.mlp[0].out_features == 512
    assert transfer.dropout.p == prompt.dropout.p


def test_gradients_reach_the_rows_and_the_mlp_only():
    transfer = prefix(bert()).train()
    transfer(WORDS).pooled.square().sum().backward()
    names = {name for name, p in transfer.named_parameters() if p.grad is not None}
    assert names == {
        "rows.weight",
        *(f"mlp.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")),
    }
    assert (transfer.rows.weight.grad.abs().sum(dim=1) > 0).all()
    parts = transfer.mlp[2].weight.grad.split(16)  # of each layer
    assert all(part.abs().sum() > 0 for part in parts)


def test_entries_are_dropped_in_training_only():
    transfer = prefix(bert(), dropout=0.5).eval()
    assert torch.equal(transfer(WORDS).pooled, transfer(WORDS).pooled)
    transfer.train()
    rows = rows_of(transfer, WORDS)[0]
    assert (rows == 0).any()
    assert torch.equal(rows[0], rows[1])  # the same entries for all samples of a batch
    assert not torch.equal(rows[0], rows_of(transfer, WORDS)[0][0])


@pytest.mark.parametrize("recompute", [False, True])
def test_the_mlp_runs_once_for_all_layers(recompute):
    transfer = prefix(bert())
    transfer.encoder.gradient_checkpointing = recompute
    calls = []
    transfer.mlp.register_forward_hook(lambda *_: calls.append(1))
    transfer(WORDS).pooled.sum().backward()
    assert len(calls) == 1


def test_tokens_of_a_fusion_run_along():
    transfer = prefix(bert())
    rows = torch.randn(2, 2, 16, dtype=torch.float64)
    prompts = rows_of(transfer, WORDS)
    found = transfer(WORDS, extra=ExtraTokens(rows)).pooled
    expected = transfer.encoder.encode(
        WORDS, lambda layer, state: prompts[layer], extra=ExtraTokens(rows)
    ).pooled
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert not torch.allclose(found, transfer(WORDS).pooled, atol=1e-6)


def test_under_autocast_the_layers_get_their_own_dtype():
    transfer = Prefix(bert(), hidden_dim=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = transfer(WORDS).pooled
        assert pooled.dtype == Prompt(bert())(WORDS).pooled.dtype
    assert pooled.isfinite().all()


def test_an_encoder_without_layers_is_refused():
    with pytest.raises(
        ConfigError, match=r"'prefix' needs layers .* TinyComplement has none\. Use"
    ):
        Prefix(TinyComplement())


def test_prompts_of_others_are_refused():
    with pytest.raises(ConfigError, match="'prefix' has its own prompts and takes no others"):
        Prefix(TinyMain())({"x": torch.randn(4, 24)}, lambda layer, state: None)


@pytest.mark.parametrize("name", ["length", "hidden_dim"])
def test_sizes_of_zero_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} is at least 1, given 0"):
        Prefix(TinyMain(), **{name: 0})


def test_its_rows_start_as_embeddings_do():
    start = Prefix(TinyMain(dim=64), length=200).rows.weight.detach()
    assert start.std() == pytest.approx(1, abs=0.05)
