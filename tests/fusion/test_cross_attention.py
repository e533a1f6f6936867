"""Cross-attention against loops over samples, heads, queries and keys."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import TinyComplement, TinyMain
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.encoders.base import Features
from fusionkit.encoders.bert import Bert
from fusionkit.encoders.timm_swin import TimmSwin
from fusionkit.errors import ConfigError
from fusionkit.fusion.cross_attention import CrossAttention
from fusionkit.transfer.fine_tune import FineTune
from fusionkit.transfer.frozen import Frozen

DIM, HEADS = 8, 2
TEXTS = ["the digit is even", "it is an odd digit and above five", "no"]


class Words(TinyComplement):
    """Each number of a row is a token; NaN is padding."""

    def __init__(self) -> None:
        super().__init__(dim=5)
        self.backbone = nn.Linear(1, 5)

    def encode(self, inputs):
        keep = ~inputs["x"].isnan()
        tokens = self.backbone(inputs["x"].nan_to_num().unsqueeze(-1))
        return Features((tokens * keep.unsqueeze(-1)).sum(1), tokens, keep)


def shaken(fusion: CrossAttention) -> CrossAttention:
    """Norms and biases that start as ones and zeros would hide an error."""
    for name, parameter in fusion.named_parameters():
        if not name.startswith("encoders"):
            nn.init.normal_(parameter, std=0.5)
    return fusion.double().eval()


def by_hand(fusion: CrossAttention, seen: list[Features]) -> Tensor:
    """The docstring's equations for every sample and its real tokens alone."""
    rows = []
    for b in range(len(seen[0].pooled)):
        own, *others = [real_tokens(features, b) for features in seen]
        project = list(fusion.project)
        x = [project[0](token) for token in own]
        y = [
            fusion.norm_seen(linear(token))
            for linear, tokens in zip(project[1:], others, strict=True)
            for token in tokens
        ]
        z = [token + attend(fusion, fusion.norm_main(token), y) for token in x]
        norm, up, _, down = fusion.feed_forward
        out = [fusion.norm(token + down(up(norm(token)).clamp(min=0))) for token in z]
        mean = sum(out) / len(out) if out else torch.zeros(DIM).double()
        rows.append(torch.cat([seen[0].pooled[b], mean]))
    return torch.stack(rows)


def real_tokens(features: Features, b: int) -> list[Tensor]:
    if features.tokens is None:
        return [features.pooled[b]]
    length = features.tokens.shape[1]
    keep = [True] * length if features.keep is None else features.keep[b].tolist()
    return [features.tokens[b, t] for t in range(length) if keep[t]]


def attend(fusion: CrossAttention, query: Tensor, seen: list[Tensor]) -> Tensor:
    if not seen:
        return torch.zeros(DIM).double()
    attention = fusion.attention
    weights, biases = attention.in_proj_weight.split(DIM), attention.in_proj_bias.split(DIM)
    q = F.linear(query, weights[0], biases[0])
    keys = [F.linear(token, weights[1], biases[1]) for token in seen]
    values = [F.linear(token, weights[2], biases[2]) for token in seen]
    size, read = DIM // HEADS, []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = [(q[part] @ key[part]).item() / math.sqrt(size) for key in keys]
        exponents = [math.exp(score - max(scores)) for score in scores]
        shares = [exponent / sum(exponents) for exponent in exponents]
        read.append(sum(share * v[part] for share, v in zip(shares, values, strict=True)))
    return attention.out_proj(torch.cat(read))


def words(*lengths: int) -> Tensor:
    x = torch.randn(len(lengths), 6).double()
    for row, length in enumerate(lengths):
        x[row, length:] = torch.nan
    return x


def text_main() -> tuple[Bert, dict]:
    """A main encoder with padding, and a batch of it."""
    bert = Bert("fusionkit/claims-transformer").double()
    read = bert.preprocessor(train=False)
    return bert, read.collate([read(text) for text in TEXTS])


