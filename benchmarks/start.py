"""How long the command line takes to answer, and training to begin.

    python -m benchmarks start

Seconds, not ratios: medians of processes that start from nothing, files in the system's cache.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from benchmarks.harness import Row

_COMMANDS = (["--help"], ["list"], ["ftt"])
_FIT = ["fit", "--config", "configs/quickstart.yaml", "--trainer.progress_bar", "false"]


def rows(quick: bool) -> Iterator[Row]:
    """Commands that need no torch, then the first step of the quickstart.

    Args:
        quick: One process of each: to see that it runs.
    """
    times = 1 if quick else 5
    for command in _COMMANDS:
        taken = statistics.median(_seconds(command) for _ in range(times))
        yield Row(f"fusionkit {' '.join(command)}: seconds", taken, 0.5, rounds=times)
    found = [_first_step() for _ in range(times)]
    taken = {key: statistics.median(each[key] for each in found) for key in found[0]}
    name = "quickstart, to the first step beyond weights: seconds"
    yield Row(name, taken["whole"] - taken["weights"], 3.0, amounts=taken, rounds=times)


def _seconds(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fusionkit", *command], capture_output=True, check=False)
    return time.perf_counter() - began


def _first_step() -> dict[str, float]:
    """Seconds from starting a process to its first step, and those of them that load weights."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", __name__, str(time.time()), "--output", place]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the quickstart did not start: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _watch(began: float, more: Sequence[str]) -> None:
    """Run `fusionkit fit` up to its first step, and print when that was."""
    import torch

    torch_there = time.time()
    torch.optim.AdamW([torch.zeros(1)])  # any optimizer of torch imports torch's compiler
    optimizer_there = time.time()
    from fusionkit.cli import main
    from fusionkit.training import run
    from fusionkit.training.task import FusionTask

    imported, weights = time.time(), [0.0]
    build = run.build_model

    def timed(*args: object) -> object:
        before = time.time()
        made = build(*args)  # type: ignore[arg-type]
        weights[0] += time.time() - before
        return made

    def stop(*_: object) -> None:
        found = {
            "whole": time.time() - began,
            "torch": torch_there - began,
            "an optimizer of torch": optimizer_there - torch_there,
            "other imports": imported - optimizer_there,
            "weights": weights[0],
        }
        print(json.dumps(found), flush=True)
        os._exit(0)

    run.build_model = timed  # type: ignore[assignment]
    FusionTask.training_step = stop  # type: ignore[assignment,method-assign]
    sys.exit(main([*_FIT, *more]))


if __name__ == "__main__":
    _watch(float(sys.argv[1]), sys.argv[2:])
