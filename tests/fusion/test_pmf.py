"""PMF against the authors' way by hand: upstream's own blocks on concatenated rows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import TinyComplement, TinyMain
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

import fusionkit
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.encoders.base import PRESENT, MainEncoder
from fusionkit.encoders.bert import Bert
from fusionkit.encoders.gpt2 import CausalLM
from fusionkit.encoders.timm_swin import TimmSwin
from fusionkit.encoders.timm_vit import TimmViT
from fusionkit.errors import ConfigError
from fusionkit.fusion.main_only import MainOnly
from fusionkit.fusion.model import FusionModel
from fusionkit.fusion.pmf import PMF
from fusionkit.training.check import check
from fusionkit.training.run import fit
from fusionkit.transfer.adapter import Adapter
from fusionkit.transfer.bias_only import BiasOnly
from fusionkit.transfer.fine_tune import FineTune
from fusionkit.transfer.frozen import Frozen
from fusionkit.transfer.lora import Lora
from fusionkit.transfer.norm_only import NormOnly
from fusionkit.transfer.prompt import Prompt

VIT = "vit_tiny_patch16_224"
VIT_SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
    "max_position_embeddings": 24,
}
GPT2_SIZES = {
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 4,
    "n_head": 2,
    "vocab_size": 50,
    "n_positions": 24,
}
LENGTHS = torch.tensor([9, 5, 2])  # of the texts
PAIRS = [("vit", "bert"), ("bert", "vit"), ("gpt2", "vit"), ("bert", "bert")]


def encoder(kind: str) -> MainEncoder:
    torch.manual_seed(len(kind))
    if kind == "vit":
        made: MainEncoder = TimmViT(VIT, weights="random", options=VIT_SIZES)
    elif kind == "bert":
        made = Bert(config=dict(BERT), weights="random")
    else:
        made = CausalLM(config=dict(GPT2_SIZES), weights="random")
    with torch.no_grad():
        for weight in made.parameters():  # upstream's zero biases would hide mistakes
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return made.double()


def inputs_of(kind: str) -> dict[str, Tensor]:
    if kind == "vit":
        return {"pixels": torch.randn(3, 3, 32, 32).double()}
    keep = torch.arange(9) < LENGTHS.unsqueeze(1)
    ids = torch.randint(3, 50, keep.shape).masked_fill(~keep, 0)
    return {"input_ids": ids, "attention_mask": keep}


def batch(main: str, complement: str) -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(1)
    return {"main": inputs_of(main), "complement": inputs_of(complement)}


def make(main: str = "vit", complement: str = "bert", mode=Frozen, other=Frozen, **options) -> PMF:
    torch.manual_seed(2)
    made = PMF(mode(encoder(main)), [other(encoder(complement))], **options).double()
    for name, weight in made.named_parameters():
        if name.startswith("to_"):  # prompts near zero would hide mistakes
            nn.init.normal_(weight, std=0.3)
    return made.eval()


class PlainViT:
    """timm's own model."""

    def __init__(self, backbone: nn.Module) -> None:
        self.net = timm.create_model(VIT, num_classes=0, **VIT_SIZES).double().eval()
        self.net.load_state_dict(backbone.state_dict())
        self.depth = len(self.net.blocks)

    def embed(self, inputs: dict[str, Tensor]) -> Tensor:
        self.net.requires_grad_(False)
        return self.net.norm_pre(self.net._pos_embed(self.net.patch_embed(inputs["pixels"])))

    def run(self, layer: int, tokens: Tensor, context: Tensor, rows: Tensor) -> Tensor:
        return self.net.blocks[layer](torch.cat([tokens, context, rows], dim=1))

    query = run

    def pool(self, tokens: Tensor) -> Tensor:
        return self.net.norm(tokens)[:, 0]


