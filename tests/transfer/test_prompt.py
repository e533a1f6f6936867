"""Shallow prompts; deep ones are in test_transfer.py."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from tiny import TinyComplement, TinyMain
from torch import nn
from transformers import AutoModel

from fusionkit.encoders.base import PRESENT, ExtraTokens
from fusionkit.encoders.bert import Bert
from fusionkit.encoders.gpt2 import CausalLM
from fusionkit.encoders.timm_swin import TimmSwin
from fusionkit.encoders.timm_vit import TimmViT
from fusionkit.errors import ConfigError
from fusionkit.fusion.main_only import MainOnly
from fusionkit.transfer.frozen import Frozen
from fusionkit.transfer.prompt import Prompt

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "num_heads": 2}
BERT = {
    "model_type": "bert",
    "vocab_size": 12,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}
GPT2 |= {"n_positions": 16}
SWIN = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (2, 1)}
SWIN |= {"num_heads": (2, 4)}
WORDS = {
    "input_ids": torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
N = 3


def shaken(encoder):
    """In double precision, no weight so small that what a token sees is lost."""
    with torch.no_grad():
        for weight in encoder.double().parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return encoder


def vit(depth: int = 2, **options) -> TimmViT:
    options = {**VIT, "depth": depth, **options}
    return shaken(TimmViT("vit_tiny_patch16_224", weights="random", options=options))


def text(causal: bool) -> Any:
    if causal:
        return shaken(CausalLM(config=dict(GPT2), weights="random"))
    return shaken(Bert(config=dict(BERT), weights="random"))


def upstream(backbone) -> Any:
    """The same weights in upstream's own model and attention."""
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    options = {} if config.model_type == "gpt2" else {"add_pooling_layer": False}
    plain = AutoModel.from_config(config, attn_implementation="eager", **options)
    plain.double().eval().load_state_dict(backbone.state_dict())
    return plain


def pixels(batch: int = 2) -> dict:
    return {"pixels": torch.randn(batch, 3, 16, 16, dtype=torch.float64)}


def shallow(encoder, **options) -> Prompt:
    options = {"length": N, "dropout": 0.0, "init_range": 1.0, **options}
    return Prompt(encoder, shallow=True, **options).double()


def close(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def opened(visible: torch.Tensor, words: int, before: int, causal: bool) -> torch.Tensor:
    """(2, 1, L, L) additive mask of WORDS among them (n, n) hidden ones, cell by cell."""
    n = len(visible)
    length = words + n
    keep = WORDS["attention_mask"].tolist()
    mask = torch.full((2, 1, length, length), -torch.inf, dtype=torch.float64)
    for b in range(2):
        real = [*keep[b][:before], *[1] * n, *keep[b][before:]]
        for i in range(length):
            for j in range(length):
                both = 0 <= i - before < n and 0 <= j - before < n
                seen = visible[i - before, j - before] if both else True
                if real[j] and seen and (j <= i or not causal):
                    mask[b, 0, i, j] = 0
    return mask


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_on_an_image_it_equals_upstream_blocks_on_joined_tokens(pool):
    transfer, inputs = shallow(vit(global_pool=pool)), pixels()
    plain = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, **VIT, depth=2, global_pool=pool
    )
    plain.double().eval().load_state_dict(transfer.encoder.backbone.state_dict())
    tokens = plain.norm_pre(plain._pos_embed(plain.patch_embed(inputs["pixels"])))
    rows = transfer.prompts.rows.in_order()[0].expand(2, -1, -1)
    # Section 3.2 of arXiv 2203.12119: class token, prompts, patches.
    tokens = plain.blocks(torch.cat([tokens[:, :1], rows, tokens[:, 1:]], dim=1))
    tokens = plain.norm(torch.cat([tokens[:, :1], tokens[:, 1 + N :]], dim=1))
    found = transfer(inputs)
    close(found.tokens, tokens)
    close(found.pooled, plain.forward_head(tokens, pre_logits=True))
    assert not torch.allclose(found.pooled, plain(inputs["pixels"]), atol=1e-3)


def test_on_a_text_it_equals_upstream_on_joined_embeddings():
    transfer = shallow(text(causal=False))
    plain = upstream(transfer.encoder.backbone)
    words = plain.embeddings.word_embeddings(WORDS["input_ids"])
    rows, keep = transfer.prompts.rows.in_order()[0].expand(2, -1, -1), WORDS["attention_mask"]
    expected = plain(
        inputs_embeds=torch.cat([words[:, :1], rows, words[:, 1:]], dim=1),
        attention_mask=torch.cat([keep[:, :1], torch.ones(2, N).long(), keep[:, 1:]], dim=1),
    ).last_hidden_state
    found = transfer(WORDS)
    close(found.pooled, expected[:, 0])
    close(found.tokens[0], expected[0, [0, *range(1 + N, 5 + N)]])
    assert found.keep.tolist() == keep.bool().tolist()


def test_on_a_causal_model_the_rows_stand_before_all_words():
    transfer = shallow(text(causal=True))
    plain = upstream(transfer.encoder.backbone)
    rows = transfer.prompts.rows.in_order()[0].expand(2, -1, -1)
    joined = torch.cat([rows, plain.wte(WORDS["input_ids"])], dim=1)
    expected = plain(inputs_embeds=joined).last_hidden_state
    close(transfer(WORDS).pooled, torch.stack([expected[0, N + 4], expected[1, N + 2]]))


