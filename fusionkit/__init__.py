"""Parameter-efficient fusion of pretrained encoders by conditional prompts.

Importing this package imports neither torch nor any encoder: the public names below are
resolved when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "ComplementEncoder": "fusionkit.encoders.base",
    "MainEncoder": "fusionkit.encoders.base",
    "TokenState": "fusionkit.encoders.base",
    "Features": "fusionkit.encoders.base",
    "Preprocessor": "fusionkit.encoders.base",
    "Fusion": "fusionkit.fusion.base",
    "FusionOutput": "fusionkit.fusion.base",
    "ConditionalPrompts": "fusionkit.prompts.engine",
    "Transfer": "fusionkit.transfer.base",
    "Dataset": "fusionkit.data.base",
    "Sample": "fusionkit.data.base",
    "Predictor": "fusionkit.training.predictor",
    "fit": "fusionkit.training.api",
    "load": "fusionkit.training.predictor",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fusionkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
