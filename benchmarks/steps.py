"""What a conditional-prompt training step costs beyond what a frozen main encoder must compute.

Each main encoder has its published architecture and random weights. The complement's feature is
given, as it is where it was computed before: its own forward pass would be the same on both sides
and only bring the ratios nearer to 1.

- *bare*: forward pass without prompts, and the gradient with respect to the embedded tokens.
- *prompted*: the whole training step, loss, clipping and optimizer included.
- *concatenated*: the same step with the prompts among the tokens of every layer.

On a GPU batches are 32 times as large, so that it is not its host that is measured, and run in
bf16-mixed precision, as `fusionkit fit` trains there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Row, take_turns
from fusionkit.config.schema import OptimizerConfig
from fusionkit.encoders.attention import join_parts
from fusionkit.encoders.base import ENTERING, KEEP, Features, MainEncoder
from fusionkit.encoders.vector import Vector
from fusionkit.fusion.conditional_prompt import ConditionalPrompt
from fusionkit.fusion.main_only import MainOnly
from fusionkit.fusion.model import FusionModel
from fusionkit.registry import load
from fusionkit.training.optimizer import make_optimizer
from fusionkit.training.precision import hold_frozen
from fusionkit.training.task import FusionTask
from fusionkit.transfer.frozen import Frozen
from fusionkit.transfer.prompt import Prompt

_PSI = 768  # width of the complement's feature: that of BERT-base
_CLASSES = 3
_ON_GPU = 32  # times as many samples
_ROWS = 13  # prompt rows of the default fusion, l = 6: (1 + 1) l + 1


@dataclass(frozen=True, slots=True)
class Case:
    """A main encoder and a batch for it.

    Attributes:
        title: In the table.
        name: Registered name.
        init: What its constructor takes.
        batch: Samples on a CPU.
        inputs: Makes them, from their number.
        concatenation: The most that the step may take of that with concatenated prompts; None
            where no plain block takes more tokens.
    """

    title: str
    name: str
    init: dict[str, Any]
    batch: int
    inputs: Callable[[int], dict[str, Tensor]]
    concatenation: float | None = 1.0


def _texts(length: int) -> Callable[[int], dict[str, Tensor]]:
    def make(batch: int) -> dict[str, Tensor]:
        ids = torch.randint(1000, 20000, (batch, length))
        keep = torch.ones(batch, length, dtype=torch.bool)
        keep[::2, -2:] = False  # a batch of texts is padded
        return {"input_ids": ids, "attention_mask": keep}

    return make


def _images(batch: int) -> dict[str, Tensor]:
    return {"pixels": torch.randn(batch, 3, 224, 224)}


def _sounds(batch: int) -> dict[str, Tensor]:
    return {"waveform": torch.randn(batch, 32000), "samples": torch.full((batch,), 32000)}


_BERT = {"config": {"model_type": "bert"}, "weights": "random"}
CASES = (
    Case("BERT-base, 16 tokens", "bert", _BERT, 32, _texts(16), 0.70),
    Case("BERT-base, 32 tokens", "bert", _BERT, 32, _texts(32), 0.85),
    Case("BERT-base, 128 tokens", "bert", _BERT, 8, _texts(128)),
    Case(
        "GPT-2, 32 tokens",
        "gpt2",
        {"config": {"model_type": "gpt2"}, "weights": "random"},
        32,
        _texts(32),
    ),
    Case(
        "ViT-B/16, 224 px",
        "timm_vit",
        {"model": "vit_base_patch16_224", "weights": "random"},
        8,
        _images,
    ),
    Case(
        "Swin-B, 224 px",
        "timm_swin",
        {"model": "swin_base_patch4_window7_224", "weights": "random"},
        4,
        _images,
        None,
    ),
    Case(
        "wav2vec2-base, 2 s",
        "wav2vec2",
        {"config": {"model_type": "wav2vec2"}, "weights": "random"},
        8,
        _sounds,
    ),
)


class Training:
    """Training steps of a model on one batch.

    Args:
        model: What is trained.
        batch: As a loader makes it, on the device.
        device: Where they run.
    """

    def __init__(self, model: FusionModel, batch: dict[str, Any], device: str) -> None:
        self.model = model.to(device).train()
        if device == "cuda":
            hold_frozen(model, "bf16-mixed")
        self.batch = batch
        config = OptimizerConfig()
        self._task = FusionTask(model, "single_label", _CLASSES, config, frozen={}).to(device)
        self.precision = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
        self._optimizer = make_optimizer(model, config)
        self._trained = [p for p in model.parameters() if p.requires_grad]

    def prompted(self) -> None:
        """A whole step."""
        with self.precision:
            loss, _ = self._task.total_loss(self.batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


class Step(Training):
    """Training steps with conditional prompts, and what they are compared with.

    Args:
        case: The main encoder.
        device: Where they run.
        fusion: What the fusion is given beside the encoders.
    """

    def __init__(self, case: Case, device: str, **fusion: Any) -> None:
        torch.manual_seed(0)
        main = Frozen(load("main_encoder", case.name)(**case.init))
        complement = Frozen(Vector(_PSI, standardize=False))
        model = FusionModel(ConditionalPrompt(main, [complement], **fusion), _CLASSES)
        samples = case.batch * (_ON_GPU if device == "cuda" else 1)
        seen = {
            "vectors": torch.randn(samples, 1, _PSI),
            "keep": torch.ones(samples, 1, dtype=torch.bool),
        }
        inputs = {"main": case.inputs(samples), "complement": seen}
        batch = {
            "inputs": {role: _to(rows, device) for role, rows in inputs.items()},
            "target": torch.randint(_CLASSES, (samples,), device=device),
        }
        super().__init__(model, batch, device)

    @property
    def encoder(self) -> MainEncoder:
        encoder = self.model.fusion.main.encoder
        assert isinstance(encoder, MainEncoder)
        return encoder

    def bare(self) -> None:
        """What cannot be left out."""
        encoder = self.encoder
        with self.precision:
            state = encoder.embed(self.batch["inputs"]["main"])
            state = state.with_tokens(state.tokens.detach().requires_grad_())
            entered = state.tokens
            for layer in range(len(encoder.layer_widths)):
                state = encoder.run_layer(layer, state, None)
            summed = encoder.readout(state).pooled.sum()
        torch.autograd.grad(summed, entered)

    def concatenated(self) -> None:
        """The whole step with every prompt row as a token of its layer."""
        run_main = self.model.fusion.run_main
        self.model.fusion.run_main = self._run_concatenated  # type: ignore[method-assign]
        try:
            self.prompted()
        finally:
            self.model.fusion.run_main = run_main  # type: ignore[method-assign]

    def _run_concatenated(self, inputs: Any, prompts: Any) -> Features:
        encoder = self.encoder
        state = encoder.embed(inputs["main"])
        for layer in range(len(encoder.layer_widths)):
            rows = join_parts(prompts(layer, state), len(state.tokens))
            n, keep = rows.shape[1], state.keep
            # In front: where a token sees those before it, it has to see all prompts.
            tokens = torch.cat([rows, state.tokens], dim=1)
            if keep is not None:
                keep = F.pad(keep, (n, 0), value=True)
            out = encoder.run_layer(layer, encoder.resume(layer, tokens, keep), None).tokens
            state = state.with_tokens(out[:, n:])
        return encoder.readout(state)


def _to(rows: Mapping[str, Tensor], device: str) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in rows.items()}


def rows(quick: bool) -> Iterator[Row]:
    """Every main encoder, then what a single one is enough for.

    Args:
        quick: Few rounds of the first case: to see that it runs.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rounds = 2 if quick else 7
    for case in CASES[:1] if quick else CASES:
        yield from _against_bare(case, device, rounds)
    texts = CASES[0]
    few, many = (Step(texts, device, experts=k) for k in (4, 128))
    taken = take_turns({"k = 4": few.prompted, "k = 128": many.prompted}, rounds)
    yield Row.of(f"{texts.title}: k = 128 / k = 4", taken, "k = 128", "k = 4", 1.05, rounds)
    del few, many
    case = texts if quick else CASES[4]
    yield _against_prompt_tuning(case, device, rounds)
    yield _from_prefix(case, device, rounds)


