from __future__ import annotations

import pytest
import torch
from tiny import TinyComplement, TinyMain

from fusionkit.encoders.base import PRESENT, ComplementEncoder, Features
from fusionkit.encoders.bert import Bert
from fusionkit.encoders.timm_swin import TimmSwin
from fusionkit.errors import ConfigError, EncoderError
from fusionkit.fusion.base import role_names
from fusionkit.fusion.conditional_prompt import ConditionalPrompt
from fusionkit.fusion.main_only import MainOnly
from fusionkit.fusion.model import FusionModel, RegressionHead, group_of
from fusionkit.prompts.importance import importance_loss
from fusionkit.transfer.fine_tune import FineTune
from fusionkit.transfer.frozen import Frozen
from fusionkit.transfer.prompt import Prompt


def batch(size: int = 4) -> dict:
    return {
        "main": {"x": torch.randn(size, 24)},
        "complement": {"x": torch.randn(size, 6)},
        "complement_2": {"x": torch.randn(size, 6)},
    }


def fusion(complements: int = 1, **options) -> ConditionalPrompt:
    options = {"experts": 3, "prompt_length": 2, **options}
    return ConditionalPrompt(
        Frozen(TinyMain()), [Frozen(TinyComplement()) for _ in range(complements)], **options
    )


def test_roles_are_named_in_order():
    assert role_names(0) == ("main",)
    assert role_names(3) == ("main", "complement", "complement_2", "complement_3")


def test_the_feature_depends_on_the_complement_of_its_own_row_only():
    model = fusion().eval()
    inputs = batch()
    before = model(inputs).feature
    inputs["complement"]["x"][2] += 1
    changed = (model(inputs).feature != before).any(dim=-1)
    assert changed.tolist() == [False, False, True, False]


class TinySequence(ComplementEncoder):
    """Each number of a row is a token; NaN is padding."""

    modality = "vector"

    def __init__(self, dim: int = 3) -> None:
        super().__init__()
        self.dim = dim
        self.backbone = torch.nn.Linear(1, dim)

    @property
    def out_dim(self) -> int:
        return self.dim

    def preprocessor(self, train: bool):
        raise NotImplementedError

    def encode(self, inputs) -> Features:
        keep = ~inputs["x"].isnan()
        tokens = self.backbone(inputs["x"].nan_to_num().unsqueeze(-1))
        return Features((tokens * keep.unsqueeze(-1)).sum(1), tokens, keep)


def several(**options) -> ConditionalPrompt:
    """Three complements of different widths, the second with tokens."""
    complements = [TinyComplement(), TinySequence(), TinyComplement(dim=7)]
    options = {"experts": 3, "prompt_length": 2, "psi_dim": 4, "mapper_dim": 8, **options}
    return ConditionalPrompt(
        Frozen(TinyMain()), [FineTune(complement) for complement in complements], **options
    )


def batch_of_three() -> dict:
    inputs = {**batch(), "complement_3": {"x": torch.randn(4, 6)}}
    inputs["complement_2"]["x"][1, 4:] = torch.nan
    return inputs


PSI_AND_MAPPER = [
    {},
    {"psi": "sum"},
    {"psi": "attention"},
    {"mapper": "sequence"},
    {"mapper": "sequence", "mapped_length": 3, "psi": "attention"},
    {"mapper": "sequence", "mapped_length": 3, "dynamic": False, "static": False},
]


@pytest.mark.parametrize("options", PSI_AND_MAPPER, ids=str)
def test_each_of_three_complements_changes_its_own_row_only(options):
    model, inputs = several(**options).eval(), batch_of_three()
    assert list(model.encoders) == ["main", "complement", "complement_2", "complement_3"]
    before = model(inputs).feature
    for role in ("complement", "complement_2", "complement_3"):
        changed = {name: {"x": rows["x"].clone()} for name, rows in inputs.items()}
        changed[role]["x"][2] += 1
        rows = (model(changed).feature != before).any(dim=-1)
        assert rows.tolist() == [False, False, True, False], role


@pytest.mark.parametrize("options", PSI_AND_MAPPER, ids=str)
def test_everything_trained_of_three_complements_gets_a_gradient(options):
    model = several(**options).train()
    model(batch_of_three()).feature.square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("mapper", ["pooled", "sequence"])
def test_a_missing_complement_is_the_same_stand_in_alone_and_among_others(mapper):
    complements = [Frozen(TinySequence()), Frozen(TinyComplement())]
    options = {"experts": 3, "psi": "attention", "psi_dim": 4, "mapper": mapper}
    model = ConditionalPrompt(Frozen(TinyMain()), complements, **options)
    model.allow_missing(["complement"])
    model.eval()
    inputs = {role: batch()[role] for role in ("main", "complement_2")}
    present = torch.tensor([True, False, True, True])
    inputs["complement"] = {"x": torch.randn(3, 6), PRESENT: present}
    alone = {role: {"x": inputs[role]["x"][1:2]} for role in ("main", "complement_2")}
    alone["complement"] = {PRESENT: present[1:2]}
    torch.testing.assert_close(model(alone).feature, model(inputs).feature[1:2])


