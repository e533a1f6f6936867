"""Frozen convolutional complements against plain inference of upstream's own.

python -m benchmarks complements
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import timm
import torch

from benchmarks.harness import Row, take_turns
from fusionkit.encoders.timm_cnn import TimmCNN

MODELS = {"ResNet-50": "resnet50", "EfficientNet-B0": "efficientnet_b0"}
_BATCH = {"cpu": 8, "cuda": 256}


def rows(quick: bool) -> Iterator[Row]:
    """Encoding images of 224 pixels.

    Args:
        quick: Few rounds of the first: to see that it runs.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rounds = 2 if quick else 7
    pixels = torch.randn(_BATCH[device], 3, 224, 224, device=device)
    for title, model in list(MODELS.items())[: 1 if quick else None]:
        ours = TimmCNN(model, "random").to(device).eval()
        upstream = timm.create_model(model, num_classes=0).to(device).eval()
        sides: dict[str, Callable[[], object]] = {
            "encoded": partial(ours.encode, {"pixels": pixels}),
            "upstream": partial(upstream, pixels),
        }
        with torch.inference_mode():
            taken = take_turns(sides, rounds)
        name = f"{title}, 224 px: frozen complement / upstream"
        yield Row.of(name, taken, "encoded", "upstream", 1.0, rounds)
