from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from fusionkit.encoders.attention import join_parts
from fusionkit.encoders.base import Features, TokenState
from fusionkit.errors import ConfigError
from fusionkit.prompts.engine import ConditionalPrompts, tokens_mean
from fusionkit.prompts.router import Gate, MultimodalRouter
from fusionkit.prompts.static import ByWidth

SWIN_B = [128] * 2 + [256] * 2 + [512] * 18 + [1024] * 2
WIDTHS = [4, 4, 8]


def states(batch: int = 3) -> list[TokenState]:
    return [TokenState(torch.randn(batch, 5, width)) for width in WIDTHS]


def seen(*pooled: torch.Tensor) -> list[Features]:
    return [Features(x) for x in pooled]


def of_layer(tensors: ByWidth, layer: int) -> torch.Tensor:
    """By hand: layers of one width stand in one tensor, in their order."""
    width = WIDTHS[layer]
    return tensors[str(width)][WIDTHS[:layer].count(width)]


def rows(engine: ConditionalPrompts, psi: torch.Tensor | None, batch: int = 3) -> list:
    prompts = engine([] if psi is None else seen(psi))
    return [join_parts(prompts(layer, state), batch) for layer, state in enumerate(states(batch))]


@pytest.mark.parametrize(
    ("experts", "prompts", "routers", "mapper"),
    [(4, 360_960, 73_824, 1_034_496), (16, 1_227_264, 295_296, 1_034_496)],
)
def test_parameters_are_those_of_the_papers_swin_b(experts, prompts, routers, mapper):
    with torch.device("meta"):
        engine = ConditionalPrompts(SWIN_B, [768], experts=experts)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(engine.static) + count(engine.experts) == prompts
    assert count(engine.router) == routers
    assert count(engine.mapper) == mapper


@pytest.mark.parametrize(
    ("static", "dynamic", "mapped"),
    [c for c in itertools.product([True, False], repeat=3) if any(c)],
)
def test_each_combination_makes_its_rows(static, dynamic, mapped):
    engine = ConditionalPrompts(
        WIDTHS, [6], static=static, dynamic=dynamic, mapped=mapped, prompt_length=2, experts=3
    ).eval()
    made = rows(engine, torch.randn(3, 6))
    n = 2 * static + 2 * dynamic + mapped
    assert [tuple(row.shape) for row in made] == [(3, n, width) for width in WIDTHS]


def test_rows_are_static_then_dynamic_then_mapped():
    engine = ConditionalPrompts(WIDTHS, [6], prompt_length=2, experts=3).eval()
    psi = torch.randn(3, 6)
    for layer, made in enumerate(rows(engine, psi)):
        weight = engine.router.linear.weight.view(3, 3, 6)[layer]
        bias = engine.router.linear.bias.view(3, 3)[layer]
        scores = ((psi @ weight.T + bias) / 0.1).softmax(-1)
        hidden = F.gelu(engine.mapper.shared[0](psi))
        mapped = F.gelu(engine.mapper.by_width[str(WIDTHS[layer])][0](hidden))
        static = of_layer(engine.static.rows, layer)
        torch.testing.assert_close(made[:, :2], static.expand(3, -1, -1))
        for b in range(3):
            dynamic = sum(scores[b, e] * of_layer(engine.experts, layer)[e] for e in range(3))
            torch.testing.assert_close(made[b, 2:4], dynamic)
        torch.testing.assert_close(made[:, 4], mapped)


def test_one_expert_is_a_plain_learned_prompt():
    engine = ConditionalPrompts(WIDTHS, [6], static=False, mapped=False, experts=1, prompt_length=2)
    made = rows(engine.eval(), torch.randn(3, 6))
    torch.testing.assert_close(made[2], of_layer(engine.experts, 2).expand(3, -1, -1))


def test_widths_share_their_mapped_prompt():
    engine = ConditionalPrompts(WIDTHS, [6], static=False, dynamic=False).eval()
    first, second, third = rows(engine, torch.randn(3, 6))
    assert torch.equal(first, second)
    assert third.shape == (3, 1, 8)


