from __future__ import annotations

import sys
import warnings

import pytest
import torch
from tiny import TinyComplement, TinyMain
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from fusionkit.encoders.base import Features
from fusionkit.encoders.stack import BlockStack
from fusionkit.errors import ConfigError, MissingExtraError
from fusionkit.transfer.lora import Lora

INPUTS = {"x": torch.randn(4, 24, generator=torch.Generator().manual_seed(7))}


def trained(transfer):
    return {name for name, weight in transfer.named_parameters() if weight.requires_grad}


def opened(transfer):
    """With updates that do something."""
    with torch.no_grad():
        for name, weight in transfer.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    return transfer


class Around(TinyComplement):
    """A complement around any net."""

    def __init__(self, net: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.backbone, self.width = net, width

    @property
    def out_dim(self):
        return self.width

    def encode(self, inputs):
        return Features(self.backbone(inputs["x"]).flatten(1))


@pytest.mark.parametrize("encoder", [TinyMain(), TinyComplement(24)])
def test_it_starts_as_the_encoder_itself(encoder):
    expected = encoder.eval().encode(INPUTS).pooled
    assert torch.equal(Lora(encoder)(INPUTS).pooled, expected)


def test_no_base_weight_is_trained_and_updates_are_the_paper_s():
    transfer = opened(Lora(TinyMain(depth=1), rank=2, alpha=6.0))
    assert all("lora_" in name for name in trained(transfer))
    qkv = transfer.encoder.backbone[0].qkv
    a, b = qkv.lora_A.default.weight, qkv.lora_B.default.weight
    assert a.shape == (2, 8)
    assert b.shape == (24, 2)
    x = torch.randn(3, 8)
    expected = F.linear(x, qkv.base_layer.weight + 6 / 2 * b @ a, qkv.base_layer.bias)
    torch.testing.assert_close(qkv(x), expected, rtol=1e-4, atol=1e-5)


def test_dropout_of_updates_acts_in_training_and_that_of_the_encoder_never():
    transfer = opened(Lora(TinyMain(), dropout=0.5)).train()
    assert {name for name, m in transfer.encoder.named_modules() if m.training} == {
        f"backbone.{i}.{part}.lora_dropout{rest}"
        for i in (0, 1)
        for part in ("qkv", "out")
        for rest in ("", ".default")
    }
    assert not torch.equal(transfer(INPUTS).pooled, transfer(INPUTS).pooled)
    transfer.eval()
    assert torch.equal(transfer(INPUTS).pooled, transfer(INPUTS).pooled)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["qkv"], {"0.qkv", "1.qkv"}),
        (["0.qkv", "out"], {"0.qkv", "0.out", "1.out"}),
        (r"\d\.(qkv|out)", {"0.qkv", "1.qkv", "0.out", "1.out"}),
        (None, {"0.qkv", "1.qkv", "0.out", "1.out"}),
    ],
)
def test_targets_are_ends_of_names_or_one_pattern(targets, expected):
    names = trained(Lora(TinyMain(), targets=targets))
    assert {name.removeprefix("encoder.backbone.").split(".lora_")[0] for name in names} == expected


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["qkw"], "'qkw' fits no module that can have updates. Did you mean 'qkv'. Such names end"),
        (["qkv", "norm"], "'norm' fits no module .* end in: out, qkv; a whole one is '1.out'"),
        ("qkv", "'qkv' fits no module"),  # a pattern is for the whole name
        ("(", r"'\(' is no regular expression: missing \)"),
        ([], "targets is empty"),
    ],
)
def test_targets_that_fit_nothing_are_refused(targets, message):
    with pytest.raises(ConfigError, match=message):
        Lora(TinyMain(), targets=targets)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"given .*{next(iter(wrong.values()))}"):
        Lora(TinyMain(), **wrong)


@pytest.mark.parametrize("net", [nn.Identity(), nn.LayerNorm(24)])
@pytest.mark.parametrize("targets", [None, ["query"]])
def test_a_net_without_maps_is_told_what_to_use(net, targets):
    with pytest.raises(ConfigError, match="no linear map in Around .* Use adapter or fine_tune"):
        Lora(Around(net), targets=targets)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"'peft'.*fusionkit\[peft\]"):
        Lora(TinyMain())


class Series(BlockStack):
    """Over torch's own Transformer layer, which reads the weights of its parts if it can."""

    modality = "vector"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)
        )

    out_dim = 8
    layers = property(lambda self: self.backbone)
    embed = TinyMain.embed
    readout = TinyMain.readout
    preprocessor = TinyMain.preprocessor
    dim = 8


