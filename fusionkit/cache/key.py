"""Under which name features are kept: everything that they depend on beside the value itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from fusionkit.cache.compute import Computer
from fusionkit.cache.digest import digest, digest_sources, pickled
from fusionkit.cache.plan import Plan
from fusionkit.config.schema import CacheConfig, Component
from fusionkit.encoders.base import ComplementEncoder
from fusionkit.transfer.base import Transfer

_FORMAT = 1  # of rows and keys
_LIBRARIES = (
    "av", "fusionkit", "numpy", "open_clip_torch", "pillow", "scipy", "soundfile", "timm",
    "tokenizers", "torch", "torchaudio", "torchvision", "transformers",
)  # fmt: skip


def describe(
    component: Component, transfer: Transfer, plan: Plan, config: CacheConfig
) -> dict[str, Any]:
    """What features depend on, as plain values.

    Args:
        component: Of the config: name and arguments of the encoder.
        transfer: Of the encoder, with its weights.
        plan: What is kept.
        config: How.
    """
    encoder = transfer.encoder
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
        "settings": digest(*_settings(encoder)).hex(),
        "preprocessing": digest(pickled(preprocessor)).hex(),
        "sources": digest_sources(
            [*map(type, inner), type(preprocessor), type(transfer), Computer]
        ).hex(),
        "versions": _versions(),
    }


def key_of(description: dict[str, Any]) -> str:
    """The name of the store of what :func:`describe` says."""
    text = json.dumps(description, sort_keys=True)
    return f"{description['encoder']}-{digest(text.encode()).hex()}"


def _weights(encoder: ComplementEncoder) -> Iterator[bytes]:
    for name, value in sorted(encoder.state_dict().items()):
        yield name.encode()
        yield pickled(value)


def _settings(encoder: ComplementEncoder) -> Iterator[bytes]:
    """What a model does with its weights: its config, its modules, and buffers it does not save."""
    yield re.sub(r" at 0x[0-9a-f]+", "", repr(encoder)).encode()
    for module in encoder.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "to_json_string"):  # of transformers
            yield config.to_json_string(use_diff=False).encode()
    saved = encoder.state_dict().keys()
    for name, value in encoder.named_buffers():
        if name not in saved:
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