def test_the_sequence_mapper_makes_m_rows_after_static_and_dynamic():
    engine = ConditionalPrompts(
        WIDTHS, [6], prompt_length=2, experts=3, mapper="sequence", mapped_length=4, mapper_dim=8
    ).eval()
    features = Features(torch.randn(3, 6), torch.randn(3, 7, 6))
    prompts = engine([features])
    made = [join_parts(prompts(layer, state), 3) for layer, state in enumerate(states())]
    assert [tuple(row.shape) for row in made] == [(3, 8, width) for width in WIDTHS]
    for row, mapped in zip(made, engine.mapper([features]), strict=True):
        assert torch.equal(row[:, 4:], mapped)


def test_routing_sees_pooled_features_only():
    engine = ConditionalPrompts(WIDTHS, [6], mapper="sequence").eval()
    pooled, routings = torch.randn(3, 6), []
    for _ in range(2):
        prompts = engine([Features(pooled, torch.randn(3, 7, 6))])
        for layer, state in enumerate(states()):
            prompts(layer, state)
        routings.append(prompts.routing.weights)
    assert torch.equal(*routings)


def test_prompted_layers_in_the_middle_get_their_own_mapped_rows():
    engine = ConditionalPrompts(
        WIDTHS, [6], static=False, dynamic=False, mapper="sequence", layers=(1, 3)
    ).eval()
    features = Features(torch.randn(3, 6), torch.randn(3, 7, 6))
    prompts = engine([features])
    (second,), (third,) = (prompts(layer, states()[layer]) for layer in (1, 2))
    assert (second.shape, third.shape) == ((3, 1, 4), (3, 1, 8))
    assert torch.equal(second, engine.mapper([features])[0])


def test_parameters_of_one_complement_under_the_pooled_mapper():
    names = set(ConditionalPrompts([4, 8], [6]).state_dict())
    assert names == {
        *(f"{part}.{width}" for part in ("static.rows", "experts") for width in (4, 8)),
        *(f"router.linear.{kind}" for kind in ("weight", "bias")),
        *(f"mapper.shared.0.{kind}" for kind in ("weight", "bias")),
        *(f"mapper.by_width.{w}.0.{kind}" for w in (4, 8) for kind in ("weight", "bias")),
    }


def test_no_psi_is_made_that_nothing_reads():
    arguments = {"static": False, "dynamic": False, "mapper": "sequence"}
    assert ConditionalPrompts(WIDTHS, [6, 5], **arguments).psi is None


def test_layers_outside_the_range_get_no_prompts():
    engine = ConditionalPrompts(WIDTHS, [6], layers=(1, 3), experts=2).eval()
    prompts = engine(seen(torch.randn(3, 6)))
    made = [prompts(layer, state) for layer, state in enumerate(states())]
    assert made[0] is None
    assert [tuple(part.shape) for part in made[1]] == [(1, 6, 4), (3, 7, 4)]
    assert [tuple(part.shape) for part in made[2]] == [(1, 6, 8), (3, 7, 8)]
    assert prompts.routing.layers == (1, 2)
    assert prompts.routing.weights.shape == (3, 2, 2)


def test_every_layer_has_its_own_router():
    engine = ConditionalPrompts(WIDTHS, [6], experts=4).eval()
    prompts = engine(seen(torch.randn(3, 6)))
    for layer, state in enumerate(states()):
        prompts(layer, state)
    scores = prompts.routing.weights
    assert not torch.allclose(scores[:, 0], scores[:, 1])


def test_a_row_does_not_depend_on_its_batch_mates():
    for router in ("complement", "multimodal"):
        engine = ConditionalPrompts(WIDTHS, [6], experts=4, router=router).eval().double()
        psi, state = torch.randn(3, 6).double(), TokenState(torch.randn(3, 5, 4).double())
        _, together = engine(seen(psi))(0, state)
        _, alone = engine(seen(psi[1:2]))(0, TokenState(state.tokens[1:2]))
        torch.testing.assert_close(together[1:2], alone)


def test_evaluation_is_repeatable_and_training_is_noisy():
    engine = ConditionalPrompts(WIDTHS, [6], experts=4, dropout=0.0)
    psi = torch.randn(3, 6)
    first, second = engine.eval()(seen(psi)), engine(seen(psi))
    assert torch.equal(first(0, states()[0])[1], second(0, states()[0])[1])
    engine.train()
    first, second = engine(seen(psi)), engine(seen(psi))
    assert not torch.equal(first(0, states()[0])[1], second(0, states()[0])[1])
    assert torch.equal(first.routing.probabilities, second.routing.probabilities)