def _against_bare(case: Case, device: str, rounds: int) -> Iterator[Row]:
    step = Step(case, device)
    sides = {"prompted": step.prompted, "bare": step.bare}
    if case.concatenation is not None:
        sides["concatenated"] = step.concatenated
    taken = take_turns(sides, rounds)
    yield Row.of(f"{case.title}: prompted / bare", taken, "prompted", "bare", 1.10, rounds)
    if case.concatenation is not None:
        name = f"{case.title}: prompted / concatenated"
        yield Row.of(name, taken, "prompted", "concatenated", case.concatenation, rounds)


def _against_prompt_tuning(case: Case, device: str, rounds: int) -> Row:
    """With a stored complement, against the main encoder under as many prompt rows of its own."""
    step = Step(case, device)
    main = Prompt(load("main_encoder", case.name)(**case.init), length=_ROWS)
    alone = Training(FusionModel(MainOnly(main, []), _CLASSES), step.batch, device)
    taken = take_turns({"stored complement": step.prompted, "main alone": alone.prompted}, rounds)
    name = f"{case.title}: stored complement / main encoder prompted alone"
    return Row.of(name, taken, "stored complement", "main alone", 1.05, rounds)


def _from_prefix(case: Case, device: str, rounds: int) -> Row:
    """Prompts in the last third, with and without what the layers below make of each sample."""
    depth = 12
    below = depth - depth // 3
    step = Step(case, device, layers=(below, depth))
    encoder = step.encoder
    with torch.no_grad(), step.precision:
        state = encoder.embed(step.batch["inputs"]["main"])
        for layer in range(below):
            state = encoder.run_layer(layer, state, None)
    stored = {f"{ENTERING}{below}": state.tokens}
    if state.keep is not None:
        stored[KEEP] = state.keep
    inputs = {**step.batch["inputs"], "main": stored}
    again = Training(step.model, {**step.batch, "inputs": inputs}, device)
    taken = take_turns({"stored prefix": again.prompted, "all layers": step.prompted}, rounds)
    name = f"{case.title}, prompts in the last third: stored prefix / all layers"
    return Row.of(name, taken, "stored prefix", "all layers", 0.5, rounds)
