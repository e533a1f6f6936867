"""A whole epoch from files on disk against the same steps on batches that are in memory.

    python -m benchmarks loading

Photos of 500 x 375 pixels as JPEG files and sentences in a CSV, read and preprocessed by two
workers; ViT-B is prompted on condition of BERT-base, both with random weights.
"""

from __future__ import annotations

import csv
import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from PIL import Image

from benchmarks.harness import Row, take_turns
from benchmarks.steps import Training
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.training.run import make_loaders, prepare

_CONFIG: dict[str, Any] = {
    "main": {"name": "timm_vit", "model": "vit_base_patch16_224", "weights": "random"},
    "complement": {
        "name": "bert",
        "config": {"model_type": "bert"},
        "weights": "random",
        "tokenizer": "fusionkit/claims-transformer",
    },
    "complement_transfer": "frozen",
    "loader": {"batch_size": 8, "workers": 2},
}
_WORDS = [
    "the",
    "number",
    "in",
    "this",
    "picture",
    "is",
    "larger",
    "than",
    "seven",
    "and",
    "even",
    "or",
    "not",
    "three",
]


def rows(quick: bool) -> Iterator[Row]:
    """One comparison.

    Args:
        quick: An epoch of two batches: to see that it runs.
    """
    rounds, samples = (1, 16) if quick else (3, 64)
    with tempfile.TemporaryDirectory() as place:
        data = write_table(Path(place), samples)
        experiment = experiment_from_mapping({**_CONFIG, "data": data}, "benchmarks/loading.py")
        dataset, splits, model, fields = prepare(experiment, {})
        train = {"train": splits["train"]}
        loader = make_loaders(experiment, dataset, train, model, fields)["train"]
        kept = list(loader)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        training = Training(model, kept[0], device)

        def epoch(batches: Iterable[Any]) -> None:
            for batch in batches:
                training.batch = move_data_to_device(batch, device)
                training.prompted()

        sides = {"from disk": lambda: epoch(loader), "from memory": lambda: epoch(kept)}
        taken = take_turns(sides, rounds)
    yield Row.of(f"epoch of {samples} photos and texts: from disk / from memory", taken,
                 "from disk", "from memory", 1.10, rounds)  # fmt: skip


def write_table(folder: Path, samples: int) -> dict[str, Any]:
    """A table of photos and sentences, and the config's ``data`` for it."""
    rng, words = np.random.default_rng(0), random.Random(0)
    table = folder / "table.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["photo", "sentence", "kind"])
        for number in range(samples):
            coarse = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)  # smooth, as photos are
            photo = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
            photo.save(folder / f"{number}.jpg", quality=90)
            sentence = " ".join(words.choices(_WORDS, k=words.randint(6, 20)))
            writer.writerow([f"{number}.jpg", sentence, ("a", "b", "c")[number % 3]])
    return {
        "name": "table",
        "files": {"train": str(table)},
        "fields": {"image": "photo", "text": "sentence"},
        "label": "kind",
    }