def test_in_one_layer_shallow_and_deep_are_the_same():
    encoder, inputs = vit(depth=1), pixels()
    found, deep = shallow(encoder), Prompt(encoder, length=N, dropout=0.0).double()
    deep.prompts.load_state_dict(found.prompts.state_dict())
    close(found(inputs).pooled, deep(inputs).pooled)
    two = vit(depth=2)
    found, deep = shallow(two), Prompt(two, length=N, dropout=0.0).double()
    row = found.prompts.rows.in_order()[0].detach()
    deep.prompts.rows["16"] = nn.Parameter(torch.stack([row, row]))
    assert not torch.allclose(found(inputs).pooled, deep(inputs).pooled, atol=1e-4)


def test_tokens_of_a_fusion_follow_its_own():
    transfer, inputs = shallow(vit()), pixels()
    rows = torch.randn(2, 2, 16, dtype=torch.float64)
    own = transfer.prompts.rows.in_order()[0].expand(2, -1, -1)
    joined = ExtraTokens(torch.cat([own, rows], dim=1))
    expected = Frozen(transfer.encoder)(inputs, extra=joined)
    close(transfer(inputs, extra=ExtraTokens(rows)).pooled, expected.pooled)
    assert not torch.allclose(transfer(inputs).pooled, expected.pooled, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_tokens_that_are_hidden_from_each_other_still_see_its_own(causal):
    transfer, before = shallow(text(causal), length=2), 0 if causal else 1
    plain = upstream(transfer.encoder.backbone)
    hidden = torch.tensor([[True, False], [False, True]])
    whole = torch.ones(4, 4, dtype=torch.bool)
    whole[2, 3] = whole[3, 2] = False
    rows = torch.randn(2, 2, 16, dtype=torch.float64)
    own = transfer.prompts.rows.in_order()[0].expand(2, -1, -1)
    words = plain.get_input_embeddings()(WORDS["input_ids"])
    joined = torch.cat([words[:, :before], own, rows, words[:, before:]], dim=1)
    mask = opened(whole, 5, before, causal)
    expected = plain(inputs_embeds=joined, attention_mask=mask).last_hidden_state
    found = transfer(WORDS, extra=ExtraTokens(rows, hidden)).pooled
    close(found, expected[:, 0] if not causal else torch.stack([expected[0, 8], expected[1, 6]]))
    seeing = transfer(WORDS, extra=ExtraTokens(rows)).pooled
    assert not torch.allclose(found, seeing, atol=1e-6)


def test_its_rows_are_all_that_is_trained_and_all_get_gradients():
    transfer = shallow(vit(depth=3), length=5).train()
    trained = {name: p for name, p in transfer.named_parameters() if p.requires_grad}
    assert {name: p.shape for name, p in trained.items()} == {"prompts.rows.16": (1, 5, 16)}
    transfer(pixels()).pooled.square().sum().backward()
    assert all(row.abs().sum() > 0 for row in trained["prompts.rows.16"].grad[0])


def test_entries_are_dropped_in_training_only():
    transfer, inputs = shallow(vit(), dropout=0.5), pixels()
    transfer.eval()
    assert torch.equal(transfer(inputs).pooled, transfer(inputs).pooled)
    transfer.train()
    assert not torch.allclose(transfer(inputs).pooled, transfer(inputs).pooled, atol=1e-4)


def test_a_stand_in_for_the_field_leaves_the_rows_alone():
    fusion = MainOnly(shallow(TinyMain()), []).double().eval()
    fusion.allow_missing(["main"])
    present = torch.tensor([True, False])
    x = torch.randn(2, 24, dtype=torch.float64)
    feature = fusion({"main": {"x": x, PRESENT: present}}).feature
    other = fusion({"main": {"x": x + 1, PRESENT: present}}).feature
    assert (feature != other).any(dim=1).tolist() == [True, False]
    feature[1].square().sum().backward()
    (rows,) = fusion.main.prompts.rows.values()
    assert (rows.grad.abs().sum(dim=-1) > 0).all()


def test_encoders_whose_input_takes_no_tokens_are_refused():
    swin = TimmSwin("swin_tiny_patch4_window7_224", weights="random", options=dict(SWIN))
    reason = "'prompt' with shallow adds tokens .* this TimmSwin takes none. Use it without shal"
    with pytest.raises(ConfigError, match=reason):
        Prompt(swin, shallow=True)
    assert len(Prompt(swin).prompts.rows.in_order()) == 3  # deep prompts it takes
    albert = Bert(config={**BERT, "model_type": "albert", "embedding_size": 8}, weights="random")
    with pytest.raises(ConfigError, match="this Bert takes none"):
        Prompt(albert, shallow=True)
    with pytest.raises(ConfigError, match="TinyComplement has none"):
        Prompt(TinyComplement(), shallow=True)


def test_prompts_of_a_fusion_are_refused_though_the_layers_are_free():
    with pytest.raises(ConfigError, match="'prompt' has its own prompts and takes no others"):
        shallow(TinyMain())({"x": torch.randn(2, 24)}, lambda layer, state: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length is at least 1, given 0."),
        ({"init_range": -0.5}, "init_range is at least 0, given -0.5."),
        ({"init": "tokens", "shallow": True}, "prompts at each layer; leave out shallow, or set"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Prompt(TinyMain(), **options)
