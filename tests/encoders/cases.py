"""What the contract cases of all encoders share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

TEXTS = ["cat", "a cat and a dog met a bird", "the dog sang", ""]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *["a", "and", "bird", "cat", "dog", "met", "the"]]
IMAGES = [
    np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    for seed, size in enumerate([(40, 32, 3), (32, 48, 3), (64, 64, 3)])
]


def shaken(encoder: Any) -> Any:
    """With no weight left at the zero or one of its initialisation, which would hide mistakes."""
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return encoder