def test_noise_has_standard_deviation_one_over_k_squared():
    engine = ConditionalPrompts(WIDTHS, [6], experts=5)
    assert engine.gate.noise == 1 / 25
    weights, _ = Gate(1.0, 0.5, None)(torch.zeros(20_000, 2), training=True)
    difference = torch.logit(weights[:, 0])  # eps_0 - eps_1
    assert difference.std().item() == pytest.approx(0.5 * math.sqrt(2), rel=0.03)


def test_top_k_keeps_the_probabilities_of_the_largest():
    logits = torch.tensor([[0.1, 0.3, 0.2, 0.0]], requires_grad=True)
    weights, probabilities = Gate(0.1, 0.0, 2)(logits, training=True)
    expected = (logits / 0.1).softmax(-1) * torch.tensor([0.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(probabilities, (logits / 0.1).softmax(-1))
    weights[0, 1].backward()
    assert logits.grad.abs().min() > 0  # the gate value leads back to every logit


def test_dropout_acts_on_prompts_in_training_only():
    engine = ConditionalPrompts(WIDTHS, [], dynamic=False, mapped=False, dropout=0.5)
    assert (rows(engine, None)[0] == 0).any()
    assert not (rows(engine.eval(), None)[0] == 0).any()


def test_prompts_start_in_their_range():
    engine = ConditionalPrompts(SWIN_B, [6], experts=2)
    limit = math.sqrt(6 / (3 * 16 + 128))
    for parameter in (*engine.static.rows.values(), *engine.experts.values()):
        assert parameter.abs().max() <= limit
        assert parameter.abs().max() > 0.9 * limit


def test_multimodal_router_follows_its_formula():
    router = MultimodalRouter(6, WIDTHS, 4).double()
    psi, mean = torch.randn(3, 6).double(), torch.randn(3, 8).double()
    own = router.from_complement.weight.view(3, 8, 6)[2]
    query = torch.cat([mean @ router.from_main[2].weight.T, psi @ own.T], dim=-1)
    torch.testing.assert_close(router(router.prepare(psi), 2, mean), query @ router.keys[2])


def test_multimodal_keys_are_orthogonal_and_frozen_and_saved():
    router = MultimodalRouter(6, WIDTHS, 4)
    for keys in router.keys:
        torch.testing.assert_close(keys.T @ keys, torch.eye(4))
    assert not router.keys.requires_grad
    assert "keys" in router.state_dict()


def test_padding_does_not_count_in_the_mean_of_tokens():
    tokens = torch.randn(2, 4, 3)
    keep = torch.tensor([[True, True, False, False], [True] * 4])
    mean = tokens_mean(TokenState(tokens, keep))
    torch.testing.assert_close(mean[0], tokens[0, :2].mean(0))
    torch.testing.assert_close(mean[1], tokens[1].mean(0))
    grid = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(tokens_mean(TokenState(grid)), grid.mean((1, 2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"static": False, "dynamic": False, "mapped": False}, "Switch on at least one"),
        ({"experts": 0}, "at least 1, given 6 and 0"),
        ({"prompt_length": 0}, "at least 1, given 0 and 16"),
        (
            {"experts": 4, "top_k": 5},
            r"top_k is between 1 and the number of experts \(4\), given 5",
        ),
        ({"temperature": 0.0}, "temperature is above 0"),
        ({"layers": (2, 9)}, r"main encoder's 3 layers, given \[2, 9\]"),
        ({"noise": -1.0}, "init_range and noise at least 0"),
        ({"mapper_dim": 0}, "mapper_dim is at least 1"),
        ({"complement_dims": []}, "need a complement to condition on"),
        ({"complement_dims": [6, 5], "psi_dim": 0}, "psi_dim is at least 1, given 0"),
        ({"mapped": False, "mapper": "sequence"}, "set mapped: true, or mapper: pooled"),
        ({"mapped_length": 0}, "mapped_length is at least 1, given 0; mapped: false leaves"),
        ({"mapped_length": 4}, "mapped_length is 4, but mapper: pooled makes one row"),
        (
            {"mapper": "sequence", "mapper_dim": 10},
            "mapper_dim is a multiple of 4, given 10",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ConditionalPrompts(WIDTHS, **{"complement_dims": [6], **arguments})
