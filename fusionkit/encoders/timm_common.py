"""Models of timm and their weights: what the image encoders of that library share."""

from __future__ import annotations

import socket
import textwrap
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.constants
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from timm.models import load_state_dict
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fusionkit.encoders.base import Inputs
from fusionkit.encoders.images import pixels_of
from fusionkit.encoders.weights import building_on_meta, locate
from fusionkit.errors import ConfigError, WeightsError, suggest

_ENCODER_OF = {VisionTransformer: "timm_vit", SwinTransformer: "timm_swin"}

_GIVEN_OTHERWISE = {  # keyword arguments of create_model that this package sets itself
    "num_classes": "the head belongs to fusionkit",
    "pretrained": "use `weights: pretrained` or `weights: random`",
    "checkpoint_path": "use `weights: PATH`",
    "pretrained_cfg_overlay": "use `weights: PATH`",
    "features_only": "the encoder needs the whole model",
}

_HEADS = ("head", "head.fc", "head_dist", "fc", "classifier")  # beside pretrained_cfg["classifier"]

_REMEDY = "give a local file or folder with `weights: PATH`, or `weights: random`"

# What reading, filtering and loading a file of another model raises.
_MISFITS = (RuntimeError, KeyError, ValueError, AttributeError, TypeError, IndexError)


def build_backbone(
    encoder: str,
    model: str,
    weights: str,
    options: Mapping[str, Any] | None,
    image_size: int | None,
) -> Any:
    """A timm model without classifier, with its weights; without any under the meta device.

    Args:
        encoder: Registry name of the encoder that asks: ``timm_vit``, ``timm_swin``, ``timm_cnn``.
        model: A name of timm, ``hf-hub:OWNER/NAME``, a folder in timm's layout (``config.json`` and
            ``model.safetensors``) or ``fusionkit/NAME``.
        weights: ``pretrained``, ``random``, or a local file or folder.
        options: Further keyword arguments of ``timm.create_model``.
        image_size: Side of the input that the model is built for; None for the model's own.

    Raises:
        ConfigError: An unknown model, one of another family, or options that it does not take.
        WeightsError: Weights that are not found or do not fit.
    """
    name = _resolve_name(model)
    kwargs = _checked_options(options, image_size)
    # Costs no memory, and tells mistakes in the config from mistakes in the weights.
    skeleton = _build_skeleton(name, model, kwargs)
    _check_family(encoder, model, skeleton)
    if building_on_meta():
        return skeleton
    if weights == "random":
        return timm.create_model(name, pretrained=False, **kwargs)
    if weights != "pretrained":
        return _load_local(name, model, Path(locate(weights)).expanduser(), kwargs, skeleton)
    if name.startswith("local-dir:"):
        return _load_local(name, model, Path(name.removeprefix("local-dir:")), kwargs, skeleton)
    return _load_hub(name, model, kwargs, skeleton)


def channels_of(backbone: Any, options: Mapping[str, Any] | None) -> int:
    """Number of image channels that a timm model is built for."""
    asked = (options or {}).get("in_chans")
    # Models of timm 1.0.22 lack the attribute, but not the input size of their source.
    return int(asked or getattr(backbone, "in_chans", backbone.pretrained_cfg["input_size"][0]))


def pixels_to_embed(backbone: Any, inputs: Inputs, encoder: str, channels: int) -> Tensor:
    """``inputs["pixels"]`` if timm's ``patch_embed`` takes their size, which some models fix.

    Raises:
        EncoderError: The key is missing or the shape is another one.
    """
    embed = backbone.patch_embed
    if getattr(embed, "strict_img_size", True):
        return pixels_of(inputs, encoder, channels, size=embed.img_size)
    multiple = (1, 1) if embed.dynamic_img_pad else embed.patch_size
    return pixels_of(inputs, encoder, channels, multiple=multiple)


def _resolve_name(model: str) -> str:
    """The model as timm names it, with ``local-dir:`` before folders."""
    name = locate(model)
    if name.startswith(("local-dir:", "hf-hub:")):
        return name
    if timm.is_model(name):
        return name
    if Path(name).expanduser().is_dir():
        return f"local-dir:{Path(name).expanduser()}"
    hint = suggest(name.split(".")[0], timm.list_models())
    if "/" in name:
        hint = f" There is no such folder; a model on the hub is written 'hf-hub:{name}'."
    raise ConfigError(f"timm has no model {model!r}.{hint} timm.list_models() lists all of them.")


def _checked_options(options: Mapping[str, Any] | None, image_size: int | None) -> dict[str, Any]:
    kwargs = dict(options or {})
    for key, instead in _GIVEN_OTHERWISE.items():
        if key in kwargs:
            raise ConfigError(f"`options: {key}` cannot be set: {instead}.")
    if kwargs.get("global_pool") == "":
        raise ConfigError("`options: global_pool` must not be empty: an encoder returns (B, C).")
    if image_size is not None:
        if kwargs.get("img_size", image_size) != image_size:
            raise ConfigError(
                f"`image_size: {image_size}` and `options: img_size: {kwargs['img_size']}` differ; "
                f"set one of them."
            )
        kwargs["img_size"] = image_size
    return {**kwargs, "num_classes": 0}


