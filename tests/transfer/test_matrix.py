"""Every transfer mode on every encoder that has a contract case."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from matrix import (
    CASES,
    MODES,
    NEED_LAYERS,
    OWN_PROMPTS,
    USUAL,
    Pair,
    encode,
    expected_names,
    loss,
    make_model,
    make_pair,
    make_plain,
    make_transfer,
    prompt_rows,
    reference,
    refuses,
    unused,
    updated_weights,
)
from safetensors.torch import load_file
from test_contract import _plugins_importable, tokenizer  # noqa: F401  as fixtures

from fusionkit import registry
from fusionkit.encoders.base import MainEncoder
from fusionkit.errors import ConfigError
from fusionkit.training import checkpoint
from fusionkit.transfer.prompt import Prompt

PAIRS = [(mode, name) for name in USUAL for mode in MODES]
WORKING = [pair for pair in PAIRS if not refuses(*pair)]
REFUSED = [pair for pair in PAIRS if refuses(*pair)]
# LoRA goes by the modules inside, so it is tried on all nets that an encoder can run.
OTHER_NETS = [
    (name, net)
    for name, usual in USUAL.items()
    for net in CASES[name]
    if net != usual and not refuses("lora", name)
]


@pytest.fixture(scope="module", params=WORKING, ids="-".join)
def pair(request: pytest.FixtureRequest, tokenizer: str) -> Pair:  # noqa: F811
    mode, name = request.param
    return make_pair(mode, CASES[name][USUAL[name]](tokenizer))


def description(frozen: dict[str, str]) -> checkpoint.Description:
    return checkpoint.Description(
        config={},
        task="single_label",
        classes=["no", "yes"],
        fields={},
        frozen=frozen,
        metrics={},
        epoch=1,
        versions={},
    )


def test_the_matrix_covers_all_modes_and_encoders() -> None:
    assert {name for name, _ in MODES.values()} == {
        name
        for name, entry in registry.entries("transfer").items()
        if entry.distribution == "fusionkit"
    }
    assert len(USUAL) >= 9
    assert len(WORKING) >= 150
    assert len({name for _, name in REFUSED}) >= 4
    assert len(OTHER_NETS) >= 15


def test_the_refusal_of_shallow_names_all_that_take_it(tokenizer: str) -> None:  # noqa: F811
    built_in = {
        name
        for name, entry in registry.entries("main_encoder").items()
        if entry.distribution == "fusionkit"
    }
    taking = {name for mode, name in WORKING if mode == "shallow"} & built_in
    with pytest.raises(ConfigError, match="takes none") as refused:
        make_transfer("shallow", make_plain(CASES["timm_swin"][USUAL["timm_swin"]](tokenizer)))
    assert built_in & set(re.findall(r"\w+", str(refused.value))) == taking


def check_names(pair: Pair) -> None:
    expected = expected_names(pair.mode, pair.plain)
    trained = pair.trained
    assert (updated_weights(trained) if pair.mode == "lora" else trained) == expected
    assert bool(expected) == (pair.mode != "frozen") or not list(pair.plain.parameters())


def check_moved(pair: Pair) -> None:
    prefix = f"fusion.encoders.{pair.role}."
    moved = {
        name.removeprefix(prefix)
        for name, value in pair.model.state_dict().items()
        if name.startswith(prefix) and not torch.equal(value, pair.before[name])
    }
    weights = {name for name, _ in pair.transfer.named_parameters()}
    assert moved & weights <= pair.trained
    if pair.mode not in ("fine_tune", "last_layer"):
        assert moved <= weights, "a buffer moved"
    left = pair.trained - moved
    left = updated_weights(left) if pair.mode == "lora" else left
    assert left <= {f"encoder.{name}" for name in unused(pair)} | unused(pair)


def check_against_reference(pair: Pair) -> None:
    bound = max(pair.case.tolerance, 1e-10)
    own = pair.mode in OWN_PROMPTS  # they are always there
    for rows in [prompt_rows(pair), *([] if own else [None])] if pair.role == "main" else [None]:
        with torch.no_grad():
            found, expected = encode(pair, rows), reference(pair, rows)
            plain = encode(pair, None if own else rows, pair.plain)
        torch.testing.assert_close(found, expected, rtol=bound, atol=bound)
        # The comparison can tell what the mode has learned from the plain encoder.
        assert torch.allclose(found, plain, rtol=1e-4, atol=1e-4) == (not pair.trained)


def test_trained_is_what_the_mode_says(pair: Pair) -> None:
    check_names(pair)


def test_a_step_moves_what_is_trained_and_nothing_else(pair: Pair) -> None:
    check_moved(pair)


def test_prompts_and_tokens_see_the_adapted_weights(pair: Pair) -> None:
    check_against_reference(pair)


@pytest.mark.parametrize(("name", "net"), OTHER_NETS)
def test_lora_reaches_every_net(name: str, net: str, tokenizer: str) -> None:  # noqa: F811
    pair = make_pair("lora", CASES[name][net](tokenizer))
    check_names(pair)
    check_moved(pair)
    check_against_reference(pair)


def test_saved_and_rebuilt_it_predicts_the_same(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / checkpoint.FILE_NAME
    frozen = checkpoint.frozen_hashes(pair.model)
    checkpoint.save(path, pair.model, description(frozen))
    base = {f"encoder.{name}" for name, _ in pair.plain.named_parameters()}
    saved = {name.partition(f".{pair.role}.")[2] for name in load_file(path)}
    assert saved & base == expected_names(pair.mode, pair.plain) & base  # slim
    other = make_model(pair.mode, make_plain(pair.case), seed=3).eval()
    with torch.no_grad():
        expected = pair.model(pair.batch).logits
        assert not torch.equal(other(pair.batch).logits, expected)
        checkpoint.load_into(other, path)
        assert torch.equal(other(pair.batch).logits, expected)


@pytest.mark.parametrize("name", [name for mode, name in WORKING if mode == "prompt"])
def test_prompts_can_start_as_tokens_that_enter_their_layer(name: str, tokenizer: str) -> None:  # noqa: F811
    case = CASES[name][USUAL[name]](tokenizer)
    encoder = make_plain(case)
    preprocessor = encoder.preprocessor(train=False)
    inputs = preprocessor.collate([preprocessor(sample) for sample in case.samples])
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    transfer = Prompt(encoder, length=64, init="tokens").double()
    with torch.no_grad():
        transfer.start_from(inputs)
        state = encoder.embed(inputs)
        for layer, rows in enumerate(transfer.prompts.rows.in_order()):
            tokens = state.tokens.flatten(1, -2)
            real = tokens.flatten(0, 1) if state.keep is None else tokens[state.keep]
            distance = (rows[:, None] - real).abs().amax(dim=-1)  # (64, tokens)
            assert distance.amin(dim=1).max() == 0
            assert len(distance.argmin(dim=1).unique()) > 1  # not one token for all rows
            state = encoder.run_layer(layer, state, None)


def test_two_passes_in_training_mode_are_equal_if_the_base_is_frozen(pair: Pair) -> None:
    if pair.mode in ("fine_tune", "last_layer"):
        return
    pair.transfer.train()
    with torch.no_grad():
        assert torch.equal(encode(pair, None), encode(pair, None))
    pair.transfer.eval()


def test_gradient_checkpointing_changes_no_gradient(pair: Pair) -> None:
    if pair.role != "main":
        return
    found = []
    for recompute in (False, True):
        pair.transfer.encoder.gradient_checkpointing = recompute
        pair.model.zero_grad()
        loss(pair.model, pair.batch).backward()
        found.append({n: p.grad for n, p in pair.model.named_parameters() if p.requires_grad})
    pair.transfer.encoder.gradient_checkpointing = False
    for name, gradient in found[0].items():
        assert gradient is not None or name.partition(".encoder.")[2] in unused(pair), name
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("mode", "name"), REFUSED)
def test_an_encoder_without_what_a_mode_needs_is_refused(
    mode: str,
    name: str,
    tokenizer: str,  # noqa: F811
) -> None:
    plain = make_plain(CASES[name][USUAL[name]](tokenizer))
    remedy = "leave last_layers out" if mode == "last_layer" else "Use "
    with pytest.raises(ConfigError, match=rf"(?s){type(plain).__name__}.* {remedy}"):
        make_transfer(mode, plain)
    if mode not in NEED_LAYERS:
        assert not expected_names(mode, plain)
    elif isinstance(plain, MainEncoder):
        assert mode == "shallow"
        assert not plain.takes_tokens
