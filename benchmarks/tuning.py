"""Conditional prompts against full fine-tuning of both encoders: time and memory of a step.

    python -m benchmarks tuning

BERT-base reads claims, ViT-B their pictures, both with random weights; data, loaders and
optimizer are those of `fusionkit fit`. The complement is frozen, or prompted, as by default. Steps
take turns in this process; memory is measured in one process for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.harness import Row, take_turns
from fusionkit.compare.apart import measure, preload
from fusionkit.compare.measure import Bench
from fusionkit.config.schema import Experiment
from fusionkit.config.validate import experiment_from_mapping

_BASE: dict[str, Any] = {
    "main": {
        "name": "bert",
        "config": {"model_type": "bert"},
        "weights": "random",
        "tokenizer": "fusionkit/claims-transformer",
    },
    "complement": {"name": "timm_vit", "model": "vit_base_patch16_224", "weights": "random"},
    "data": {"name": "digit_claims"},
    "loader": {"batch_size": 64 if torch.cuda.is_available() else 8},
    "trainer": {"accelerator": "auto", "devices": 1},
}
_TUNED = {
    "main_transfer": "fine_tune",
    "complement_transfer": "fine_tune",
    "fusion": "late_concat",
}


def rows(quick: bool) -> Iterator[Row]:
    """Time, then memory.

    Args:
        quick: Two rounds: to see that it runs.
    """
    experiments = {
        "frozen": _experiment({"complement_transfer": "frozen"}),
        "prompted": _experiment({}),
        "fine-tuned": _experiment(_TUNED),
        "recomputed": _experiment(
            {"trainer": {**_BASE["trainer"], "gradient_checkpointing": True}}
        ),
    }
    rounds = 2 if quick else 5
    benches = {name: Bench(experiment) for name, experiment in experiments.items()}
    taken = take_turns({name: bench.step for name, bench in benches.items()}, rounds)
    for name in ("frozen", "prompted"):
        title = f"BERT-base + ViT-B: step, complement {name} / both fine-tuned"
        yield Row.of(title, taken, name, "fine-tuned", 0.65, rounds)
    name = "BERT-base + ViT-B: step, gradient_checkpointing / prompted"
    yield Row.of(name, taken, "recomputed", "prompted", None, rounds)
    benches.clear()
    preload(experiments.values())
    peaks: dict[str, float] = {}
    for name, experiment in experiments.items():
        cost, failure = measure(experiment, steps=2)
        if cost is None or cost.peak_bytes is None:
            raise SystemExit(f"{name} was not measured: {failure.message if failure else ''}")
        peaks[name] = cost.peak_bytes
    for name in ("frozen", "prompted"):
        title = f"BERT-base + ViT-B: peak memory, complement {name} / both fine-tuned"
        ratio = peaks[name] / peaks["fine-tuned"]
        yield Row(title, ratio, 0.5, amounts=peaks, unit="bytes")
    ratio = peaks["recomputed"] / peaks["prompted"]
    name = "BERT-base + ViT-B: peak memory, gradient_checkpointing / prompted"
    yield Row(name, ratio, None, amounts=peaks, unit="bytes")


def _experiment(more: dict[str, Any]) -> Experiment:
    return experiment_from_mapping({**_BASE, **more}, "benchmarks/tuning.py")
