"""What takes the place of a missing field, by hand and against the same rows run alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny import TinyComplement, TinyMain
from torch import Tensor, nn

from fusionkit.encoders.base import PRESENT, Features, Inputs, TokenState
from fusionkit.encoders.bert import Bert
from fusionkit.encoders.timm_swin import TimmSwin
from fusionkit.fusion.base import Fusion
from fusionkit.fusion.conditional_prompt import ConditionalPrompt
from fusionkit.fusion.main_only import MainOnly
from fusionkit.fusion.model import FusionModel
from fusionkit.fusion.stand_in import ReplaceTokens, fill_in, make_stand_in, take_presence
from fusionkit.training.parameters import count_parameters
from fusionkit.transfer.fine_tune import FineTune
from fusionkit.transfer.frozen import Frozen

STAND_IN = torch.tensor([7.0, 8.0])


def flags(*present: int) -> Tensor:
    return torch.tensor(present, dtype=torch.bool)


def test_present_rows_keep_their_order_and_others_get_the_stand_in():
    seen = Features(torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    filled = fill_in(seen, flags(0, 1, 0, 1, 0), STAND_IN)
    assert filled.pooled.tolist() == [[7, 8], [1, 1], [7, 8], [2, 2], [7, 8]]
    assert (filled.tokens, filled.keep) == (None, None)


@pytest.mark.parametrize("masked", [True, False])
def test_the_stand_in_is_the_only_real_token_of_its_row(masked):
    tokens = torch.tensor([[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]])
    keep = torch.tensor([[True, True, False]]) if masked else None
    filled = fill_in(Features(torch.zeros(1, 2), tokens, keep), flags(0, 1), STAND_IN)
    assert filled.tokens.tolist() == [[[7, 8], [0, 0], [0, 0]], [[1, 1], [2, 2], [3, 3]]]
    assert filled.keep.tolist() == [[True, False, False], [True, True, not masked]]


def test_where_nobody_has_the_field_all_rows_are_stand_ins():
    filled = fill_in(None, flags(0, 0), STAND_IN)
    assert filled.pooled.tolist() == [[7, 8], [7, 8]]
    assert filled.tokens.tolist() == [[[7, 8]], [[7, 8]]]
    assert filled.keep is None


@pytest.mark.parametrize("shape", [(2, 3, 2), (2, 2, 2, 2)])
def test_one_token_replaces_all_of_a_row_before_the_first_layer_only(shape):
    keep = torch.ones(2, 3, dtype=torch.bool)
    state = TokenState(torch.ones(shape), keep, cache="kept")
    edit = ReplaceTokens(flags(1, 0), STAND_IN)
    edited = edit(0, state)
    assert edited.tokens[0].eq(1).all()
    assert edited.tokens[1].eq(STAND_IN).all()
    assert edited.tokens.shape == shape
    assert (edited.keep, edited.cache) == (keep, "kept")
    assert edit(1, state) is state
    assert edit(2, state) is state


def test_the_tokens_keep_their_dtype():
    state = TokenState(torch.ones(2, 3, 2, dtype=torch.bfloat16))
    assert ReplaceTokens(flags(1, 0), STAND_IN)(0, state).tokens.dtype == torch.bfloat16
    seen = Features(torch.ones(1, 2, dtype=torch.bfloat16))
    assert fill_in(seen, flags(1, 0), STAND_IN).pooled.dtype == torch.bfloat16


def test_a_stand_in_starts_small():
    made = make_stand_in(10_000)
    assert made.std().item() == pytest.approx(0.02, rel=0.1)
    assert make_stand_in(3).shape == (3,)
    with torch.device("meta"):
        assert make_stand_in(3).is_meta


def test_presence_is_taken_out_of_the_inputs():
    present = flags(1, 0)
    assert take_presence({"x": STAND_IN}) == ({"x": STAND_IN}, None)
    rows, found = take_presence({"x": STAND_IN, PRESENT: present})
    assert (list(rows), found) == (["x"], present)


class Sequences(TinyComplement):
    """Tokens of unequal length, as texts have them."""

    def encode(self, inputs: Inputs) -> Features:
        x = inputs["x"].unsqueeze(1) * inputs["keep"].unsqueeze(-1)
        pooled = x.sum(dim=1) / inputs["keep"].sum(dim=1, keepdim=True)
        return Features(self.backbone[0](pooled), self.backbone[0](x), inputs["keep"])


class Seen(Fusion):
    """Everything that a fusion may use of two complements and a main encoder."""

    @property
    def out_dim(self) -> int:
        return self.main.out_dim

    def forward(self, inputs):
        raise NotImplementedError


def fusion(cls=ConditionalPrompt, roles: Sequence[str] = ("main", "complement"), **options):
    made = cls(Frozen(TinyMain()), [Frozen(TinyComplement())], **options)
    made.allow_missing(roles)
    for stand_in in made.stand_ins.values():
        nn.init.normal_(stand_in)  # large, so that an error shows
    return made.eval().double()


def batch(size: int, main: Tensor | None = None, complement: Tensor | None = None) -> dict:
    """Inputs as the loader makes them: the complement's rows are those that are present."""
    torch.manual_seed(size)
    a, b = torch.randn(size, 24).double(), torch.randn(size, 6).double()
    inputs = {"main": {"x": a}, "complement": {"x": b}}
    if main is not None:
        inputs["main"][PRESENT] = main
    if complement is not None:
        inputs["complement"] = {"x": b[complement]} if complement.any() else {}
        inputs["complement"][PRESENT] = complement
    return inputs


