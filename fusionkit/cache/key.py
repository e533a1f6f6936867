"""Under which name features are kept: everything that they depend on beside the value itself."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

from fusionkit.cache.digest import digest, digest_sources, pickled
from fusionkit.cache.plan import Plan
from fusionkit.config.schema import CacheConfig, Component
from fusionkit.encoders.base import ComplementEncoder

_FORMAT = 1  # of rows and keys
_LIBRARIES = (
    "av", "fusionkit", "numpy", "open_clip_torch", "pillow", "scipy", "soundfile", "timm",
    "tokenizers", "torch", "torchaudio", "torchvision", "transformers",
)  # fmt: skip


def describe(
    component: Component, encoder: ComplementEncoder, plan: Plan, config: CacheConfig
) -> dict[str, Any]:
    """What features depend on, as plain values.

    Args:
        component: Of the config: name and arguments of the encoder.
        encoder: With its weights.
        plan: What is kept.
        config: How.
    """
    preprocessor = encoder.preprocessor(False)
    inner = [m for m in encoder.modules() if isinstance(m, ComplementEncoder)]
    return {
        "format": _FORMAT,
        "encoder": component.name,
        "arguments": {
            name: str(value)
            for name, value in sorted(component.init.items())
            if name != "augment"  # nothing that is augmented is kept
        },
        "what": plan.what,
        "dtype": config.dtype,
        "weights": digest(*_weights(encoder)).hex(),
        "preprocessing": digest(pickled(preprocessor)).hex(),
        "sources": digest_sources([*map(type, inner), type(preprocessor)]).hex(),
        "versions": _versions(),
    }


def key_of(description: dict[str, Any]) -> str:
    """The name of the store of what :func:`describe` says."""
    text = json.dumps(description, sort_keys=True)
    return f"{description['encoder']}-{digest(text.encode()).hex()}"


def _weights(encoder: ComplementEncoder) -> Any:
    for name, value in sorted(encoder.state_dict().items()):
        yield name.encode()
        yield pickled(value)


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an extra
    return found
