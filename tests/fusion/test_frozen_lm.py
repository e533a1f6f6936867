"""Frozen against upstream's own causal models on embeddings that are joined by hand."""

from __future__ import annotations

import pytest
import torch
from input_tokens import (
    MAINS,
    WIDTH,
    alone,
    bert,
    check_gradients,
    check_missing,
    clip_text,
    close,
    flags,
    gpt2,
    lacking,
    prepared,
    texts,
    trained,
    vectors,
    vit,
)
from tiny import TinyComplement

from fusionkit.encoders.gpt2 import CausalLM
from fusionkit.encoders.timm_vit import TimmViT
from fusionkit.errors import ConfigError, EncoderError
from fusionkit.fusion.frozen_lm import FrozenLM
from fusionkit.transfer.adapter import Adapter
from fusionkit.transfer.fine_tune import FineTune
from fusionkit.transfer.frozen import Frozen
from fusionkit.transfer.lora import Lora
from fusionkit.transfer.prompt import Prompt

CAUSAL = {name: MAINS[name] for name in ("gpt2", "clip_text")}


@pytest.mark.parametrize("main", CAUSAL.values(), ids=CAUSAL)
@pytest.mark.parametrize("length", [1, 2, 3])
def test_it_equals_upstream_on_embeddings_joined_by_hand(main, length):
    fusion = prepared(FrozenLM(Frozen(main.make()), [FineTune(TinyComplement())], length))
    inputs = {"main": main.inputs(), "complement": vectors()}
    found = fusion(inputs).feature
    weight, bias = fusion.project[0].weight, fusion.project[0].bias
    for row in range(4):
        (x,) = fusion.complements["complement"].encoder.backbone(
            alone(inputs, row)["complement"]["x"]
        )
        places = [slice(i * WIDTH, (i + 1) * WIDTH) for i in range(length)]
        rows = torch.stack([weight[place] @ x + bias[place] for place in places])
        close(found[row], main.reference(fusion.main.encoder, inputs["main"], row, rows))
        close(fusion(alone(inputs, row)).feature[0], found[row])


def test_several_complements_stand_one_behind_the_other():
    complements = [Frozen(TinyComplement()), Frozen(TinyComplement(dim=7))]
    fusion = prepared(FrozenLM(Frozen(gpt2()), complements))
    inputs = {"main": texts(), "complement": vectors(), "complement_2": vectors()}
    found = fusion(inputs).feature
    for row in range(4):
        rows = []
        for role, project in zip(fusion.complements, fusion.project, strict=True):
            x = fusion.complements[role].encoder.backbone(inputs[role]["x"][row : row + 1])
            rows.append(project(x).view(2, WIDTH))
        expected = MAINS["gpt2"].reference(
            fusion.main.encoder, inputs["main"], row, torch.cat(rows)
        )
        close(found[row], expected)


def test_a_text_without_words_is_still_read_behind_the_prefix():
    """GPT-2's tokenizer makes nothing of "": one padded position that sees the complement."""
    fusion = prepared(FrozenLM(Frozen(gpt2()), [Frozen(TinyComplement())]))
    inputs = {"main": texts(), "complement": vectors()}
    inputs["main"]["attention_mask"][2] = False
    inputs["main"]["input_ids"][2] = 0
    before = fusion(inputs).feature
    inputs["complement"]["x"][2] += 1
    moved = (fusion(inputs).feature - before).abs().amax(dim=1) > 1e-6
    assert moved.tolist() == [False, False, True, False]


def test_a_missing_complement_is_its_stand_in():
    fusion = FrozenLM(Frozen(gpt2()), [Frozen(TinyComplement())])
    fusion.allow_missing(["complement"])
    prepared(fusion)
    inputs = {"main": texts(), "complement": vectors()}
    found = fusion(lacking(inputs, flags(1, 0, 1, 0))).feature
    rows = fusion.project[0](fusion.stand_ins["complement"]).view(2, WIDTH)
    close(found[1], MAINS["gpt2"].reference(fusion.main.encoder, inputs["main"], 1, rows))


@pytest.mark.parametrize("main", CAUSAL.values(), ids=CAUSAL)
def test_missing_fields(main):
    fusion = FrozenLM(Frozen(main.make()), [FineTune(TinyComplement())])
    fusion.allow_missing(["main", "complement"])
    check_missing(prepared(fusion), {"main": main.inputs(), "complement": vectors()})


@pytest.mark.parametrize("mode", [Frozen, FineTune, Prompt, Adapter, Lora])
def test_gradients_reach_the_vision_encoder_through_the_frozen_language_model(mode):
    fusion = FrozenLM(Frozen(gpt2()), [mode(vit())])
    images = torch.randn(4, 3, 32, 32).double()
    check_gradients(fusion, {"main": texts(), "complement": {"pixels": images}})
    assert not any(weight.requires_grad for weight in fusion.main.parameters())


def test_the_parameters_are_those_of_the_map_and_the_vision_encoder():
    with torch.device("meta"):
        main, complement = CausalLM("gpt2"), TimmViT("vit_base_patch16_224")
        own = sum(weight.numel() for weight in complement.parameters())
        model = FrozenLM(Frozen(main), [FineTune(complement)])
        assert trained(model) == own + 2 * 768 * (768 + 1) + 3 * (768 + 1)


def test_a_main_encoder_that_reads_both_ways_is_refused():
    message = r"Bert reads both ways\. Give such a model as `main`, as the encoder gpt2 does"
    with pytest.raises(ConfigError, match=message):
        FrozenLM(Frozen(bert()), [Frozen(TinyComplement())])
    with pytest.raises(ConfigError, match="TimmViT reads both ways"):
        FrozenLM(Frozen(vit()), [Frozen(TinyComplement())])
    assert FrozenLM(Frozen(clip_text()), [Frozen(TinyComplement())]).out_dim == 10


@pytest.mark.parametrize("mode", [FineTune, Prompt, Adapter, Lora])
def test_a_language_model_that_is_trained_is_refused(mode):
    message = (
        rf"nothing is trained; main_transfer \({mode.__name__}\) .* Set `main_transfer: frozen`"
    )
    with pytest.raises(ConfigError, match=message):
        FrozenLM(mode(gpt2()), [Frozen(TinyComplement())])


def test_refusals():
    complement = Frozen(TinyComplement())
    with pytest.raises(ConfigError, match=r"frozen works in the layers.*TinyComplement has none"):
        FrozenLM(complement, [complement])
    with pytest.raises(ConfigError, match="frozen fuses the main encoder with a complement; give"):
        FrozenLM(Frozen(gpt2()), [])
    with pytest.raises(ConfigError, match="length is at least 1, given 0"):
        FrozenLM(Frozen(gpt2()), [complement], length=0)


def test_texts_that_leave_no_positions_are_an_error_that_says_what_to_set():
    fusion = prepared(FrozenLM(Frozen(gpt2()), [Frozen(TinyComplement())]))
    full = {"input_ids": torch.full((4, 23), 5), "attention_mask": torch.ones(4, 23).bool()}
    message = r"23 tokens and 2 further ones, but the model has 24 positions; .* max_length to 22"
    with pytest.raises(EncoderError, match=message):
        fusion({"main": full, "complement": vectors()})