def alone(inputs: dict, row: int) -> dict:
    """One row of a batch as a batch."""
    one = {}
    for role, tensors in inputs.items():
        present = tensors.get(PRESENT)
        if role == "main" or present is None:
            one[role] = {name: tensor[row : row + 1] for name, tensor in tensors.items()}
            continue
        place = int(present[:row].sum())
        rows = {n: t[place : place + 1] for n, t in tensors.items() if n != PRESENT}
        one[role] = {**(rows if present[row] else {}), PRESENT: present[row : row + 1]}
    return one


MISSING = [
    {"complement": flags(1, 0, 1, 0, 0)},
    {"main": flags(0, 1, 1, 0, 1)},
    {"main": flags(1, 1, 0, 0, 1), "complement": flags(0, 1, 1, 0, 1)},
    {"main": flags(0, 0, 0, 0, 0), "complement": flags(0, 0, 0, 0, 0)},
    {"main": flags(1, 1, 1, 1, 1), "complement": flags(1, 1, 1, 1, 1)},
]


@pytest.mark.parametrize("router", ["complement", "multimodal"])
@pytest.mark.parametrize("missing", MISSING)
def test_a_row_does_not_depend_on_what_its_batch_mates_lack(missing, router):
    made = fusion(experts=2, router=router)
    inputs = batch(5, **missing)
    together = made(inputs).feature
    for row in range(5):
        torch.testing.assert_close(made(alone(inputs, row)).feature[0], together[row])


def test_a_row_that_has_everything_is_as_if_nothing_were_allowed():
    made = fusion(experts=2)
    inputs = batch(3, flags(1, 0, 1), flags(0, 1, 1))
    plain = batch(3)
    torch.testing.assert_close(made(inputs).feature[2], made(plain).feature[2])
    assert not torch.allclose(made(inputs).feature[:2], made(plain).feature[:2])


def test_what_is_missing_has_no_influence():
    made = fusion(experts=2)
    inputs = batch(3, flags(0, 1, 1))
    before = made(inputs).feature
    inputs["main"]["x"][0] += 1
    assert torch.equal(made(inputs).feature, before)
    inputs["main"]["x"][1] += 1
    assert not torch.equal(made(inputs).feature[1], before[1])


def test_prompts_speak_for_a_main_field_that_is_missing():
    made = fusion(experts=2)
    inputs = batch(3, flags(0, 0, 0))
    first, second, _ = made(inputs).feature
    assert not torch.allclose(first, second)
    inputs["complement"]["x"][1] = inputs["complement"]["x"][0]
    first, second, _ = made(inputs).feature
    torch.testing.assert_close(first, second)