def test_weights_that_a_module_reads_are_not_passed_over():
    transfer = Lora(Series(), rank=2)
    bare = transfer(INPUTS).pooled
    bare.square().sum().backward()
    updates = {n: w for n, w in transfer.named_parameters() if w.requires_grad}
    assert len(updates) == 2 * 2 * 4  # in_proj, out_proj, linear1, linear2
    assert all(w.grad.abs().sum() > 0 for n, w in updates.items() if "lora_B" in n)
    adapted = opened(transfer)(INPUTS).pooled
    assert not torch.allclose(adapted, bare)
    with torch.no_grad():  # where torch takes its fast path
        torch.testing.assert_close(transfer(INPUTS).pooled, adapted)


def test_the_attention_of_torch_keeps_its_frozen_weights_to_the_last_bit():
    transfer = opened(Lora(Series(), rank=2)).train()
    frozen = {n: w.clone() for n, w in transfer.named_parameters() if not w.requires_grad}
    for _ in range(3):
        transfer(INPUTS).pooled.sum().backward()
    for name, weight in transfer.named_parameters():
        assert name not in frozen or torch.equal(weight, frozen[name]), name


class Standardized(nn.Conv2d):
    """A convolution that standardises its weight first, as timm's ``StdConv2d``."""

    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return F.conv2d(x, weight, self.bias, padding=1)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 4, 3, padding=1, stride=2),
        Standardized(2, 4, 3),
    ],
)
def test_convolutions_get_the_update_of_their_weight(conv):
    weight = conv.weight.detach().clone()
    net = nn.Sequential(nn.Identity(), conv)
    transfer = opened(Lora(Around(net), rank=2, alpha=3.0))
    state = transfer.state_dict()
    a = next(value for name, value in state.items() if "lora_A" in name)
    b = next(value for name, value in state.items() if "lora_B" in name)
    update = (1.5 * b.flatten(1) @ a.flatten(1)).view_as(weight)
    conv_again = type(conv)(2, 4, 3, padding=conv.padding, stride=conv.stride)
    conv_again.load_state_dict({"weight": weight + update, "bias": conv.bias})
    x = torch.randn(2, 2, 6, 6)
    expected = conv_again(x).flatten(1)
    torch.testing.assert_close(transfer({"x": x}).pooled, expected, rtol=1e-4, atol=1e-5)


def test_grouped_convolutions_are_left_out_unless_named():
    def net():
        return nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1))

    assert {name.split(".")[2] for name in trained(Lora(Around(net())))} == {"1"}
    named = opened(Lora(Around(net()), targets=["0"], rank=2))
    assert {name.split(".")[2] for name in trained(named)} == {"0"}
    assert named({"x": torch.randn(2, 4, 3, 3)}).pooled.shape == (2, 8)


def test_the_turned_weight_of_gpt2_gets_its_update_without_a_warning():
    encoder = TinyMain(depth=1)
    encoder.backbone[0].qkv, encoder.backbone[0].out = Conv1D(24, 8), Conv1D(8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transfer = opened(Lora(encoder, rank=2, alpha=3.0))
    qkv, x = transfer.encoder.backbone[0].qkv, torch.randn(2, 3, 8)
    update = 1.5 * qkv.lora_B.default.weight @ qkv.lora_A.default.weight
    expected = x @ (qkv.base_layer.weight + update.T) + qkv.base_layer.bias
    torch.testing.assert_close(qkv(x), expected, rtol=1e-4, atol=1e-5)


def test_it_builds_on_the_meta_device():
    with torch.device("meta"):
        transfers = [Lora(TinyMain()), Lora(Series()), Lora(Around(nn.Embedding(9, 8)))]
    for transfer in transfers:
        assert trained(transfer)
        assert all(weight.is_meta for weight in transfer.parameters())


def test_updates_follow_the_dtype_of_their_weight():
    assert {w.dtype for w in Lora(TinyMain().double()).parameters()} == {torch.float64}
    assert {w.dtype for w in Lora(Series().double()).parameters()} == {torch.float64}


def test_encode_compiles_with_updates_as_one_graph():
    for encoder in (TinyMain(), Series()):
        transfer = opened(Lora(encoder)).eval()
        torch._dynamo.reset()
        compiled = torch.compile(transfer.encode, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(INPUTS).pooled, transfer(INPUTS).pooled)
    torch._dynamo.reset()
