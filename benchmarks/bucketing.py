"""What batches of similar length save: padding and time of an epoch, side by side.

    python benchmarks/bucketing.py --encoder minilm
    python benchmarks/bucketing.py --encoder minilm --texts products.csv --column title

Without --texts, texts of random length are made: log-normal, 30 words in the median, as reviews and
descriptions are. The encoder is frozen and prompted. Epochs of both kinds take turns on one thread
of the CPU, and what is counted is that process's own time, so that others do not disturb.
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fusionkit.config.validate import experiment_from_mapping
from fusionkit.data.lengths import lengths_of, padding_share
from fusionkit.data.loading import Loader
from fusionkit.data.read import read_columns
from fusionkit.training.run import make_loaders, prepare

_SETTINGS: dict[str, dict[str, Any]] = {
    "random": {},
    "bucket_by_length": {"bucket_by_length": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--encoder", default="bert", help="a text encoder")
    parser.add_argument("--model", help="its model, if it takes one")
    parser.add_argument(
        "--texts", type=Path, help="CSV, TSV, JSONL or Parquet; made up if not given"
    )
    parser.add_argument("--column", default="text", help="column of --texts")
    parser.add_argument("--samples", type=int, default=400, help="texts of an epoch")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=1, help="of each kind")
    given = parser.parse_args()
    rng = random.Random(0)
    if given.texts:
        column = read_columns(given.texts).column(given.column).to_pylist()
        texts = rng.sample([text for text in column if text], given.samples)
    else:
        counts = [min(200, max(3, int(rng.lognormvariate(3.4, 0.8)))) for _ in range(given.samples)]
        texts = [" ".join(rng.choices(("red", "shirt", "with", "a", "blue"), k=n)) for n in counts]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loaders, model = _build(given, texts, Path(folder))
        seconds = dict.fromkeys(_SETTINGS, 0.0)
        for epoch in range(given.epochs):
            for name, loader in loaders.items():
                loader.set_epoch(epoch)
                seconds[name] += _epoch(model, loader)
        lengths = lengths_of(loader.dataset.samples, loader.dataset.roles)
    assert lengths is not None
    shape = f"{lengths.min()} to {lengths.max()} tokens, {lengths.mean():.1f} in the mean"
    print(f"{len(texts):,} texts of {shape}; batches of {given.batch_size}")
    for name, loader in loaders.items():
        padding = padding_share(loader.batch_sampler.plan(), lengths)
        each = seconds[name] / given.epochs
        print(f"{name:17} padding {padding:6.1%}   {each:6.1f} CPU seconds an epoch")
    print(f"ratio {seconds['random'] / seconds['bucket_by_length']:.2f}")


def _build(
    given: argparse.Namespace, texts: list[str], folder: Path
) -> tuple[dict[str, Loader], torch.nn.Module]:
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("text", "label"), *((text, place % 2) for place, text in enumerate(texts))]
        )
    encoder = {"name": given.encoder} | ({"model": given.model} if given.model else {})
    experiment = experiment_from_mapping(
        {
            "main": encoder,
            "main_transfer": {"name": "prompt", "length": 4},
            "fusion": "main_only",
            "data": {
                "name": "table",
                "files": {"train": str(folder / "train.csv"), "val": str(folder / "train.csv")},
                "fields": {"text": "text"},
                "label": "label",
            },
        }
    )
    dataset, splits, model, fields = prepare(experiment, {})
    loaders = {}
    for name, settings in _SETTINGS.items():
        loader = {"batch_size": given.batch_size, "workers": 0, **settings}
        of_kind = experiment_from_mapping({**experiment.resolved, "loader": loader})
        train = {"train": splits["train"]}
        loaders[name] = make_loaders(of_kind, dataset, train, model, fields, {})["train"]
    return loaders, model


def _epoch(model: torch.nn.Module, loader: Loader) -> float:
    started = time.process_time()
    for batch in loader:
        logits = model(batch["inputs"]).logits
        torch.nn.functional.cross_entropy(logits, batch["target"]).backward()
        model.zero_grad()
    return time.process_time() - started


if __name__ == "__main__":
    main()