class PlainText:
    """The model of transformers, in its own attention."""

    causal = False

    def __init__(self, backbone: Any) -> None:
        config = type(backbone.config).from_dict(backbone.config.to_dict())
        pooler = {} if config.model_type == "gpt2" else {"add_pooling_layer": False}
        self.net = AutoModel.from_config(config, attn_implementation="eager", **pooler)
        self.net.double().eval().requires_grad_(False)
        self.net.load_state_dict(backbone.state_dict())
        self.layers = self.net.h if config.model_type == "gpt2" else self.net.encoder.layer
        self.depth = len(self.layers)

    def embed(self, inputs: dict[str, Tensor]) -> Tensor:
        self.keep = inputs["attention_mask"]
        return self.net.embeddings(input_ids=inputs["input_ids"])

    def run(self, layer: int, tokens: Tensor, context: Tensor, rows: Tensor) -> Tensor:
        rows = torch.cat([tokens, context, rows], dim=1)
        keep = nn.functional.pad(self.keep, (0, rows.shape[1] - tokens.shape[1]), value=True)
        visible = keep[:, None, None].expand(-1, -1, rows.shape[1], -1)
        return self._block(layer, rows, visible)

    query = run

    def _block(self, layer: int, rows: Tensor, visible: Tensor) -> Tensor:
        mask = torch.zeros(visible.shape, dtype=rows.dtype).masked_fill(~visible, -1e30)
        out = self.layers[layer](rows, attention_mask=mask)
        return out[0] if isinstance(out, tuple) else out

    def pool(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


class PlainCausal(PlainText):
    """GPT-2: what comes before a row is what it sees, so prompts of tokens stand before them."""

    def embed(self, inputs: dict[str, Tensor]) -> Tensor:
        self.keep = inputs["attention_mask"]
        return self.net.wte(inputs["input_ids"]) + self.net.wpe.weight[: self.keep.shape[1]]

    def _causal(self, layer: int, rows: Tensor, keep: Tensor) -> Tensor:
        past = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool).tril()
        return self._block(layer, rows, keep[:, None, None] & past)

    def query(self, layer: int, tokens: Tensor, context: Tensor, rows: Tensor) -> Tensor:
        rows = torch.cat([tokens, context, rows], dim=1)
        more = rows.shape[1] - tokens.shape[1]
        return self._causal(layer, rows, nn.functional.pad(self.keep, (0, more), value=True))

    def run(self, layer: int, tokens: Tensor, context: Tensor, rows: Tensor) -> Tensor:
        front = torch.cat([context, rows], dim=1)
        keep = nn.functional.pad(self.keep, (front.shape[1], 0), value=True)
        out = self._causal(layer, torch.cat([front, tokens], dim=1), keep)
        return out[:, front.shape[1] :]

    def pool(self, tokens: Tensor) -> Tensor:
        return self.net.ln_f(tokens)[torch.arange(len(tokens)), self.keep.sum(1) - 1]


PLAIN = {"vit": PlainViT, "bert": PlainText, "gpt2": PlainCausal}


def by_hand(fusion: PMF, kinds: tuple[str, str], inputs: dict) -> Tensor:
    """Both stages of every fusion layer on concatenated rows, all outputs but the wanted dropped.

    For GPT-2, which the authors do not have, prompts of the fusion stage stand before the tokens.
    """
    roles = ("main", "complement")
    plain = {
        role: PLAIN[kind](fusion.encoders[role].encoder.backbone)
        for role, kind in zip(roles, kinds, strict=True)
    }
    tokens = {role: net.embed(inputs[role]) for role, net in plain.items()}
    exchanged = len(fusion.to_main)
    none = {role: rows[:, :0] for role, rows in tokens.items()}
    for role, net in plain.items():
        for layer in range(net.depth - exchanged):
            tokens[role] = net.run(layer, tokens[role], none[role], none[role])
    for slot in range(exchanged):
        layers = {role: net.depth - exchanged + slot for role, net in plain.items()}
        ways = {"main": fusion.to_main[slot], "complement": fusion.to_complement[slot]}
        mapped = {}
        for to, of in (roles, roles[::-1]):
            way = ways[to]
            query = way.query.expand(3, -1, -1)
            context = way.query_context.expand(3, -1, -1)
            out = plain[of].query(layers[of], tokens[of], context, query)[:, -query.shape[1] :]
            first, _, second = way.map
            hidden = (out @ first.weight.T + first.bias).clamp(min=0)
            mapped[to] = hidden @ second.weight.T + second.bias
        for role, net in plain.items():
            context = ways[role].fusion_context.expand(3, -1, -1)
            out = net.run(layers[role], tokens[role], context, mapped[role])
            tokens[role] = out[:, : tokens[role].shape[1]]
    return torch.cat([net.pool(tokens[role]) for role, net in plain.items()], dim=-1)


