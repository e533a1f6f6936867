"""What a training step costs on 1 to 1,024 GPUs, from terms that are measured or counted here.

    python -m benchmarks.scaling

Counted: FLOPs, memory and trained values of the paper's model. Measured on this machine: how fast
one process reads photos and texts, and sums the trained values with another. Assumed, and easy to
change: what a GPU and its links do. The table is a model, not a measurement.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.loading import write_table
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.training.assemble import meta_model
from fusionkit.training.cost import step_cost
from fusionkit.training.run import make_loaders, read_data

_PAPER: dict[str, Any] = {
    "main": {"name": "timm_swin", "weights": "random", "augment": "none"},
    "complement": {
        "name": "bert",
        "config": {"model_type": "bert"},
        "weights": "random",
        "tokenizer": "fusionkit/claims-transformer",
    },
    "loader": {"workers": 0},
}
_TOKENS, _CLASSES = 64, 101  # of a recipe's title and first lines; Food-101
_GPUS = (1, 8, 64, 256, 1024)
_PAIRS = (1e5, 1e6, 1e7, 1e8, 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=64, help="samples per GPU and step")
    parser.add_argument("--flops", type=float, default=3e14, help="a GPU's, in bf16, sustained")
    parser.add_argument("--link", type=float, default=25e9, help="bytes a second between two GPUs")
    parser.add_argument("--latency", type=float, default=2e-5, help="seconds of a message")
    given = parser.parse_args()
    paper = _count(given.batch)
    tuned = _count(given.batch, main_transfer="fine_tune", complement_transfer="fine_tune",
                   fusion="late_concat")  # fmt: skip
    rate = _reading()
    summing = _summing(paper["trained"])
    print(f"{'':34}{'conditional prompts':>20}{'both fine-tuned':>18}")
    for key, name, size in (
        ("flops", "GFLOPs a sample, both passes", 1e9),
        ("memory", f"GiB at batches of {given.batch}, bf16-mixed", 2**30),
        ("trained", "million trained values", 1e6),
    ):
        print(f"{name:34}{paper[key] / size:20.2f}{tuned[key] / size:18.2f}")
    print(f"\nreading, one process: {rate:.0f} samples/s")
    print(f"summing {paper['trained']:,} values, two processes here: {1000 * summing:.1f} ms\n")
    print(f"{'GPUs':>6}{'compute':>12}{'summing':>12}{'of step':>9}{'fine-tuned':>12}"
          f"{'samples/s':>12}{'readers':>9}  an epoch of 10^5 ... 10^9 pairs")  # fmt: skip
    for count in _GPUS:
        compute = given.batch * paper["flops"] / given.flops
        sums = [_all_reduce(count, 4 * each["trained"], given.link, given.latency)
                for each in (paper, tuned)]  # fmt: skip
        step = compute + sums[0]
        whole = given.batch * tuned["flops"] / given.flops + sums[1]
        samples = count * given.batch / step
        epochs = " ".join(f"{_duration(pairs / samples):>7}" for pairs in _PAIRS)
        times = f"{1000 * compute:9.1f} ms{1000 * sums[0]:9.2f} ms"
        shares = f"{sums[0] / step:9.1%}{sums[1] / whole:12.1%}"
        print(f"{count:6}{times}{shares}{samples:12,.0f}{samples / rate:9.0f}  {epochs}")


def _count(batch: int, **more: Any) -> dict[str, float]:
    """FLOPs of a sample, bytes of a step, trained values."""
    data = {"name": "digit_claims"}
    experiment = experiment_from_mapping({**_PAPER, "data": data, **more}, "benchmarks/scaling.py")
    model = meta_model(experiment, _CLASSES)
    keep = torch.ones(batch, _TOKENS, dtype=torch.bool)
    inputs = {
        "main": {"pixels": torch.empty(batch, 3, 224, 224)},
        "complement": {"input_ids": torch.zeros(batch, _TOKENS, dtype=int), "attention_mask": keep},
    }
    cost = step_cost(model, inputs, "bf16-mixed")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    flops = cost.forward_flops + cost.backward_flops
    return {"flops": flops, "memory": cost.memory, "trained": trained}


def _reading() -> float:
    """Samples a second that one process decodes, crops and tokenizes."""
    torch.set_num_threads(1)
    samples = 256
    with tempfile.TemporaryDirectory() as place:
        data = write_table(Path(place), samples)
        experiment = experiment_from_mapping({**_PAPER, "data": data}, "benchmarks/scaling.py")
        dataset, splits = read_data(experiment, {})
        model = meta_model(experiment, dataset.outputs)
        fields = {"main": "image", "complement": "text"}
        train = {"train": splits["train"]}
        loader = make_loaders(experiment, dataset, train, model, fields)["train"]
        list(loader)
        began = time.perf_counter()
        list(loader)
        return samples / (time.perf_counter() - began)


def _summing(values: float) -> float:
    """Seconds to sum so many values over two processes of this machine."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "seconds"
        mp.spawn(_sum, (f"file://{place}/meet", int(values), str(out)), nprocs=2)
        return float(out.read_text())


def _sum(rank: int, meet: str, values: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    gradients, times = torch.zeros(values), []
    for _ in range(20):
        before = time.perf_counter()
        dist.all_reduce(gradients)
        times.append(time.perf_counter() - before)
    if rank == 0:
        Path(out).write_text(str(statistics.median(times)))
    dist.destroy_process_group()


def _all_reduce(count: int, size: float, link: float, latency: float) -> float:
    """Seconds in which trees of GPUs sum: all bytes twice over a link, and the trees' depth."""
    return 2 * (count - 1) / count * size / link + 2 * math.ceil(math.log2(count)) * latency


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


if __name__ == "__main__":
    main()
