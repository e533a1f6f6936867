"""Prediction with conditional prompts against plain inference of upstream's main encoder.

python -m benchmarks prediction
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.harness import Row, take_turns
from benchmarks.steps import CASES, Case, Step


def rows(quick: bool) -> Iterator[Row]:
    """Samples per second, of every main encoder.

    Args:
        quick: Few rounds of the first: to see that it runs.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rounds = 2 if quick else 7
    for case in CASES[:1] if quick else CASES:
        step = Step(case, device)
        step.model.eval()
        sides = {"predicted": predict(step), "upstream": upstream(case, step)}
        with torch.inference_mode(), step.precision:
            taken = take_turns(sides, rounds)
        ratio = taken["upstream"] / taken["predicted"]
        name = f"{case.title}: samples per second, prompted / upstream"
        yield Row(name, ratio, 0.9, at_least=True, amounts=taken, rounds=rounds)


def predict(step: Step) -> Callable[[], object]:
    """Prediction of the whole model."""
    return lambda: step.model(step.batch["inputs"]).logits


def upstream(case: Case, step: Step) -> Callable[[], object]:
    """The library's own forward pass, classifier left out."""
    backbone, inputs = step.encoder.backbone, step.batch["inputs"]["main"]
    if case.name.startswith("timm"):
        return lambda: backbone(inputs["pixels"])
    if "waveform" in inputs:
        return lambda: backbone(inputs["waveform"])
    return lambda: backbone(inputs["input_ids"], attention_mask=inputs["attention_mask"])
