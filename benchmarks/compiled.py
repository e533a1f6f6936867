"""What `trainer.compile` makes of the steps and predictions of `steps` and `prediction`.

python -m benchmarks compiled

What a compiled model is compared with is not compiled: the least a step can be, and plain
inference of upstream's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from benchmarks.harness import Row, take_turns
from benchmarks.prediction import predict, upstream
from benchmarks.steps import CASES, Case, Step
from fusionkit.training.compiling import compile_model


def rows(quick: bool) -> Iterator[Row]:
    """Of every main encoder.

    Args:
        quick: Few rounds of the first: to see that it runs.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rounds = 2 if quick else 7
    for case in CASES[:1] if quick else CASES:
        yield from _of(case, device, rounds)


def _of(case: Case, device: str, rounds: int) -> Iterator[Row]:
    step, compiled = Step(case, device), Step(case, device)
    compile_model(compiled.model)
    before = time.perf_counter()
    compiled.prompted()
    first = time.perf_counter() - before
    sides = {
        "compiled": compiled.prompted, "prompted": step.prompted, "bare": step.bare
    }  # fmt: skip
    taken = take_turns(sides, rounds)
    name = f"{case.title}: prompted, compiled / bare"
    yield Row.of(name, {**taken, "first step": first}, "compiled", "bare", 1.10, rounds)
    for each in (step, compiled):
        each.model.eval()
    sides = {
        "compiled": predict(compiled), "predicted": predict(step), "upstream": upstream(case, step)
    }  # fmt: skip
    with torch.inference_mode(), step.precision:
        taken = take_turns(sides, rounds)
    ratio = taken["upstream"] / taken["compiled"]
    name = f"{case.title}: samples per second, prompted and compiled / upstream"
    yield Row(name, ratio, 0.9, at_least=True, amounts=taken, rounds=rounds)