@pytest.mark.parametrize("fusion_layers", [1, 2, 3])
@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_equals_the_authors_way_by_hand(kinds, fusion_layers):
    fusion, inputs = make(*kinds, fusion_layers=fusion_layers, prompt_length=3), batch(*kinds)
    feature = fusion(inputs).feature
    expected = by_hand(fusion, kinds, inputs)
    torch.testing.assert_close(feature, expected, rtol=0, atol=1e-10)
    trained = {name: p for name, p in fusion.named_parameters() if p.requires_grad}
    assert len(trained) == fusion_layers * 2 * (3 + 4)
    direction = torch.randn_like(feature)
    found = torch.autograd.grad((feature * direction).sum(), list(trained.values()))
    wanted = torch.autograd.grad((expected * direction).sum(), list(trained.values()))
    for name, one, other in zip(trained, found, wanted, strict=True):
        assert one.any(), name
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10, msg=name)


def test_each_encoder_changes_what_the_other_says():
    fusion, inputs = make(), batch("vit", "bert")
    feature = fusion(inputs).feature
    alone = MainOnly(fusion.main, [])(inputs).feature
    assert not torch.allclose(feature[:, :32], alone, atol=1e-3)
    for role, others in (("complement", slice(0, 32)), ("main", slice(32, 48))):
        changed = copy.deepcopy(inputs)
        name = "pixels" if role == "main" else "input_ids"
        changed[role][name] = changed[role][name].flip(0).roll(1, -1)
        assert not torch.allclose(fusion(changed).feature[:, others], feature[:, others], atol=1e-4)


def count(run) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_queries_cost_less_than_running_the_layers_twice():
    kinds = ("vit", "bert")
    fusion, inputs = make(fusion_layers=3), batch(*kinds)
    ours, twice = count(lambda: fusion(inputs)), count(lambda: by_hand(fusion, kinds, inputs))
    encoders = count(
        lambda: [part.encoder.encode(inputs[role]) for role, part in fusion.encoders.items()]
    )
    assert 0 < encoders < ours < 0.7 * twice


@pytest.mark.parametrize("kinds", PAIRS[:2], ids="-".join)
def test_below_the_fusion_layers_nothing_needs_a_gradient(kinds):
    fusion, seen = make(*kinds), {}
    for role, part in fusion.encoders.items():

        def watch(layer, state, prompts, role=role, run=part.encoder.run_layer):
            if state.tokens.shape[1] > 4:  # a query's state holds its own rows
                seen.setdefault(role, {})[layer] = state.tokens.requires_grad
            return run(layer, state, prompts)

        part.encoder.run_layer = watch
    fusion(batch(*kinds)).feature.sum().backward()
    depths = {"vit": 3, "bert": 4}
    for role, kind in zip(("main", "complement"), kinds, strict=True):
        below = [False] * (depths[kind] - 2)
        assert seen[role] == dict(enumerate([*below, False, True])), role
        assert all(weight.grad is None for weight in fusion.encoders[role].parameters())


