"""Slim checkpoints: what was trained, and all that is needed to rebuild the rest.

A checkpoint is one safetensors file. Its metadata hold the resolved config, the classes, the
versions and a hash of the frozen weights of every encoder, which are not saved.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fusionkit.data.base import Task
from fusionkit.encoders.base import ComplementEncoder
from fusionkit.errors import CheckpointError
from fusionkit.fusion.model import FusionModel, group_of

FORMAT = 2
FILE_NAME = "model.safetensors"
_LIBRARIES = (
    "fusionkit", "lightning", "open_clip_torch", "peft", "timm", "torch", "torchaudio",
    "transformers",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Description:
    """What a checkpoint says of itself.

    Attributes:
        config: The experiment's resolved config.
        task: What is predicted.
        classes: Class names in index order; None for regression.
        fields: Field by encoder role.
        frozen: Hash of the frozen weights by encoder role.
        metrics: Validation metrics at the time.
        epoch: Finished epochs.
        versions: Of the libraries that made it.
        format: Of this description.
    """

    config: Mapping[str, Any]
    task: Task
    classes: list[str] | None
    fields: Mapping[str, str]
    frozen: Mapping[str, str]
    metrics: Mapping[str, float]
    epoch: int
    versions: Mapping[str, str]
    format: int = FORMAT


@cache
def library_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):  # some come with extras only
            found[name] = metadata.version(name)
    return found


def trained_names(model: FusionModel) -> set[str]:
    """Names of the tensors a checkpoint holds.

    These are all parameters that are trained, and the buffers of the fusion, the head, and of
    every encoder of which something is trained (running statistics, for example) or that takes
    statistics of the training split.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    alive = {_encoder_of(name) for name in trained}
    alive |= {
        role for role, transfer in model.fusion.encoders.items() if _takes_statistics(transfer)
    }
    parameters = dict(model.named_parameters())
    buffers = {name for name in model.state_dict() if name not in parameters}
    return trained | {
        name for name in buffers if (owner := _encoder_of(name)) is None or owner in alive
    }


def _encoder_of(name: str) -> str | None:
    """The role whose upstream model a tensor belongs to; None for everything that is ours."""
    parts = name.split(".")
    return parts[2] if parts[:2] == ["fusion", "encoders"] and parts[3] == "encoder" else None


def _takes_statistics(transfer: Any) -> bool:
    return type(transfer.encoder).fit_statistics is not ComplementEncoder.fit_statistics


def frozen_hashes(model: FusionModel) -> dict[str, str]:
    """SHA-256 of the frozen weights and buffers, by encoder role."""
    trained = trained_names(model)
    groups: dict[str, list[tuple[str, Tensor]]] = {}
    for name, value in sorted(model.state_dict().items()):
        if name not in trained:
            groups.setdefault(group_of(name), []).append((name, value))
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to others
        return dict(zip(groups, pool.map(_digest, groups.values()), strict=True))


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_names(saved: Iterable[str], wanted: Iterable[str], where: str) -> None:
    """Compare the tensors of a checkpoint with those a model trains.

    Raises:
        CheckpointError: They differ; the message names some of each.
    """
    missing, unexpected = sorted(set(wanted) - set(saved)), sorted(set(saved) - set(wanted))
    if missing or unexpected:
        raise CheckpointError(
            f"{where} belongs to another model: {len(missing)} trained tensors are missing "
            f"({_some(missing)}), {len(unexpected)} are unexpected ({_some(unexpected)}). "
            f"Use the config the checkpoint was made with."
        )


def check_frozen(saved: Mapping[str, str], now: Mapping[str, str], where: str) -> None:
    """Compare the hashes of the frozen weights a checkpoint was trained upon with a model's.

    Raises:
        CheckpointError: They differ; the message names the encoders.
    """
    differing = sorted(
        role for role in saved.keys() | now.keys() if saved.get(role) != now.get(role)
    )
    if differing:
        raise CheckpointError(
            f"{where} was trained upon other frozen weights of: {', '.join(differing)}. "
            f"Point that encoder's `weights` (or `model`) to the weights used in training."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"


def save(path: Path, model: FusionModel, description: Description) -> None:
    """Write a checkpoint; a half-written one never replaces a whole one."""
    wanted = trained_names(model)
    tensors: dict[str, Tensor] = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if name in wanted
    }
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata={"fusionkit": json.dumps(asdict(description))})
    os.replace(unfinished, path)


def find_file(path: str | Path) -> Path:
    """The checkpoint in a file, a run folder, or the newest run of an experiment's folder.

    Raises:
        CheckpointError: There is none.
    """
    given = Path(path)
    runs = sorted((run for run in given.glob("*") if run.name.isdigit()), key=lambda r: int(r.name))
    for found in (given, given / FILE_NAME, *(run / FILE_NAME for run in reversed(runs))):
        if found.is_file():
            return found
    raise CheckpointError(
        f"No checkpoint at {given}. Give a run folder (it holds {FILE_NAME}) or that file."
    )


def describe(path: str | Path) -> Description:
    """Read a checkpoint's description without its tensors.

    Raises:
        CheckpointError: It is missing, damaged, or of another format.
    """
    found = find_file(path)
    try:
        with safe_open(found, "pt") as file:
            content = (file.metadata() or {}).get("fusionkit")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{found} is not a readable checkpoint: {error}") from error
    if content is None:
        raise CheckpointError(f"{found} is a safetensors file, but not a fusionkit checkpoint.")
    fields = json.loads(content)
    if fields["format"] > FORMAT:
        raise CheckpointError(
            f"{found} has format {fields['format']}, this fusionkit reads up to {FORMAT}; update "
            f"fusionkit to {fields['versions'].get('fusionkit', 'a newer version')} or later."
        )
    if fields["format"] < FORMAT:
        raise CheckpointError(
            f"{found} has format {fields['format']}, whose prompts are stored otherwise than in "
            f"format {FORMAT}, which this fusionkit reads; train again, or read it with the "
            "fusionkit that made it."
        )
    return Description(**fields)


def load_into(
    model: FusionModel, path: str | Path, frozen: Mapping[str, str] | None = None
) -> None:
    """Load a checkpoint's tensors into a model, strictly.

    Args:
        model: Built from the checkpoint's config.
        path: See :func:`find_file`.
        frozen: Hashes of the model's frozen weights, if they are known.

    Raises:
        CheckpointError: A tensor is missing, unexpected or of another shape, or the frozen
            weights are not those of training.
    """
    found = find_file(path)
    description = describe(found)
    with safe_open(found, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_names(tensors, trained_names(model), str(found))
    state = model.state_dict()
    for name, value in tensors.items():
        if value.shape != state[name].shape:
            raise CheckpointError(
                f"{found}: {name} has shape {tuple(value.shape)}, the model's has "
                f"{tuple(state[name].shape)}. Use the config the checkpoint was made with."
            )
    check_frozen(description.frozen, frozen or frozen_hashes(model), str(found))
    model.load_state_dict(tensors, strict=False)  # strict by the checks above
