"""Where pretrained weights come from: the hub, a local path, or the package itself."""

from __future__ import annotations

from pathlib import Path

import torch

from fusionkit.errors import WeightsError, suggest

SHIPPED = Path(__file__).resolve().parent.parent / "pretrained"


def locate(model: str) -> str:
    """A model name as the libraries understand it: ``fusionkit/NAME`` becomes its folder.

    Raises:
        WeightsError: No weights of that name ship with fusionkit.
    """
    if not model.startswith("fusionkit/"):
        return model
    name = model.removeprefix("fusionkit/")
    known = sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())
    if name not in known:
        raise WeightsError(
            f"No weights {model!r} ship with fusionkit.{suggest(name, known)} "
            f"Known: {', '.join('fusionkit/' + other for other in known)}."
        )
    return str(SHIPPED / name)


def building_on_meta() -> bool:
    """Whether modules made now get no storage (``with torch.device("meta")``)."""
    return torch.get_default_device().type == "meta"
