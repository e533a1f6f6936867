"""What the cache of frozen features saves: steps with and without it, side by side.

    python benchmarks/cache.py --config configs/quickstart.yaml
    python benchmarks/cache.py --config configs/quickstart.yaml --fusion.layers '[1, 2]' --steps 20

The config is built twice in one process, once with `cache: true`. Steps of both kinds, loading
their batch included, take turns; the ratio is that of their medians. Filling the cache is timed
apart, from nothing, in a folder of its own. A step that is not much longer than the time it takes
to read a batch cannot become much shorter: there the cache does not pay.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fusionkit.cache.fill import fill
from fusionkit.config.validate import load_config
from fusionkit.training.optimizer import make_optimizer
from fusionkit.training.run import make_loaders, prepare
from fusionkit.training.task import FusionTask

_WARM_UP = 3  # steps of each kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", required=True)
    parser.add_argument("--cache", default="true", help="what is cached: true, or roles as YAML")
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each kind")
    parser.add_argument("--threads", type=int, help="of torch; as many as it takes by itself")
    parser.add_argument("--json", type=Path, help="also write the result there")
    given, rest = parser.parse_known_args()
    overrides = [(rest[i].removeprefix("--"), rest[i + 1]) for i in range(0, len(rest), 2)]
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "online": [("cache", "false")],
            "cached": [("cache", given.cache), ("cache.folder", folder)],
        }
        sides = {
            name: _Side(load_config([given.config], [*overrides, *more]))
            for name, more in kinds.items()
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for step in range(_WARM_UP + given.steps):
            for name, side in sides.items():
                seconds = side.step()
                if step >= _WARM_UP:
                    times[name].append(seconds)
    each = {name: statistics.median(found) for name, found in times.items()}
    cached = sides["cached"]
    saved = (each["online"] - each["cached"]) * cached.steps_per_epoch
    result = {
        "online_ms": 1000 * each["online"],
        "cached_ms": 1000 * each["cached"],
        "ratio": each["online"] / each["cached"],
        "fill_seconds": cached.fill_seconds,
        "bytes": cached.bytes,
        "values": cached.values,
        "pays_after_epochs": cached.fill_seconds / saved if saved > 0 else None,
    }
    print(f"{'step online':18}{result['online_ms']:9.1f} ms")
    print(f"{'step cached':18}{result['cached_ms']:9.1f} ms")
    print(f"{'speed-up':18}{result['ratio']:9.2f}")
    print(f"{'filling':18}{result['fill_seconds']:9.1f} s, {result['values']:,} values, "
          f"{result['bytes'] / 1e6:.1f} MB")  # fmt: skip
    pays = result["pays_after_epochs"]
    print(f"{'pays after':18}" + (f"{pays:9.1f} epochs" if pays else "    never"))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


class _Side:
    """One of the two: a model, its batches, and how long a step takes."""

    def __init__(self, experiment: Any) -> None:
        dataset, splits, model, fields = prepare(experiment, {})
        started = time.perf_counter()
        stored, done = fill(experiment, dataset, model, fields, splits)
        self.fill_seconds = time.perf_counter() - started
        self.bytes = sum(filled.bytes for filled in done)
        self.values = sum(filled.values for filled in done)
        train = {"train": splits["train"]}
        self._loader = make_loaders(experiment, dataset, train, model, fields, stored)["train"]
        self.steps_per_epoch = len(self._loader)
        self._task: Any = FusionTask(
            model, dataset.task, dataset.outputs, experiment.optimizer, frozen={}
        )
        self._optimizer = make_optimizer(model, experiment.optimizer)
        self._batches = self._endless()
        model.train()

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self._loader

    def step(self) -> float:
        """Seconds to get a batch and to learn from it."""
        started = time.perf_counter()
        batch = next(self._batches)
        output = self._task(batch["inputs"])
        loss = self._task._training_loss(output, batch["target"])
        for term in output.fused.losses.values():
            loss = loss + term
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
