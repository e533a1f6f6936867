"""LateConcat, and what holds of every fusion behind the encoders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import TinyComplement, TinyMain
from torch import nn

from fusionkit.encoders.base import PRESENT, Features
from fusionkit.encoders.bert import Bert
from fusionkit.encoders.timm_swin import TimmSwin
from fusionkit.errors import ConfigError
from fusionkit.fusion.cross_attention import CrossAttention
from fusionkit.fusion.ensemble import Ensemble
from fusionkit.fusion.gated import Gated
from fusionkit.fusion.late_concat import LateConcat
from fusionkit.fusion.low_rank_tensor import LowRankTensor
from fusionkit.fusion.model import FusionModel
from fusionkit.transfer.fine_tune import FineTune
from fusionkit.transfer.frozen import Frozen
from fusionkit.transfer.prompt import Prompt

LATE: dict[str, tuple[Any, dict[str, int]]] = {
    "late_concat": (LateConcat, {}),
    "ensemble": (Ensemble, {}),
    "gated": (Gated, {"dim": 6}),
    "low_rank_tensor": (LowRankTensor, {"rank": 2, "dim": 6}),
    "cross_attention": (CrossAttention, {"dim": 6, "heads": 2}),
}
late = pytest.mark.parametrize("name", LATE)


class Words(TinyComplement):
    """Each number of a row is a token; NaN is padding."""

    def __init__(self) -> None:
        super().__init__(dim=5)
        self.backbone = nn.Linear(1, 5)

    def encode(self, inputs):
        keep = ~inputs["x"].isnan()
        tokens = self.backbone(inputs["x"].nan_to_num().unsqueeze(-1))
        return Features((tokens * keep.unsqueeze(-1)).sum(1), tokens, keep)


def build(name: str, mode: Any = FineTune, several: bool = False):
    cls, options = LATE[name]
    complements = [mode(TinyComplement(dim=7)), mode(Words())] if several else [mode(Words())]
    return cls(mode(TinyMain()), complements, **options)


def batch(size: int = 5, several: bool = False) -> dict:
    words = torch.randn(size, 6)
    words[1, 3:] = torch.nan
    inputs = {"main": {"x": torch.randn(size, 24)}, "complement": {"x": words}}
    if several:
        inputs["complement"], inputs["complement_2"] = {"x": torch.randn(size, 6)}, {"x": words}
    return inputs


def double(inputs: dict) -> dict:
    return {
        role: {k: v if k == PRESENT else v.double() for k, v in rows.items()}
        for role, rows in inputs.items()
    }


def test_the_feature_is_the_encoders_own_features_side_by_side():
    main, one, two = TinyMain(), TinyComplement(dim=7), Words()
    fusion = LateConcat(Frozen(main), [Frozen(one), Frozen(two)]).double().eval()
    inputs = double(batch(several=True))
    expected = torch.cat(
        [
            main.encode(inputs["main"]).pooled,
            one.encode(inputs["complement"]).pooled,
            two.encode(inputs["complement_2"]).pooled,
        ],
        dim=1,
    )
    assert torch.equal(fusion(inputs).feature, expected)
    assert fusion.out_dim == expected.shape[1] == 8 + 7 + 5


def test_it_adds_no_parameters():
    fusion = LateConcat(Frozen(TinyMain()), [Frozen(Words())])
    assert not [name for name, p in fusion.named_parameters() if p.requires_grad]


def test_the_papers_systems_train_the_prompts_of_both_encoders_and_the_head():
    with torch.device("meta"):
        main = TimmSwin(model="swin_base_patch4_window7_224")
        complement = Bert(model="bert-base-uncased")
        prompted = LateConcat(Prompt(main, length=6), [Prompt(complement, length=4)])
        model = FusionModel(prompted, 3)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 6 * 12_032 + 12 * 4 * 768 + 3 * (1024 + 768 + 1)


@late
@pytest.mark.parametrize("several", [False, True])
def test_every_encoder_changes_its_own_row_only(name, several):
    fusion, inputs = build(name, Frozen, several).double().eval(), double(batch(5, several))
    before = fusion(inputs).feature
    assert before.shape == (5, fusion.out_dim)
    for role in inputs:
        changed = {r: {"x": rows["x"].clone()} for r, rows in inputs.items()}
        changed[role]["x"][2] += 1
        rows = (fusion(changed).feature != before).any(dim=-1)
        assert rows.tolist() == [False, False, True, False, False], role


@late
@pytest.mark.parametrize("mode", [Frozen, FineTune])
def test_what_is_trained_gets_a_gradient_and_nothing_else(name, mode):
    model = FusionModel(build(name, mode, several=True), 3).train()
    scores = model(batch(several=True)).logits
    (scores * torch.randn_like(scores)).sum().backward()
    count = 0
    for label, parameter in model.named_parameters():
        frozen = mode is Frozen and ".encoders." in label
        assert (parameter.grad is None) == frozen, label
        if not frozen:
            assert torch.isfinite(parameter.grad).all(), label
            count += bool(parameter.grad.any())
    assert count >= 2


@late
def test_a_row_does_not_depend_on_what_its_batch_mates_lack(name):
    fusion = build(name, Frozen)
    fusion.allow_missing(["main", "complement"])
    for stand_in in fusion.stand_ins.values():
        nn.init.normal_(stand_in)
    fusion = fusion.double().eval()
    whole = double(batch())
    main = torch.tensor([True, True, False, False, True])
    seen = torch.tensor([True, True, True, False, False])
    inputs = {
        "main": {**whole["main"], PRESENT: main},
        "complement": {"x": whole["complement"]["x"][seen], PRESENT: seen},
    }
    together = fusion(inputs).feature
    assert torch.isfinite(together).all()
    for row in range(5):
        one = {"main": {k: v[row : row + 1] for k, v in inputs["main"].items()}}
        own = {"x": whole["complement"]["x"][row : row + 1]} if seen[row] else {}
        one["complement"] = {**own, PRESENT: seen[row : row + 1]}
        alone = fusion(one).feature[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-10, atol=1e-10)
    plain = build_alike(fusion, name)(whole).feature
    torch.testing.assert_close(together[:2], plain[:2], rtol=1e-10, atol=1e-10)
    assert not torch.isclose(together[2:], plain[2:]).all(dim=1).any()


def build_alike(fusion, name: str):
    """The same fusion where nothing may be missing."""
    other = build(name, Frozen).double().eval()
    other.load_state_dict({k: v for k, v in fusion.state_dict().items() if "stand_ins" not in k})
    return other


@late
def test_stand_ins_are_trained(name):
    fusion = build(name, Frozen)
    fusion.allow_missing(["main", "complement"])
    inputs, present = batch(), torch.tensor([True, False, True, True, True])
    inputs["main"][PRESENT] = present
    inputs["complement"] = {"x": inputs["complement"]["x"][present], PRESENT: present}
    feature = fusion.train()(inputs).feature
    (feature * torch.randn_like(feature)).sum().backward()
    assert all(stand_in.grad.any() for stand_in in fusion.stand_ins.values())


@late
def test_it_builds_on_the_meta_device_under_prompts(name):
    cls, options = LATE[name]
    with torch.device("meta"):
        main = Prompt(TinyMain(), length=2)
        model = FusionModel(cls(main, [Prompt(TinyMain(), length=2)], **options), 2)
    assert all(parameter.is_meta for parameter in model.parameters())


@late
def test_under_autocast_the_feature_is_close(name):
    fusion, inputs = build(name, Frozen).eval(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feature = fusion(inputs).feature.float()
    torch.testing.assert_close(feature, fusion(inputs).feature, rtol=0.1, atol=0.1)


@late
def test_a_complement_is_needed(name):
    cls, _ = LATE[name]
    with pytest.raises(
        ConfigError, match=f"^{name} fuses the main encoder with a complement; give `complement`"
    ):
        cls(Frozen(TinyMain()), [])
