"""CoCoOp against upstream's own models on embeddings that are joined by hand."""

from __future__ import annotations

import pytest
import torch
from input_tokens import (
    MAINS,
    alone,
    bert,
    check_gradients,
    check_missing,
    close,
    flags,
    lacking,
    prepared,
    texts,
    trained,
    vectors,
    vit,
)
from tiny import TinyComplement
from torch import nn

from fusionkit.encoders.bert import Bert
from fusionkit.encoders.timm_swin import TimmSwin
from fusionkit.encoders.timm_vit import TimmViT
from fusionkit.errors import ConfigError, EncoderError
from fusionkit.fusion.cocoop import CoCoOp
from fusionkit.fusion.promptfuse import PromptFuse
from fusionkit.transfer.adapter import Adapter
from fusionkit.transfer.fine_tune import FineTune
from fusionkit.transfer.frozen import Frozen
from fusionkit.transfer.prompt import Prompt


def shift(fusion, x):
    """pi of one sample, (D,)."""
    first, last = fusion.meta_net[0], fusion.meta_net[2]
    hidden = (first.weight @ x + first.bias).clamp(min=0)
    return last.weight @ hidden + last.bias


@pytest.mark.parametrize("main", MAINS.values(), ids=MAINS)
@pytest.mark.parametrize("width", [5, 40, 160])
def test_it_equals_upstream_on_embeddings_joined_by_hand(main, width):
    fusion = prepared(CoCoOp(Frozen(main.make()), [Frozen(TinyComplement(dim=width))]))
    assert fusion.meta_net[0].out_features == max(width // 16, 1)
    inputs = {"main": main.inputs(), "complement": vectors()}
    found = fusion(inputs).feature
    for row in range(4):
        (x,) = fusion.complements["complement"].encoder.backbone(
            inputs["complement"]["x"][row : row + 1]
        )
        rows = fusion.prompts + shift(fusion, x)
        close(found[row], main.reference(fusion.main.encoder, inputs["main"], row, rows))
        close(fusion(alone(inputs, row)).feature[0], found[row])


def test_the_shift_is_what_tells_samples_apart():
    fusion = prepared(CoCoOp(Frozen(bert()), [Frozen(TinyComplement(dim=160))]))
    inputs, other = ({"main": texts(), "complement": vectors()} for _ in range(2))
    other["main"] = inputs["main"]
    assert (fusion(inputs).feature - fusion(other).feature).abs().amax(dim=1).gt(1e-8).all()
    nn.init.zeros_(fusion.meta_net[2].weight)
    close(fusion(inputs).feature, fusion(other).feature)


def test_tokens_that_are_shifted_alike_are_one_prompt_of_promptfuse():
    """One token without learned value, and PromptFuse's v through the same net: the same input."""
    main, complement = Frozen(bert()), Frozen(TinyComplement(dim=160))
    fusion = CoCoOp(main, [complement], prompt_length=2)
    other = PromptFuse(main, [complement], prompt_length=1)
    other.project[0] = fusion.meta_net
    nn.init.zeros_(fusion.prompts[0])
    prepared(fusion), prepared(other)
    inputs = {"main": texts(), "complement": vectors()}
    (x,) = complement.encoder.backbone(inputs["complement"]["x"][:1])
    with torch.no_grad():
        other.prompts[0].copy_(fusion.prompts[1] + shift(fusion, x))
    close(fusion(inputs).feature[0], other(inputs).feature[0])
    assert not torch.allclose(fusion(inputs).feature[1], other(inputs).feature[1], atol=1e-8)


def test_a_missing_complement_is_its_stand_in():
    fusion = CoCoOp(Frozen(bert()), [Frozen(TinyComplement(dim=160))])
    fusion.allow_missing(["complement"])
    prepared(fusion)
    inputs = {"main": texts(), "complement": vectors()}
    found = fusion(lacking(inputs, flags(1, 0, 1, 0))).feature
    rows = fusion.prompts + shift(fusion, fusion.stand_ins["complement"])
    close(found[1], MAINS["bert"].reference(fusion.main.encoder, inputs["main"], 1, rows))


@pytest.mark.parametrize("main", MAINS.values(), ids=MAINS)
def test_missing_fields(main):
    fusion = CoCoOp(Frozen(main.make()), [FineTune(TinyComplement(dim=160))])
    fusion.allow_missing(["main", "complement"])
    check_missing(prepared(fusion), {"main": main.inputs(), "complement": vectors()})


@pytest.mark.parametrize("mode", [Frozen, FineTune, Prompt, Adapter])
def test_gradients(mode):
    fusion = CoCoOp(mode(bert()), [mode(vit())])
    nn.init.ones_(fusion.meta_net[0].bias)  # a net as narrow as this one may start dead
    images = torch.randn(4, 3, 32, 32).double()
    check_gradients(fusion, {"main": texts(), "complement": {"pixels": images}})


def test_parameters_are_those_of_the_paper():
    """At CLIP's widths, ViT-B/16: 4 x 512 and a Meta-Net of 512, 32 and 512."""
    with torch.device("meta"):
        main, complement = Bert("bert-base-uncased"), TimmViT("vit_base_patch16_224")
        expected = 4 * 768 + (768 + 1) * 48 + (48 + 1) * 768 + 3 * 769
        assert trained(CoCoOp(Frozen(main), [Frozen(complement)])) == expected


def test_refusals():
    swin = TimmSwin(
        "swin_tiny_patch4_window7_224",
        weights="random",
        image_size=32,
        options={"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4},
    )
    complement = Frozen(TinyComplement())
    with pytest.raises(ConfigError, match=r"cocoop adds tokens.*this TimmSwin takes none"):
        CoCoOp(Frozen(swin), [complement])
    with pytest.raises(ConfigError, match="cocoop works in the layers"):
        CoCoOp(complement, [complement])
    with pytest.raises(ConfigError, match="cocoop fuses the main encoder with a complement; give"):
        CoCoOp(Frozen(bert()), [])
    with pytest.raises(ConfigError, match="cocoop is defined for one complement, given 2"):
        CoCoOp(Frozen(bert()), [complement, complement])
    with pytest.raises(ConfigError, match="prompt_length is at least 1, given 0"):
        CoCoOp(Frozen(bert()), [complement], prompt_length=0)


def test_texts_that_leave_no_positions_are_an_error_that_says_what_to_set():
    fusion = prepared(CoCoOp(Frozen(bert()), [Frozen(TinyComplement())]))
    full = {"input_ids": torch.full((4, 22), 5), "attention_mask": torch.ones(4, 22).bool()}
    message = r"22 tokens and 4 further ones, but the model has 24 positions; .* max_length to 20"
    with pytest.raises(EncoderError, match=message):
        fusion({"main": full, "complement": vectors()})