@pytest.mark.parametrize(("psi", "width"), [("concat", 12), ("sum", 4), ("attention", 4)])
def test_routers_and_mapper_are_as_wide_as_psi(psi, width):
    model = several(psi=psi)
    assert model.prompts.router.linear.in_features == width
    assert model.prompts.mapper.shared[0].in_features == width


def test_psi_options_say_nothing_with_one_complement():
    torch.manual_seed(0)
    plain = fusion().eval()
    torch.manual_seed(0)
    other = fusion(psi="attention", psi_dim=3).eval()
    inputs = batch()
    assert torch.equal(plain(inputs).feature, other(inputs).feature)


def test_the_papers_models_have_the_papers_number_of_parameters():
    with torch.device("meta"):
        main = TimmSwin(model="swin_base_patch4_window7_224")
        complement = Prompt(Bert(model="bert-base-uncased"), length=4)
        for experts, trained in ((4, 1_509_219), (16, 2_596_995)):
            fusion = ConditionalPrompt(Frozen(main), [complement], experts=experts)
            model = FusionModel(fusion, 3)
            assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained


def test_the_routing_record_has_scores_of_every_layer():
    output = fusion().eval()(batch())
    assert output.routing.weights.shape == (4, 2, 3)
    torch.testing.assert_close(output.routing.weights.sum(-1), torch.ones(4, 2))
    assert output.routing.layers == (0, 1)


def test_the_importance_loss_is_weighted_and_noise_free():
    model = fusion(importance_weight=0.5).train()
    output = model(batch())
    expected = 0.5 * importance_loss(output.routing.probabilities, 0.05)
    torch.testing.assert_close(output.losses["importance"], expected)
    assert not fusion(importance_weight=0.0)(batch()).losses
    assert not model.eval()(batch()).losses


def test_static_prompts_alone_keep_no_complement():
    model = fusion(dynamic=False, mapped=False)
    assert list(model.encoders) == ["main"]
    assert model({"main": {"x": torch.randn(2, 24)}}).routing is None


def test_everything_trained_gets_a_gradient_and_nothing_else():
    model = FusionModel(
        ConditionalPrompt(Frozen(TinyMain()), [FineTune(TinyComplement())], experts=3), 2
    )
    output = model(batch())
    (output.logits.square().sum() + sum(output.fused.losses.values())).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("fusion.encoders.main"):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = fusion().train()
        model.main.encoder.gradient_checkpointing = checkpointing
        torch.manual_seed(2)
        model(batch()).feature.square().sum().backward()
        gradients.append([p.grad for p in model.prompts.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


def test_a_main_encoder_needs_layers_and_a_mode_that_takes_prompts():
    with pytest.raises(
        ConfigError, match="works in the layers of an encoder, TinyComplement has none"
    ):
        ConditionalPrompt(Frozen(TinyComplement()), [Frozen(TinyComplement())])
    with pytest.raises(
        ConfigError, match=r"main_transfer \(Prompt\) has prompts of its own.*needs another mode"
    ):
        ConditionalPrompt(Prompt(TinyMain()), [Frozen(TinyComplement())])


def test_no_complement_is_an_error_that_says_what_to_do():
    with pytest.raises(ConfigError, match="set dynamic: false and mapped: false"):
        ConditionalPrompt(Frozen(TinyMain()), [])


def test_wrong_prompts_name_both_shapes():
    with pytest.raises(
        EncoderError, match=r"Layer 0 takes prompts of shape \(2, n, 8\), given \(2, 3, 7\)"
    ):
        TinyMain().encode({"x": torch.randn(2, 24)}, lambda layer, state: torch.randn(2, 3, 7))


def test_main_only_reads_no_complement():
    model = MainOnly(FineTune(TinyMain()), [Frozen(TinyComplement())])
    assert list(model.encoders) == ["main"]
    assert model({"main": {"x": torch.randn(2, 24)}}).feature.shape == (2, 8)


def test_groups_follow_roles():
    names = [
        "head.weight",
        "fusion.prompts.experts.8",
        "fusion.encoders.main.encoder.backbone.0.norm.weight",
        "fusion.encoders.complement_2.prompts.rows.8",
    ]
    assert [group_of(name) for name in names] == ["head", "fusion", "main", "complement_2"]


def test_a_regression_head_predicts_in_the_units_of_its_target():
    head = RegressionHead(3)
    head.fit_scale(torch.tensor([10.0, 30.0]))
    raw = torch.nn.functional.linear(torch.ones(1, 3), head.weight, head.bias)
    torch.testing.assert_close(head(torch.ones(1, 3)), raw * 10 + 20)
    head.fit_scale(torch.tensor([7.0, 7.0]))
    assert head.target_std == 1