def _build_skeleton(name: str, model: str, kwargs: Mapping[str, Any]) -> Any:
    if name.startswith("hf-hub:"):
        _check_reachable(name.removeprefix("hf-hub:"), model, kwargs)
    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, **kwargs)
    except (OSError, HfHubHTTPError) as error:
        raise WeightsError(f"The configuration of {model!r} was not found: {error}") from error
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        given = {key: value for key, value in kwargs.items() if key != "num_classes"}
        raise ConfigError(f"timm cannot build {model!r} with options {given}: {error}") from error


def _check_family(encoder: str, model: str, backbone: Any) -> None:
    right = next((name for cls, name in _ENCODER_OF.items() if isinstance(backbone, cls)), None)
    if encoder == (right or "timm_cnn"):
        return
    instead = right or "timm_cnn (convolutional nets, as complement only)"
    raise ConfigError(
        f"The encoder {encoder} cannot run {model!r}, a {type(backbone).__name__}; use {instead}."
    )


def _load_hub(name: str, model: str, kwargs: dict[str, Any], skeleton: Any) -> Any:
    cfg = skeleton.pretrained_cfg
    source = cfg.get("hf_hub_id") or cfg.get("url")
    if cfg.get("hf_hub_id"):
        _check_reachable(cfg["hf_hub_id"], model, kwargs)
    try:
        return timm.create_model(name, pretrained=True, **kwargs)
    except (OSError, HfHubHTTPError, RuntimeError) as error:
        looked = f"looked for {source!r}" if source else "timm knows no place to look for them"
        raise WeightsError(
            f"Pretrained weights of {model!r} were not found ({looked}): "
            f"{textwrap.shorten(str(error), 300)}; {_REMEDY}."
        ) from error


def _check_reachable(hub_id: str, model: str, kwargs: Mapping[str, Any]) -> None:
    """Fail at once where the hub's client would retry for most of a minute: no name service."""
    host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname
    repository = "models--" + hub_id.split("@")[0].replace("/", "--")
    cache = Path(kwargs.get("cache_dir") or huggingface_hub.constants.HF_HUB_CACHE)
    if (cache / repository).exists() or urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise WeightsError(
            f"Pretrained weights of {model!r} were not found: {hub_id!r} is not in the cache "
            f"{cache} and {host} cannot be reached; {_REMEDY}."
        ) from error


def _load_local(name: str, model: str, path: Path, kwargs: dict[str, Any], skeleton: Any) -> Any:
    """Build a model with the weights of a file, strictly but for the file's classifier."""
    state = _drop_heads(_read(path, model), skeleton)
    # num_classes 0 in the overlay too: timm loads strictly only where the two numbers agree.
    overlay = {"state_dict": state, "source": "", "num_classes": 0, "label_offset": 0}
    try:
        backbone = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs
        )
    except _MISFITS as error:
        raise WeightsError(
            f"The weights in {path} do not fit the timm model {model!r}: {_first_lines(error)}. "
            f"Give the model they belong to, or other weights."
        ) from error
    del backbone.pretrained_cfg["state_dict"]  # or every copy of the model would carry it
    return backbone


def _read(path: Path, model: str) -> dict[str, Tensor]:
    file = path
    if path.is_dir():
        names = ("model.safetensors", "pytorch_model.bin")
        file = next((path / name for name in names if (path / name).is_file()), path / names[0])
    if not file.is_file():
        raise WeightsError(
            f"The weights of {model!r} were looked for in {file}: no such file; {_REMEDY}."
        )
    try:
        state: Any = load_state_dict(str(file))
    # Each reader has error classes of its own for damaged files.
    except Exception as error:
        reason = textwrap.shorten(str(error), 300)
        raise WeightsError(
            f"The weights of {model!r} in {file} cannot be read: {reason}"
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{file} holds no state dict of tensors for {model!r}.")
    return dict(state)


def _drop_heads(state: dict[str, Tensor], skeleton: Any) -> dict[str, Tensor]:
    named = skeleton.pretrained_cfg.get("classifier") or ()
    heads = {*_HEADS, *((named,) if isinstance(named, str) else named)}
    own = skeleton.state_dict()
    return {
        key: value
        for key, value in state.items()
        if key in own or key.rpartition(".")[0] not in heads
    }


def _first_lines(error: Exception) -> str:
    """The first keys of each complaint of ``load_state_dict``, or what else went wrong."""
    lines = str(error).splitlines()[1:] or [repr(error)]
    short = [textwrap.shorten(line, 240, placeholder=" ...") for line in lines[:5]]
    return " ".join(short).rstrip(". ")
