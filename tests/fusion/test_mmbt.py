"""MMBT against upstream's own models on embeddings that are joined by hand."""

from __future__ import annotations

import pytest
import torch
from input_tokens import (
    MAINS,
    WIDTH,
    Sequence,
    alone,
    bert,
    check_gradients,
    check_missing,
    close,
    flags,
    lacking,
    prepared,
    sequences,
    texts,
    trained,
    vectors,
    vit,
)
from tiny import TinyComplement
from torch import nn
from torch.nn import functional as F

from fusionkit.encoders.base import Features
from fusionkit.encoders.bert import Bert
from fusionkit.encoders.timm_swin import TimmSwin
from fusionkit.errors import ConfigError, EncoderError
from fusionkit.fusion.main_only import MainOnly
from fusionkit.fusion.mmbt import MMBT, pool_regions
from fusionkit.transfer.adapter import Adapter
from fusionkit.transfer.bias_only import BiasOnly
from fusionkit.transfer.fine_tune import FineTune
from fusionkit.transfer.frozen import Frozen
from fusionkit.transfer.lora import Lora
from fusionkit.transfer.norm_only import NormOnly
from fusionkit.transfer.prompt import Prompt


def bands(tokens, project, count=3):
    """(count, D) of (T, C), torch's own pooling as the reference."""
    pooled = F.adaptive_avg_pool1d(tokens.T[None], count)[0].T
    return pooled @ project.weight.T + project.bias


def made(encoder, *complements, regions=3):
    return MMBT(Frozen(encoder), [Frozen(one) for one in complements], regions)


@pytest.mark.parametrize("main", MAINS.values(), ids=MAINS)
def test_it_equals_upstream_on_embeddings_joined_by_hand(main):
    fusion = prepared(made(main.make(), Sequence()))
    inputs = {"main": main.inputs(), "complement": sequences(5, 3, 8, 2)}
    found = fusion(inputs).feature
    linear = fusion.complements["complement"].encoder.backbone
    for row, length in enumerate((5, 3, 8, 2)):
        tokens = linear(inputs["complement"]["x"][row, :length])
        rows = bands(tokens, fusion.project[0])
        close(found[row], main.reference(fusion.main.encoder, inputs["main"], row, rows))
        close(fusion(alone(inputs, row)).feature[0], found[row])


def test_regions_of_an_image_are_the_authors_bands():
    """AdaptiveAvgPool2d((N, 1)) of a grid whose rows N divides."""
    grid = torch.randn(2, 5, 6, 4).double()
    expected = nn.AdaptiveAvgPool2d((3, 1))(grid).flatten(2).transpose(1, 2)
    tokens = grid.flatten(2).transpose(1, 2)
    close(pool_regions(Features(tokens[:, 0], tokens), 3), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 49])
def test_regions_are_torchs_adaptive_ones_wherever_padding_stands(count, length):
    tokens = torch.randn(1, length, 4).double()
    expected = F.adaptive_avg_pool1d(tokens.mT, count).mT
    close(pool_regions(Features(tokens[:, 0], tokens), count), expected)
    keep = torch.tensor([[False, *[True] * length, False, False]])
    padded = F.pad(tokens, (0, 0, 1, 2), value=7.0)
    close(pool_regions(Features(tokens[:, 0], padded, keep), count), expected)


def test_without_a_real_token_regions_are_zero():
    tokens, nothing = torch.randn(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool)
    assert not pool_regions(Features(tokens[:, 0], tokens, nothing), 2).any()


def test_a_complement_without_tokens_is_a_sequence_of_one():
    pooled = torch.randn(2, 5)
    assert torch.equal(pool_regions(Features(pooled), 3), pooled[:, None].expand(-1, 3, -1))


def test_several_complements_stand_one_behind_the_other():
    fusion = prepared(made(bert(), Sequence(), TinyComplement(dim=7), regions=2))
    inputs = {"main": texts(), "complement": sequences(5, 3, 8, 2), "complement_2": vectors()}
    found = fusion(inputs).feature
    first, second = (one.encoder for one in fusion.complements.values())
    for row, length in enumerate((5, 3, 8, 2)):
        tokens = first.backbone(inputs["complement"]["x"][row, :length])
        vector = second.backbone(inputs["complement_2"]["x"][row : row + 1])
        rows = torch.cat([bands(tokens, fusion.project[0], 2), bands(vector, fusion.project[1], 2)])
        expected = MAINS["bert"].reference(fusion.main.encoder, inputs["main"], row, rows)
        close(found[row], expected)


