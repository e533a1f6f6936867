"""Augmentation of images as a config states it: transforms of torchvision, by name."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from fusionkit.errors import ConfigError, suggest

Augment = Literal["none", "crop", "randaugment"] | list[str | dict[str, Any]] | None

PRESETS: Mapping[str, list[str | dict[str, Any]]] = {
    "crop": ["RandomResizedCrop", "RandomHorizontalFlip"],
    "randaugment": ["RandomResizedCrop", "RandAugment"],
}

_RESIZES = {"RandomResize", "RandomResizedCrop", "RandomShortestSize", "Resize", "ScaleJitter"}
_CROPS = {"CenterCrop", "RandomCrop"}
_ON_TENSORS = (InterpolationMode.NEAREST, InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
_REFUSED = ("Lambda", "Transform")  # code, and what the others are made of

_TRIAL_SIZE = (37, 41)  # that nobody states
_TRIALS = 8  # of transforms that act by chance


def make_transforms(
    augment: Augment, size: tuple[int, int], interpolation: InterpolationMode
) -> list[v2.Transform]:
    """The transforms that a config names, in order, for images (C, H, W) of uint8.

    Args:
        augment: ``crop``, ``randaugment``, or a list of names and {name: ..., ...} of
            torchvision.transforms.v2; those that hold others take such a list as ``transforms``.
        size: (H, W) for those that take a ``size`` that is not stated.
        interpolation: For these; bicubic where tensors cannot be resized so.

    Raises:
        ConfigError: An unknown name, or arguments that it does not take.
    """
    if interpolation not in _ON_TENSORS:
        interpolation = InterpolationMode.BICUBIC
    return [_make(item, size, interpolation) for item in _items(augment)]


def comes_first(augment: Augment) -> Literal["nothing", "resize", "resize and crop"]:
    """What of the backbone's own preprocessing goes ahead of the transforms."""
    names = set(_names(_items(augment)))
    return "nothing" if names & _RESIZES else "resize" if names & _CROPS else "resize and crop"


def check_augment(augment: Augment) -> Augment:
    """The same, if it can be done: a list is tried on noise, on any device and without weights.

    Raises:
        ConfigError: See :func:`make_transforms`; or a transform fails on images, or together they
            do not end in an image of the backbone's size.
    """
    if not isinstance(augment, list):
        return augment
    # The encoder may be under construction on the meta device, and draws its weights at random.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        changes = make_transforms(augment, _TRIAL_SIZE, InterpolationMode.BILINEAR)
        height, width = {
            "nothing": (64, 80),
            "resize": (_TRIAL_SIZE[0], 2 * _TRIAL_SIZE[1]),
            "resize and crop": _TRIAL_SIZE,
        }[comes_first(augment)]
        for _ in range(_TRIALS):
            image: Any = torch.randint(256, (3, height, width), dtype=torch.uint8)
            image = v2.functional.to_image(image)
            for change in changes:
                image = _tried(change, image)
            if image.dtype != torch.uint8 or image.shape != (3, *_TRIAL_SIZE):
                raise ConfigError(_misshapen(augment, image))
    return augment


def _items(augment: Augment) -> Sequence[str | Mapping[str, Any]]:
    return augment if isinstance(augment, list) else PRESETS.get(augment or "none", [])


def _names(items: Sequence[Any]) -> Iterator[str]:
    for item in items:
        name, args = _parts(item)
        yield name
        yield from _names(args.get("transforms", []))


def _parts(item: Any) -> tuple[str, dict[str, Any]]:
    args = {"name": item} if isinstance(item, str) else item
    if not isinstance(args, Mapping) or not isinstance(args.get("name"), str):
        raise ConfigError(
            f"augment: each is a transform's name, or {{name: ..., ...}} with its arguments, "
            f"given {item!r}."
        )
    return args["name"], {str(key): value for key, value in args.items() if key != "name"}


def _make(item: Any, size: tuple[int, int], interpolation: InterpolationMode) -> v2.Transform:
    name, args = _parts(item)
    known = _known()
    if name not in known:
        raise ConfigError(
            f"augment: torchvision.transforms.v2 has no {name!r} for a config."
            f"{suggest(name, known)}"
        )
    takes = list(inspect.signature(known[name]).parameters)
    for key in args:
        if key not in takes:
            raise ConfigError(
                f"augment: {name} has no argument {key!r}.{suggest(key, takes)} {_takes(takes)}"
            )
    made = dict(args)
    if "transforms" in args:
        if not isinstance(args["transforms"], list):
            raise ConfigError(f"augment: {name} takes a list of transforms.")
        made["transforms"] = [_make(inner, size, interpolation) for inner in args["transforms"]]
    if "size" in takes:
        made = {"size": size} | made
        if "interpolation" in takes:
            made = {"interpolation": interpolation} | made
    try:
        if isinstance(made.get("interpolation"), str):
            made["interpolation"] = InterpolationMode(made["interpolation"])
        return known[name](**made)
    except Exception as error:
        raise ConfigError(
            f"augment: {name} cannot be made with {args}: {_text(error)} {_takes(takes)}"
        ) from error


def _known() -> dict[str, type[v2.Transform]]:
    found = {name: getattr(v2, name) for name in dir(v2) if name not in _REFUSED}
    return {
        name: kind
        for name, kind in found.items()
        if inspect.isclass(kind) and issubclass(kind, v2.Transform)
    }


def _tried(change: v2.Transform, image: Tensor) -> Tensor:
    try:
        changed = change(image)
    except Exception as error:
        raise ConfigError(
            f"augment: {type(change).__name__} fails on an image of {_size(image)}: {_text(error)}"
        ) from error
    if not isinstance(changed, Tensor):
        raise ConfigError(
            f"augment: {type(change).__name__} makes a {type(changed).__name__} of an image; take "
            f"transforms that make one image."
        )
    return changed


def _misshapen(augment: Augment, image: Tensor) -> str:
    """What is wrong with the result of a list."""
    if image.dtype != torch.uint8 or len(image) != 3:
        return (
            f"augment: what comes of {', '.join(_names(_items(augment)))} is no image of three "
            f"channels of uint8, but {len(image)} of {image.dtype}. Leave conversions out; the "
            f"backbone's own are done at the end."
        )
    return (
        f"augment: what comes of {', '.join(_names(_items(augment)))} has not the encoder's size. "
        f"End with a crop or Resize, and leave its `size` out: it is the encoder's."
    )


def _takes(takes: Sequence[str]) -> str:
    return f"It takes: {', '.join(takes)}." if takes else "It takes no arguments."


def _text(error: Exception) -> str:
    text = textwrap.shorten(str(error), 200, placeholder=" ...")
    return f"{text.rstrip('.') or type(error).__name__}."


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]} x {image.shape[-1]}"