@pytest.mark.parametrize("mode", [Frozen, FineTune, Lora, BiasOnly, NormOnly])
@pytest.mark.parametrize("role", ["main", "complement"])
def test_what_is_trained_gets_a_gradient_under_every_plain_mode(mode, role):
    fusion = make("vit", "bert", **{"mode" if role == "main" else "other": mode}).train()
    fusion(batch("vit", "bert")).feature.square().sum().backward()
    trained = {name: p.requires_grad for name, p in fusion.named_parameters()}
    assert any(f"encoders.{role}." in n for n in trained if trained[n]) == (mode is not Frozen)
    for name, parameter in fusion.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_a_row_does_not_depend_on_its_batch_mates(kinds):
    fusion, inputs = make(*kinds), batch(*kinds)
    together = fusion(inputs).feature
    for row, length in enumerate(LENGTHS.tolist()):
        alone = {
            role: {
                name: tensor[row : row + 1] if name == "pixels" else tensor[row : row + 1, :length]
                for name, tensor in rows.items()
            }
            for role, rows in inputs.items()
        }
        found = fusion(alone).feature[0]
        torch.testing.assert_close(found, together[row], rtol=0, atol=1e-10)


@pytest.mark.parametrize("other", [Frozen, FineTune])
@pytest.mark.parametrize("roles", [["main"], ["complement"], ["main", "complement"]])
def test_gradient_checkpointing_changes_nothing(roles, other):
    plain = make(other=other)
    recomputed = copy.deepcopy(plain)
    for role in roles:
        recomputed.encoders[role].encoder.gradient_checkpointing = True
    inputs = batch("vit", "bert")
    for fusion in (plain, recomputed):
        fusion(inputs).feature.square().sum().backward()
    for (name, one), other_one in zip(
        plain.named_parameters(), recomputed.parameters(), strict=True
    ):
        assert (one.grad is None) == (not one.requires_grad), name
        torch.testing.assert_close(one.grad, other_one.grad, rtol=0, atol=0, msg=name)


def test_nothing_is_kept_between_batches():
    fusion, first = make(), batch("vit", "bert")
    before = {key: id(value) for key, value in vars(fusion).items()}
    second = {role: {n: t.flip(0) for n, t in rows.items()} for role, rows in first.items()}
    features = [fusion(inputs).feature for inputs in (first, second, first)]
    assert {key: id(value) for key, value in vars(fusion).items()} == before
    assert torch.equal(features[0], features[2])
    torch.testing.assert_close(features[0], features[1].flip(0))


def test_under_autocast_tokens_keep_their_dtype():
    fusion = make().float()
    inputs = batch("vit", "bert")
    inputs["main"]["pixels"] = inputs["main"]["pixels"].float()
    seen = []
    for role, part in fusion.encoders.items():

        def watch(layer, state, prompts, role=role, run=part.encoder.run_layer):
            out = run(layer, state, prompts)
            seen.append((role, layer, out.tokens.dtype))
            return out

        part.encoder.run_layer = watch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fusion(inputs).feature.isfinite().all()
        prompted, _ = sorted(set(seen), key=str), seen.clear()
        for role, part in fusion.encoders.items():
            part.encoder.encode(inputs[role])
    assert prompted == sorted(set(seen), key=str)


def test_the_papers_models_have_the_papers_number_of_parameters():
    sizes = {
        ("vit_base_patch16_224", "bert-base-uncased"): (590_976, 36_864, 768, "2.56"),
        ("vit_large_patch16_224", "bert-large-uncased"): (1_050_112, 49_152, 1_024, "4.46"),
    }
    for (vit, bert), (one_map, prompts, width, millions) in sizes.items():
        with torch.device("meta"):
            fusion = PMF(Frozen(TimmViT(vit)), [Frozen(Bert(bert))])
            model = FusionModel(fusion, 101)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trained == 2 * 2 * one_map + prompts + (2 * width + 1) * 101
        assert f"{trained / 1e6:.2f}" == millions
    assert 4 * 590_976 + 36_864 == 2_400_768


def test_prompts_start_small_and_each_layer_and_direction_has_its_own():
    fusion = PMF(Frozen(encoder("vit")), [Frozen(encoder("bert"))], prompt_length=200)
    prompts = {n: p for n, p in fusion.named_parameters() if n.startswith("to_") and "map" not in n}
    assert len(prompts) == 2 * 2 * 3
    for name, rows in prompts.items():
        assert rows.std().item() == pytest.approx(0.02, rel=0.1), name
    assert len({rows.flatten()[0].item() for rows in prompts.values()}) == 12


