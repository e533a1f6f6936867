"""Where pretrained weights come from: the hub, a local path, or the package itself."""

from __future__ import annotations

import pickle
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import nn

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


def load_file(backbone: nn.Module, path: str, without: Collection[str] = ()) -> None:
    """Load all of a module's weights from a file, strictly.

    Args:
        backbone: What the file was made from.
        path: Written by safetensors (``.safetensors``), or by ``torch.save`` of a state_dict.
        without: Keys of the file that the module does without, such as a classifier's.

    Raises:
        WeightsError: The file cannot be read, or its weights are not the module's.
    """
    try:
        if Path(path).suffix == ".safetensors":
            found = load_safetensors(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
        state = {key: value for key, value in found.items() if key not in without}
        backbone.load_state_dict(state)
    except (OSError, EOFError, SafetensorError, pickle.UnpicklingError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(
            f"No weights can be read from {path!r}: {reason} Give a file that safetensors or "
            f"torch.save wrote, or `weights: random`."
        ) from error
    except RuntimeError as error:  # load_state_dict, or a file that is cut short
        reason = " ".join(str(error).split())[:400]
        raise WeightsError(f"The weights in {path!r} do not fit: {reason}") from error
