"""Compiled models compute what they do uncompiled; what cannot be compiled says so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from test_run import run as fit
from tiny import TinyComplement, TinyMain
from torch import Tensor

import fusionkit
from fusionkit.config.schema import TrainerConfig
from fusionkit.config.systems import SYSTEMS
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.encoders.base import PRESENT, MainEncoder
from fusionkit.encoders.gpt2 import CausalLM
from fusionkit.errors import ConfigError
from fusionkit.fusion.conditional_prompt import ConditionalPrompt
from fusionkit.fusion.model import FusionModel
from fusionkit.registry import load
from fusionkit.training.check import check
from fusionkit.training.compiling import compile_model, run_model
from fusionkit.training.evaluate import evaluate
from fusionkit.transfer.frozen import Frozen

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "fusion"), str(TESTS / "transfer")]
from input_tokens import GPT2, flags, images, lacking, texts, vit  # noqa: E402
from matrix import CASES, USUAL, batch_of, make_model, make_plain  # noqa: E402
from test_contract import _plugins_importable, tokenizer  # noqa: E402, F401  as fixtures


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """No test sees what another has compiled, nor its limit."""
    limit = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = limit
    torch.compiler.reset()


@pytest.fixture
def graphs() -> Iterator[list[Any]]:
    """What torch traces; no kernels are made of it, which takes half a minute."""
    found: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        found.append(graph)
        return graph

    torch.compiler.set_default_backend(backend)
    yield found
    torch.compiler.set_default_backend(None)


@pytest.fixture
def both_graphs(graphs: list[Any]) -> list[Any]:
    """As ``graphs``, and traces the backward pass, too."""
    from torch._dynamo.backends.debugging import aot_eager

    def backend(graph: Any, inputs: Any, **options: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs, **options)

    torch.compiler.set_default_backend(backend)
    return graphs


def tiny(main: MainEncoder | None = None, dynamic: bool = True) -> FusionModel:
    torch.manual_seed(2)
    encoders = Frozen(main or TinyMain()), [Frozen(TinyComplement())]
    options = {"experts": 3, "prompt_length": 2, "dropout": 0.0, "noise": 0.0}
    return FusionModel(ConditionalPrompt(*encoders, dynamic=dynamic, **options), 2).double()


def batch(size: int, width: int = 24) -> dict[str, dict[str, Tensor]]:
    return {
        "main": {"x": torch.randn(size, width).double()},
        "complement": {"x": torch.randn(size, 6).double()},
    }


def loss_and_gradients(model: FusionModel, inputs: Any) -> list[Tensor | None]:
    model.zero_grad()
    output = run_model(model, inputs)
    loss = sum(output.fused.losses.values(), output.logits.square().sum())
    loss.backward()
    return [output.logits, loss, *(p.grad for p in model.parameters() if p.requires_grad)]


def assert_same(compiled: FusionModel, plain: FusionModel, inputs: Any, atol: float) -> None:
    for ours, theirs in zip(
        loss_and_gradients(compiled, inputs), loss_and_gradients(plain, inputs), strict=True
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=atol, atol=atol)


@pytest.mark.parametrize("name", USUAL)
def test_every_encoder_gives_the_same(name, tokenizer, request):  # noqa: F811
    case = CASES[name][USUAL[name]](tokenizer)
    compiled, plain = (make_model("frozen", make_plain(case), seed=2).train() for _ in range(2))
    main = isinstance(make_plain(case), MainEncoder)
    # The attention of TinyMain, which complements are given to, takes kernels to be differentiated.
    graphs = request.getfixturevalue("both_graphs" if main else "graphs")
    compile_model(compiled)
    preprocessor = make_plain(case).preprocessor(train=False)
    rows = [preprocessor(sample) for sample in case.samples]
    for count in (3, 4, 5):
        inputs = preprocessor.collate([rows[i % len(rows)] for i in range(count)])
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        inputs = batch_of("main" if main else "complement", inputs)
        assert_same(compiled, plain, inputs, case.tolerance)
    assert len(graphs) == 2  # of the first size, and of any


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_gives_the_same(name, both_graphs):
    overlay = {"complement_transfer": "frozen", **SYSTEMS[name].overlay}
    torch.manual_seed(2)
    language = CausalLM(config={**GPT2, "n_positions": 48}, weights="random")
    main = built("transfer", overlay["main_transfer"], language)
    complements = [built("transfer", overlay["complement_transfer"], vit())]
    fusion = built("fusion", overlay["fusion"], main, complements)
    fused = "complement" in fusion.encoders
    fusion.allow_missing(["complement"] if fused else [])
    plain = FusionModel(fusion, 2).double().eval()
    compiled = deepcopy(plain)
    compile_model(compiled)
    inputs = {"main": texts(), "complement": images()}
    assert_same(compiled, plain, inputs, 1e-10)
    if fused:
        some = flags(1, 0, 1, 1)
        whole = {**inputs, "complement": {**inputs["complement"], PRESENT: some}}
        blank = "complement" in fusion.runs_layers_of
        assert_same(compiled, plain, whole if blank else lacking(inputs, some), 1e-10)
    assert both_graphs


def built(kind: Any, component: Any, *arguments: Any) -> Any:
    """A part of a system, as its overlay names it."""
    options = {"name": component} if isinstance(component, str) else dict(component)
    return load(kind, options.pop("name"))(*arguments, **options)


def test_recomputed_layers_give_the_same(graphs):
    compiled, plain = tiny().train(), tiny().train()
    compiled.fusion.main.encoder.gradient_checkpointing = True
    compile_model(compiled)
    assert_same(compiled, plain, batch(4), 1e-10)
    assert graphs


# Routers compute in float32, whatever the model does.
@pytest.mark.parametrize(("dynamic", "atol"), [(False, 1e-10), (True, 1e-6)])
def test_kernels_give_the_same(dynamic, atol):
    compiled, plain = (tiny(dynamic=dynamic).train() for _ in range(2))
    compile_model(compiled)
    assert_same(compiled, plain, batch(4), atol)


def test_weights_keep_their_names():
    compiled, plain = tiny(), tiny()
    compile_model(compiled)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_a_compiled_run_leaves_what_an_uncompiled_one_does(tiny_config, graphs, capsys):
    still = {"dropout": 0.0, "noise": 0.0}
    runs = [
        fit(tiny_config, fusion=still, trainer={"compile": compiled}) for compiled in (True, False)
    ]
    assert capsys.readouterr().out.count("The model is compiled at its first batches") == 1
    assert runs[0].metrics == pytest.approx(runs[1].metrics)
    rows = [{"a": torch.randn(24).tolist(), "b": torch.randn(6).tolist()} for _ in range(5)]
    ours, theirs = (fusionkit.load(each.folder).predict(rows) for each in runs)
    torch.testing.assert_close(ours, theirs)
    traced = len(graphs)
    torch.compiler.reset()
    assert evaluate(str(runs[0].folder), "test") == pytest.approx(runs[0].metrics)
    assert len(graphs) == traced + 1


def test_random_parts_of_a_step_are_compiled_too(tiny_config, graphs):
    config = {**tiny_config, "fusion": {**tiny_config["fusion"], "noise": 0.1, "dropout": 0.1}}
    assert 0 <= fit(config, trainer={"compile": True}).metrics["test/accuracy"] <= 1
    assert graphs


def test_check_names_it(tiny_config):
    for compiled in (True, False):
        config = {**tiny_config, "trainer": {**tiny_config["trainer"], "compile": compiled}}
        paths = check(experiment_from_mapping(config)).fast_paths
        assert ("compiled kernels" in paths) == compiled


class Prints(TinyMain):
    def embed(self, inputs: Any) -> Any:
        print(inputs["x"].sum().item())
        return super().embed(inputs)


def test_what_cannot_be_compiled_says_why_and_where(graphs):
    model = tiny(Prints())
    compile_model(model)
    with pytest.raises(ConfigError) as caught:
        run_model(model, batch(4))
    message = str(caught.value)
    assert message.startswith("trainer.compile: torch cannot compile this model.")
    assert "builtin operator `print`" in message
    assert "test_compiling.py" in message
    assert ", in embed)." in message
    assert message.endswith("Set trainer.compile to false; without it the model runs.")


def test_too_many_kinds_of_batches_are_an_error_not_uncompiled_steps(graphs):
    model = tiny()
    compile_model(model)
    torch._dynamo.config.recompile_limit = 1
    run_model(model, batch(4))
    with pytest.raises(ConfigError, match="recompile the code object too many times"):
        run_model(model, batch(5))


def test_what_is_wrong_with_the_model_itself_is_said_as_ever(graphs):
    model = tiny()
    compile_model(model)
    with pytest.raises(RuntimeError, match="unflatten") as caught:
        run_model(model, batch(4, width=25))
    assert type(caught.value) is RuntimeError


def test_a_profile_needs_parts():
    with pytest.raises(ConfigError, match="compile makes one of them; set one to false"):
        TrainerConfig(compile=True, profile=True)
