"""PromptFuse and BlindPrompt against upstream's own models, the masks made by hand."""

from __future__ import annotations

import pytest
import torch
from input_tokens import (
    BERT,
    MAINS,
    WIDTH,
    alone,
    bert,
    check_gradients,
    check_missing,
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
from tiny import TinyComplement, TinyMain

from fusionkit.encoders.bert import Bert
from fusionkit.encoders.timm_swin import TimmSwin
from fusionkit.encoders.timm_vit import TimmViT
from fusionkit.errors import ConfigError, EncoderError
from fusionkit.fusion.promptfuse import PromptFuse
from fusionkit.transfer.adapter import Adapter
from fusionkit.transfer.fine_tune import FineTune
from fusionkit.transfer.frozen import Frozen
from fusionkit.transfer.prompt import Prompt

READ_TEXT = {name: main for name, main in MAINS.items() if name != "vit"}


def made(encoder, *complements, blind=False):
    return PromptFuse(Frozen(encoder), [Frozen(one) for one in complements], 3, blind)


def rows_by_hand(fusion, inputs, row):
    """[v; p_1; ..; p_N] of each complement, one behind the other."""
    rows = []
    for number, (role, complement) in enumerate(fusion.complements.items()):
        (x,) = complement.encoder.backbone(inputs[role]["x"][row : row + 1])
        if len(x) != WIDTH:
            project = fusion.project[number]
            x = project.weight @ x + project.bias
        rows += [x[None], fusion.prompts[number]]
    return torch.cat(rows)


@pytest.mark.parametrize("main", READ_TEXT.values(), ids=READ_TEXT)
@pytest.mark.parametrize("width", [5, WIDTH])
def test_it_equals_upstream_on_embeddings_joined_by_hand(main, width):
    fusion = prepared(made(main.make(), TinyComplement(dim=width)))
    inputs = {"main": main.inputs(), "complement": vectors()}
    found = fusion(inputs).feature
    for row in range(4):
        rows = rows_by_hand(fusion, inputs, row)
        close(found[row], main.reference(fusion.main.encoder, inputs["main"], row, rows))
        close(fusion(alone(inputs, row)).feature[0], found[row])


def blind_mask(kinds, place, causal):
    """(1, 1, L, L), 0 or -inf: prompts see prompts only, all else sees everything.

    Args:
        kinds: Of the further tokens, v or p.
        place: Where the first of them stands.
        causal: Whether nobody sees what comes later.
    """

    def mask(length):
        is_prompt = [kind == "p" for kind in "t" * place + kinds]
        is_prompt += [False] * (length - len(is_prompt))
        out = torch.zeros(length, length).double()
        for query in range(length):
            for key in range(length):
                blind = is_prompt[query] and not is_prompt[key]
                if blind or (causal and key > query):
                    out[query, key] = -torch.inf
        return out[None, None]

    return mask


PLACES = {"bert": (1, False), "bert_mean": (1, False), "gpt2": (0, True), "clip_text": (1, True)}


@pytest.mark.parametrize(("name", "main"), READ_TEXT.items(), ids=READ_TEXT)
@pytest.mark.parametrize("several", [False, True])
def test_blind_prompts_equal_upstream_under_a_mask_made_by_hand(name, main, several):
    complements = [TinyComplement(), TinyComplement(dim=WIDTH)][: 2 if several else 1]
    fusion = prepared(made(main.make(), *complements, blind=True))
    inputs = {"main": main.inputs(), "complement": vectors(), "complement_2": vectors()}
    found = fusion(inputs).feature
    place, causal = PLACES[name]
    mask = blind_mask("vppp" * len(complements), place, causal)
    for row in range(4):
        rows = rows_by_hand(fusion, inputs, row)
        close(found[row], main.reference(fusion.main.encoder, inputs["main"], row, rows, mask))
        close(fusion(alone(inputs, row)).feature[0], found[row])


@pytest.mark.parametrize("main", READ_TEXT.values(), ids=READ_TEXT)
def test_blindness_is_no_matter_of_parameters_but_of_features(main):
    torch.manual_seed(1)
    encoder, complement = main.make(), TinyComplement()
    fuse, blind = (prepared(made(encoder, complement, blind=hidden)) for hidden in (False, True))
    blind.load_state_dict(fuse.state_dict())
    inputs = {"main": main.inputs(), "complement": vectors()}
    apart = (fuse(inputs).feature - blind(inputs).feature).abs().amax(dim=1)
    assert apart.gt(1e-6).all()


def states_of_prompts(fusion, inputs):
    """The prompts' tokens in each layer."""
    encoder = fusion.main.encoder
    seen = []
    run, place = encoder.run_layer, 0 if encoder.causal else 1

    def record(layer, state, prompts):
        out = run(layer, state, prompts)
        seen.append(out.tokens[:, place + 1 : place + 4])
        return out

    encoder.run_layer = record
    fusion(inputs)
    del encoder.run_layer
    return torch.stack(seen)


@pytest.mark.parametrize("encoder", [bert, gpt2])
def test_blind_prompts_are_the_same_for_every_sample(encoder):
    inputs = {"main": texts(), "complement": vectors()}
    for blind in (True, False):
        states = states_of_prompts(prepared(made(encoder(), TinyComplement(), blind=blind)), inputs)
        assert torch.allclose(states, states[:, :1].expand_as(states), atol=1e-12) == blind


def test_several_complements_bring_prompts_of_their_own():
    fusion = prepared(made(bert(), TinyComplement(), TinyComplement(dim=WIDTH)))
    inputs = {"main": texts(), "complement": vectors(), "complement_2": vectors()}
    found = fusion(inputs).feature
    for row in range(4):
        rows = rows_by_hand(fusion, inputs, row)
        assert rows.shape == (8, WIDTH)
        expected = MAINS["bert"].reference(fusion.main.encoder, inputs["main"], row, rows)
        close(found[row], expected)


def test_a_missing_complement_is_its_stand_in():
    fusion = made(bert(), TinyComplement())
    fusion.allow_missing(["complement"])
    prepared(fusion)
    inputs = {"main": texts(), "complement": vectors()}
    found = fusion(lacking(inputs, flags(1, 0, 1, 0))).feature
    rows = torch.cat([fusion.project[0](fusion.stand_ins["complement"])[None], fusion.prompts[0]])
    close(found[1], MAINS["bert"].reference(fusion.main.encoder, inputs["main"], 1, rows))


@pytest.mark.parametrize("main", READ_TEXT.values(), ids=READ_TEXT)
@pytest.mark.parametrize("blind", [False, True])
def test_missing_fields(main, blind):
    fusion = PromptFuse(Frozen(main.make()), [FineTune(TinyComplement())], 3, blind)
    fusion.allow_missing(["main", "complement"])
    check_missing(prepared(fusion), {"main": main.inputs(), "complement": vectors()})


@pytest.mark.parametrize("mode", [Frozen, FineTune, Prompt, Adapter])
@pytest.mark.parametrize("blind", [False, True])
def test_gradients(mode, blind):
    fusion = PromptFuse(mode(bert()), [mode(vit())], blind=blind, prompt_length=2)
    images = torch.randn(4, 3, 32, 32).double()
    check_gradients(fusion, {"main": texts(), "complement": {"pixels": images}})


def test_prompts_alone_are_trained_where_the_widths_are_equal():
    with torch.device("meta"):
        main, same = Frozen(Bert("bert-base-uncased")), Frozen(TimmViT("vit_base_patch16_224"))
        assert trained(PromptFuse(main, [same])) == 15_360 + 2_307
        wider = Frozen(TimmSwin("swin_base_patch4_window7_224"))
        assert trained(PromptFuse(main, [wider])) == 15_360 + 2_307 + 787_200


def test_prompts_start_small():
    prompts = PromptFuse(Frozen(bert()), [Frozen(TinyComplement())], 500).prompts[0]
    assert prompts.std().item() == pytest.approx(0.02, rel=0.1)


def test_refusals():
    complement = Frozen(TinyComplement())
    with pytest.raises(ConfigError, match=r"\(TimmViT\) reads fields of type 'image'.*cocoop"):
        PromptFuse(Frozen(vit()), [complement])
    with pytest.raises(ConfigError, match="promptfuse works in the layers"):
        PromptFuse(complement, [complement])
    narrow = Bert(
        config={
            "model_type": "electra",
            "embedding_size": 8,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 12,
        },
        weights="random",
    )
    with pytest.raises(ConfigError, match="promptfuse adds tokens to the main encoder's input"):
        PromptFuse(Frozen(narrow), [complement])
    with pytest.raises(ConfigError, match="promptfuse fuses the main encoder with a complement"):
        PromptFuse(Frozen(bert()), [])
    with pytest.raises(ConfigError, match="prompt_length is at least 1, given 0"):
        PromptFuse(Frozen(bert()), [complement], prompt_length=0)


def test_texts_that_leave_no_positions_are_an_error_that_says_what_to_set():
    fusion = prepared(PromptFuse(Frozen(bert()), [Frozen(TinyComplement())]))
    message = r"7 tokens and 21 further ones, but the model has 24 positions; .* max_length to 3"
    with pytest.raises(EncoderError, match=message):
        fusion({"main": texts(), "complement": vectors()})


class TextStack(TinyMain):
    """A text encoder that masks nothing."""

    modality = "text"


def test_blind_prompts_need_an_encoder_that_hides_tokens():
    complement = Frozen(TinyComplement())
    PromptFuse(Frozen(TextStack()), [complement])
    with pytest.raises(ConfigError, match="TextStack has no way to hide tokens.*leave blind out"):
        PromptFuse(Frozen(TextStack()), [complement], blind=True)


def test_texts_are_cut_to_leave_room_for_the_prompts(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = str(tmp_path)
    encoder = Bert(config=dict(BERT), weights="random", tokenizer=tokenizer)
    words = "cat " * 50
    assert len(encoder.preprocessor(train=False)(words)["input_ids"]) == 24
    PromptFuse(Frozen(encoder), [Frozen(TinyComplement())], prompt_length=9)
    assert len(encoder.preprocessor(train=False)(words)["input_ids"]) == 14
    crowded = Bert(config=dict(BERT), weights="random", tokenizer=tokenizer)
    PromptFuse(Frozen(crowded), [Frozen(TinyComplement())], prompt_length=22)
    with pytest.raises(ConfigError, match="23 further tokens leave 1 of the model's 24 positions"):
        crowded.preprocessor(train=False)