def test_it_is_attention_by_hand_over_real_tokens_of_both_sides():
    bert, texts = text_main()
    one, two = Words(), TinyComplement(dim=7)  # with tokens and without
    fusion = shaken(CrossAttention(Frozen(bert), [Frozen(one), Frozen(two)], dim=DIM, heads=HEADS))
    inputs = {
        "main": texts,
        "complement": {"x": words(6, 2, 4)},
        "complement_2": {"x": torch.randn(3, 6).double()},
    }
    seen = [
        bert.encode(texts),
        one.encode(inputs["complement"]),
        two.encode(inputs["complement_2"]),
    ]
    assert not seen[0].keep.all()
    assert not seen[1].keep.all()
    assert seen[2].tokens is None
    feature = fusion(inputs).feature
    assert feature.shape == (3, fusion.out_dim)
    torch.testing.assert_close(feature, by_hand(fusion, seen), rtol=1e-10, atol=1e-10)


def test_windows_and_maps_of_an_image_are_tokens():
    swin = TimmSwin(
        "swin_tiny_patch4_window7_224",
        weights="random",
        image_size=32,
        options={"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4},
    ).double()
    words_encoder = Words()
    fusion = shaken(CrossAttention(Frozen(swin), [Frozen(words_encoder)], dim=DIM, heads=HEADS))
    read = swin.preprocessor(train=False)
    images = read.collate([read(torch.rand(40, 40, 3)) for _ in range(2)])
    inputs = {
        "main": {name: tensor.double() for name, tensor in images.items()},
        "complement": {"x": words(6, 3)},
    }
    seen = [swin.encode(inputs["main"]), words_encoder.encode(inputs["complement"])]
    assert seen[0].tokens.shape[1] == 16
    torch.testing.assert_close(
        fusion(inputs).feature, by_hand(fusion, seen), rtol=1e-10, atol=1e-10
    )


def test_a_main_encoder_without_tokens_asks_with_its_feature():
    class Single(TinyMain):
        def readout(self, state):
            return Features(state.tokens.mean(dim=1))

    main, complement = Single(), Words()
    fusion = shaken(CrossAttention(Frozen(main), [Frozen(complement)], dim=DIM, heads=HEADS))
    inputs = {"main": {"x": torch.randn(2, 24).double()}, "complement": {"x": words(6, 2)}}
    seen = [main.encode(inputs["main"]), complement.encode(inputs["complement"])]
    torch.testing.assert_close(
        fusion(inputs).feature, by_hand(fusion, seen), rtol=1e-10, atol=1e-10
    )


def test_a_sample_whose_complement_is_all_padding_reads_nothing():
    main, complement = TinyMain(), Words()
    fusion = shaken(CrossAttention(FineTune(main), [FineTune(complement)], dim=DIM, heads=HEADS))
    inputs = {"main": {"x": torch.randn(3, 24).double()}, "complement": {"x": words(6, 0, 3)}}
    seen = [main.encode(inputs["main"]), complement.encode(inputs["complement"])]
    assert not seen[1].keep[1].any()
    feature = fusion(inputs).feature
    torch.testing.assert_close(feature, by_hand(fusion, seen), rtol=1e-10, atol=1e-10)
    feature.square().sum().backward()
    for name, parameter in fusion.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    alone = {"main": {"x": inputs["main"]["x"][1:2]}, "complement": {"x": words(0)}}
    torch.testing.assert_close(fusion(alone).feature[0], feature[1], rtol=1e-10, atol=1e-10)


def test_more_padding_changes_nothing():
    fusion = shaken(CrossAttention(Frozen(TinyMain()), [Frozen(Words())], dim=DIM, heads=HEADS))
    main, short = {"x": torch.randn(2, 24).double()}, words(4, 3)
    padded = torch.cat([short, torch.full((2, 5), torch.nan).double()], dim=1)
    before = fusion({"main": main, "complement": {"x": short[:, :4]}}).feature
    after = fusion({"main": main, "complement": {"x": padded}}).feature
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)


def test_parameters_are_as_documented():
    fusion = CrossAttention(Frozen(TinyMain()), [Frozen(Words())], dim=DIM, heads=HEADS)
    trained = sum(p.numel() for p in fusion.parameters() if p.requires_grad)
    assert trained == 12 * DIM**2 + 17 * DIM + DIM * (8 + 1 + 5 + 1)


@pytest.mark.parametrize(("dim", "heads"), [(8, 3), (0, 1), (8, 0)])
def test_heads_share_the_width_out(dim, heads):
    with pytest.raises(
        ConfigError, match=f"dim is a multiple of heads and both .* given {dim} and {heads}"
    ):
        CrossAttention(Frozen(TinyMain()), [Frozen(Words())], dim=dim, heads=heads)