def test_maps_are_half_as_wide_as_the_wider_encoder_or_as_stated():
    assert make().to_main[0].map[0].out_features == 16
    assert make().to_complement[1].map[0].out_features == 16
    assert make(hidden_dim=5).to_main[0].map[0].out_features == 5


def test_the_feature_has_both_encoders_and_there_is_no_routing():
    fusion = make()
    output = fusion(batch("vit", "bert"))
    assert output.feature.shape == (3, fusion.out_dim) == (3, 48)
    assert output.routing is None
    assert not output.losses


def test_encoders_that_cannot_be_asked_are_refused():
    vit, bert = encoder("vit"), encoder("bert")
    with pytest.raises(ConfigError, match="pmf works in the layers of an encoder, TinyComplement"):
        PMF(Frozen(vit), [Frozen(TinyComplement())])
    swin = TimmSwin(
        "swin_tiny_patch4_window7_224",
        weights="random",
        image_size=32,
        options={"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4},
    )
    rotary = CausalLM(
        config={
            "model_type": "llama",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 24,
            "vocab_size": 50,
        },
        weights="random",
    )
    windows = r"of the main encoder in its layers; this TimmSwin does not .*its tokens form window"
    with pytest.raises(ConfigError, match=windows):
        PMF(Frozen(swin), [Frozen(bert)])
    with pytest.raises(
        ConfigError, match="tokens of the complement encoder .* this CausalLM does not"
    ):
        PMF(Frozen(vit), [Frozen(rotary)])


@pytest.mark.parametrize("mode", [Prompt, Adapter])
def test_modes_with_something_beside_the_layers_are_refused_in_either_role(mode):
    for role in ("main", "complement"):
        reason = (
            rf"runs the layers of the {role} encoder with prompts of its own, and would pass by "
            rf"what {role}_transfer \({mode.__name__}\) has beside them .*such as frozen, lora"
        )
        with pytest.raises(ConfigError, match=reason):
            make(**{"mode" if role == "main" else "other": mode})


def test_it_takes_exactly_one_complement_and_numbers_in_range():
    vit, bert = Frozen(encoder("vit")), Frozen(encoder("bert"))
    with pytest.raises(ConfigError, match="pmf fuses the main encoder with a complement; give `co"):
        PMF(vit, [])
    with pytest.raises(ConfigError, match="pmf is defined for one complement, given 2"):
        PMF(vit, [bert, bert])
    for layers in (0, 4):
        shallower = f"from 1 to 3, the layers of the shallower encoder, given {layers}"
        with pytest.raises(ConfigError, match=shallower):
            PMF(vit, [bert], fusion_layers=layers)
    for options in ({"prompt_length": 0}, {"hidden_dim": 0}):
        with pytest.raises(ConfigError, match="prompt_length and hidden_dim are at least 1, given"):
            PMF(vit, [bert], **options)


def lacking(inputs: dict, main: list[int], complement: list[int]) -> dict:
    flags = {"main": main, "complement": complement}
    return {
        role: {**rows, PRESENT: torch.tensor(flags[role], dtype=torch.bool)}
        for role, rows in inputs.items()
    }


def lenient() -> PMF:
    fusion = make()
    fusion.allow_missing(["main", "complement"])
    for stand_in in fusion.double().stand_ins.values():
        nn.init.normal_(stand_in)  # large, so that an error shows
    return fusion


def test_stand_ins_are_tokens_of_both_encoders():
    widths = {role: len(stand_in) for role, stand_in in lenient().stand_ins.items()}
    assert widths == {"main": 32, "complement": 16}


@pytest.mark.parametrize("present", [([1, 0, 1], [1, 1, 0]), ([0, 0, 1], [0, 0, 0])])
def test_what_is_missing_has_no_influence(present):
    fusion, inputs = lenient(), batch("vit", "bert")
    plain, before = fusion(inputs).feature, fusion(lacking(inputs, *present)).feature
    other = batch("vit", "bert")
    other["main"]["pixels"] += 1
    other["complement"]["input_ids"] = (other["complement"]["input_ids"] + 7) % 50
    after = fusion(lacking(other, *present)).feature
    for row, (main, complement) in enumerate(zip(*present, strict=True)):
        assert torch.equal(before[row], plain[row]) == bool(main and complement)
        assert torch.equal(before[row], after[row]) == (not main and not complement)
        alone = {
            role: {name: tensor[row : row + 1] for name, tensor in rows.items()}
            for role, rows in lacking(inputs, *present).items()
        }
        torch.testing.assert_close(fusion(alone).feature[0], before[row], rtol=0, atol=1e-10)


@pytest.mark.parametrize("role", ["main", "complement"])
def test_the_other_encoder_speaks_for_a_missing_field(role):
    fusion, inputs = lenient(), batch("vit", "bert")
    texts = {"input_ids": torch.randint(3, 50, (3, 9)), "attention_mask": torch.ones(3, 9).bool()}
    inputs = {"main": {"pixels": inputs["main"]["pixels"][[0, 1, 1]]}, "complement": texts}
    texts["input_ids"][2] = texts["input_ids"][1]
    present = {"main": [1, 1, 1], "complement": [1, 1, 1], role: [0, 0, 0]}
    half = slice(0, 32) if role == "main" else slice(32, 48)
    feature = fusion(lacking(inputs, **present)).feature[:, half]
    assert not torch.allclose(feature[0], feature[1], atol=1e-4)
    torch.testing.assert_close(feature[1], feature[2], rtol=0, atol=1e-10)
    feature.square().sum().backward()
    for name, stand_in in fusion.stand_ins.items():
        assert stand_in.grad.any() == (name == role), name


@pytest.fixture
def digits(tiny_config) -> dict[str, Any]:
    """Texts and images in which every second field is dropped."""
    return {
        **tiny_config,
        "main": {"name": "bert", "model": "fusionkit/claims-transformer"},
        "main_field": None,
        "complement": {"name": "timm_vit", "model": "fusionkit/digits-vit"},
        "complement_field": None,
        "fusion": "pmf",
        "data": {"name": "digit_claims", "claims_per_image": 2},
        "missing": {"allow": ["main", "complement"], "dropout": 0.5},
        "trainer": {**tiny_config["trainer"], "max_epochs": 1, "limit_train_batches": 3}
        | {"limit_val_batches": 1, "limit_test_batches": 1},
    }


def test_samples_that_lack_either_field_are_trained_on_and_predicted(digits):
    folder = fit(experiment_from_mapping(digits)).folder
    saved = load_file(folder / "model.safetensors")
    width = len(saved["fusion.stand_ins.main"])
    assert width == saved["fusion.to_main.0.fusion_context"].shape[1]
    assert (
        len(saved["fusion.stand_ins.complement"])
        == (saved["fusion.to_complement.0.fusion_context"].shape[1])
    )
    predictor = fusionkit.load(folder)
    image = Image.new("L", (28, 28))
    rows = [{"claim": "the digit is even"}, {"claim": "it is odd", "image": image}]
    rows.append({"image": image})
    for row, together in zip(rows, predictor.predict(rows), strict=True):
        torch.testing.assert_close(predictor.predict([row])[0], together)


def test_an_encoder_that_has_no_blank_is_refused_early(tiny_config):
    config = {
        **tiny_config,
        "complement": {"name": "tiny_main", "dim": 6},
        "fusion": "pmf",
        "missing": {"allow": ["complement"]},
    }
    message = (
        "a complement whose layers run for every sample, as they do under this fusion, of modality "
        "vector cannot do without its field; take a fusion that reads its feature"
    )
    for ways in (fit, check):
        with pytest.raises(ConfigError, match=message):
            ways(experiment_from_mapping(config))


def test_any_stack_of_blocks_can_be_asked():
    """Dropout and batch norms of frozen encoders stay off, whoever runs the layers."""
    fusion = PMF(Frozen(TinyMain()), [Frozen(TinyMain(dim=6, depth=3))]).train()
    inputs = {"main": {"x": torch.randn(4, 24)}, "complement": {"x": torch.randn(4, 18)}}
    assert torch.equal(fusion(inputs).feature, fusion(inputs).feature)