def test_texts_and_windows_take_stand_ins():
    bert = Bert("fusionkit/claims-transformer")
    swin = TimmSwin(
        "swin_tiny_patch4_window7_224",
        weights="random",
        image_size=32,
        options={"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4},
    )
    values = {bert: ["the digit is even", "", "it is odd"], swin: [torch.rand(40, 40, 3)] * 3}
    for encoder, raw in values.items():
        torch.manual_seed(1)
        made = MainOnly(Frozen(encoder), [])
        made.allow_missing(["main"])
        made.eval()
        read = encoder.preprocessor(train=False)
        inputs = read.collate([read(value) for value in raw])
        feature = made({"main": {**inputs, PRESENT: flags(1, 0, 1)}}).feature
        one = {"main": {**read.collate([read(raw[1])]), PRESENT: flags(0)}}
        torch.testing.assert_close(made(one).feature[0], feature[1])
        plain = made({"main": inputs}).feature
        torch.testing.assert_close(plain[[0, 2]], feature[[0, 2]])
        assert not torch.allclose(plain[1], feature[1], atol=1e-4)


def test_encoders_see_only_rows_that_are_present():
    made = Seen(Frozen(TinyMain()), [FineTune(TinyComplement())])
    made.allow_missing(["complement"])
    norm = made.complements["complement"].encoder.backbone[1]
    inputs = batch(6, complement=flags(1, 0, 0, 1, 1, 0))
    inputs = {
        role: {k: v.float() if k == "x" else v for k, v in t.items()} for role, t in inputs.items()
    }
    made.see(inputs)
    seen = made.complements["complement"].encoder.backbone[0](inputs["complement"]["x"])
    assert len(seen) == 3
    torch.testing.assert_close(norm.running_mean, 0.1 * seen.mean(dim=0))


def test_tokens_of_a_sequence_are_filled_in_as_well():
    made = Seen(Frozen(TinyMain()), [Frozen(Sequences())])
    made.allow_missing(["complement"])
    keep = torch.tensor([[True, True, False], [True, True, True]])
    inputs = {"complement": {"x": torch.randn(2, 6), "keep": keep, PRESENT: flags(1, 0, 1)}}
    (features,) = made.see(inputs).values()
    assert features.keep.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    torch.testing.assert_close(features.tokens[1, 0], made.stand_ins["complement"].data)
    torch.testing.assert_close(features.pooled[1], made.stand_ins["complement"].data)


def test_where_nobody_has_the_field_the_encoder_rests_but_has_gradients():
    """Processes that train together have to agree on which gradients there are."""
    made = Seen(Frozen(TinyMain()), [FineTune(TinyComplement())])
    made.allow_missing(["complement"])
    encoder = made.complements["complement"].encoder
    encoder.encode = None  # nobody may call it
    (features,) = made.see({"complement": {PRESENT: flags(0, 0)}}).values()
    features.pooled.sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in encoder.parameters())
    assert made.stand_ins["complement"].grad.tolist() == [2.0] * 5


def test_batch_norms_rest_where_a_single_row_has_the_field():
    made = Seen(Frozen(TinyMain()), [FineTune(TinyComplement())]).train()
    made.allow_missing(["complement"])
    norm = made.complements["complement"].encoder.backbone[1]
    before = norm.running_mean.clone()
    made.see({"complement": {"x": torch.randn(1, 6), PRESENT: flags(0, 1)}})
    assert torch.equal(norm.running_mean, before)
    assert norm.training
    made.see({"complement": {"x": torch.randn(2, 6), PRESENT: flags(1, 1)}})
    assert not torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("present", [(0, 1), (1, 1), (0, 0)])
def test_stand_ins_always_have_a_gradient(present):
    made = fusion(experts=2)
    made(batch(2, flags(*present), flags(*present))).feature.square().sum().backward()
    for role in ("main", "complement"):
        gradient = made.stand_ins[role].grad
        assert bool(gradient.any()) == (0 in present), role


def test_a_main_encoder_without_prompts_trains_its_stand_in():
    made = fusion(MainOnly, ["main"])
    made(batch(2, flags(0, 1))).feature.square().sum().backward()
    assert made.stand_ins["main"].grad.any()


def test_under_autocast_stand_ins_leave_the_dtype_alone():
    made = ConditionalPrompt(Frozen(TinyMain()), [Frozen(TinyComplement())], experts=2).eval()
    made.allow_missing(["main", "complement"])
    whole = batch(2, flags(0, 1), flags(1, 0))
    some = {r: {k: v.float() if k == "x" else v for k, v in t.items()} for r, t in whole.items()}
    plain = {r: {k: v.float() for k, v in t.items()} for r, t in batch(2).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made(some).feature.dtype == made(plain).feature.dtype


def test_roles_that_are_not_in_use_get_none():
    made = MainOnly(Frozen(TinyMain()), [Frozen(TinyComplement())])
    made.allow_missing(["complement", "complement_2"])
    assert not made.stand_ins
    assert not any("stand_ins" in name for name in made.state_dict())
    static = ConditionalPrompt(
        Frozen(TinyMain()), [Frozen(TinyComplement())], dynamic=False, mapped=False
    )
    static.allow_missing(["complement"])
    assert not static.stand_ins


def test_they_belong_to_the_fusion_and_are_counted_as_stand_ins():
    model = FusionModel(fusion(experts=2), 2)
    groups = {name: group for group, name, _ in model.named_groups()}
    assert groups["fusion.stand_ins.main"] == groups["fusion.stand_ins.complement"] == "fusion"
    (part,) = [count for count in count_parameters(model) if count.part == "stand-ins"]
    assert (part.trained, part.total) == (8 + 5, 8 + 5)