def test_a_projection_of_zeros_says_nothing_of_the_complement():
    """What is left are tokens of their own, not the main encoder alone."""
    fusion = prepared(made(bert(), Sequence()))
    inputs = {"main": texts(), "complement": sequences(5, 3, 8, 2)}
    before = fusion(inputs).feature
    other = {**inputs, "complement": sequences(4, 4, 4, 4)}
    assert (fusion(other).feature - before).abs().amax(dim=1).gt(1e-6).all()
    nn.init.zeros_(fusion.project[0].weight)
    close(fusion(other).feature, fusion(inputs).feature)
    only = prepared(MainOnly(fusion.main, []))
    assert not torch.allclose(fusion(inputs).feature, only(inputs).feature)


def test_a_missing_complement_is_its_stand_in():
    fusion = made(bert(), Sequence())
    fusion.allow_missing(["complement"])
    prepared(fusion)
    inputs = {"main": texts(), "complement": sequences(5, 3, 8, 2)}
    found = fusion(lacking(inputs, flags(1, 0, 1, 0))).feature
    (row,) = fusion.project[0](fusion.stand_ins["complement"][None])
    rows = row.expand(3, -1)  # the one token of which every region is made
    close(found[1], MAINS["bert"].reference(fusion.main.encoder, inputs["main"], 1, rows))


@pytest.mark.parametrize("main", MAINS.values(), ids=MAINS)
@pytest.mark.parametrize("tokens", [True, False])
def test_missing_fields(main, tokens):
    fusion = MMBT(Frozen(main.make()), [FineTune(Sequence() if tokens else TinyComplement())])
    fusion.allow_missing(["main", "complement"])
    given = sequences(5, 3, 8, 2) if tokens else vectors()
    check_missing(prepared(fusion), {"main": main.inputs(), "complement": given})


@pytest.mark.parametrize("mode", [Frozen, FineTune, Prompt, Adapter, Lora, BiasOnly, NormOnly])
def test_gradients_under_every_transfer(mode):
    fusion = MMBT(mode(bert()), [mode(vit())])
    images = torch.randn(4, 3, 32, 32).double()
    check_gradients(fusion, {"main": texts(), "complement": {"pixels": images}})


def test_the_papers_models_have_the_papers_number_of_parameters():
    """Table 1 of arXiv 2312.03734: MMBT 196.5 M, P-MMBT 0.9 M."""
    with torch.device("meta"):
        encoders = Bert("bert-base-uncased"), TimmSwin("swin_base_patch4_window7_224")
        main, complement = (Prompt(one, n) for one, n in zip(encoders, (6, 4), strict=True))
        assert trained(MMBT(main, [complement])) == 787_200 + 55_296 + 48_128 + 2_307
        main, complement = (FineTune(one) for one in encoders)
        assert trained(MMBT(main, [complement])) == 196_424_379


def test_refusals():
    swin = TimmSwin(
        "swin_tiny_patch4_window7_224",
        weights="random",
        image_size=32,
        options={"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4},
    )
    complement = Frozen(TinyComplement())
    with pytest.raises(ConfigError, match=r"mmbt adds tokens.*this TimmSwin takes none"):
        MMBT(Frozen(swin), [complement])
    with pytest.raises(ConfigError, match=r"mmbt works in the layers.*TinyComplement has none"):
        MMBT(complement, [complement])
    with pytest.raises(ConfigError, match="mmbt fuses the main encoder with a complement; give"):
        MMBT(Frozen(bert()), [])
    with pytest.raises(ConfigError, match="regions is at least 1, given 0"):
        MMBT(Frozen(bert()), [complement], regions=0)


def test_texts_that_leave_no_positions_are_an_error_that_says_what_to_set():
    fusion = prepared(made(bert(), TinyComplement()))
    full = {"input_ids": torch.full((4, 22), 5), "attention_mask": torch.ones(4, 22).bool()}
    message = r"22 tokens and 3 further ones, but the model has 24 positions; .* max_length to 21"
    with pytest.raises(EncoderError, match=message):
        fusion({"main": full, "complement": vectors()})
    fits = {name: tensor[:, :21] for name, tensor in full.items()}
    assert fusion({"main": fits, "complement": vectors()}).feature.shape == (4, WIDTH)
