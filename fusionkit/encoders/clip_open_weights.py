"""Architectures, weights and preprocessing of open_clip, one tower at a time."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor

from fusionkit.encoders.transformers_weights import fetch
from fusionkit.encoders.weights import building_on_meta, locate
from fusionkit.errors import ConfigError, WeightsError, suggest
from fusionkit.registry import require

open_clip: Any = require("open_clip", "open_clip")

Part = Literal["image", "text"]

_DEFAULT = "ViT-B-32"

# The strongest of many; models that are not listed have OpenAI's or one only.
DEFAULT_TAGS = {
    "ViT-B-16": "laion2b_s34b_b88k",
    "ViT-B-32": "laion2b_s34b_b79k",
    "ViT-H-14": "laion2b_s32b_b79k",
    "ViT-L-14": "laion2b_s32b_b82k",
    "ViT-g-14": "laion2b_s34b_b88k",
}

_CONFIG = "open_clip_config.json"
_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_REMEDY = (
    "Give a local folder with `model: PATH`, a file with `weights: PATH`, or `weights: random`."
)
_OTHER_KEYS = ("visual.", "text.", "text_decoder.", "logit_scale", "logit_bias")


@dataclass(frozen=True)
class Source:
    """What is known of a model before it is built.

    Attributes:
        name: As the user gave it; None for a net of one's own.
        config: open_clip's: ``embed_dim``, ``vision_cfg``, ``text_cfg``, ...
        preprocess: What images of the weights are preprocessed with, open_clip's keys.
        tag: Which of open_clip's pretrained weights, for a built-in name.
        repository: Of the hub, or None.
        folder: Local, or None.
    """

    name: str | None
    config: dict[str, Any]
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    tag: str | None = None
    repository: str | None = None
    folder: Path | None = None


def source_of(
    model: str | None, weights: str, tag: str | None, config: dict[str, Any] | None
) -> Source:
    """What an encoder's arguments ask for; ViT-B-32 if neither ``model`` nor ``config`` is given.

    Raises:
        ConfigError: Both are given, pretrained weights for a net of one's own, or see
            :func:`find`.
        WeightsError: See :func:`find`.
    """
    if config is None:
        source = find(model or _DEFAULT, tag)
        if weights == "pretrained" and not (source.tag or source.repository or source.folder):
            tags = ", ".join(_tags(_name(source.name))) or "none, so set `weights`"
            raise ConfigError(f"Say which weights of {source.name!r} with `tag`; it has: {tags}.")
        return source
    if model is not None or tag is not None:
        raise ConfigError("Give either `model` (a name or a folder) or `config` (a net's own).")
    if weights == "pretrained":
        raise ConfigError(
            "A net described by `config` has no pretrained weights of its own. "
            "Set `weights: random` or `weights: PATH`, or give `model` instead."
        )
    return Source(None, config)


def find(model: str, tag: str | None) -> Source:
    """The architecture of a model and where its weights are.

    Raises:
        ConfigError: An unknown name or tag, or weights for another activation.
        WeightsError: The configuration was not found.
    """
    given = locate(model).removeprefix("local-dir:")
    folder = Path(given).expanduser()
    if model.startswith("hf-hub:"):
        repository = model.removeprefix("hf-hub:")
        stated = _read_config(Path(_download(repository, (_CONFIG,))))
        source = Source(model, **stated, repository=repository)
    elif folder.is_dir():
        if not (folder / _CONFIG).is_file():
            raise WeightsError(f"The folder {model!r} has no {_CONFIG}. {_REMEDY}")
        source = Source(model, **_read_config(folder / _CONFIG), folder=folder)
    else:
        return _built_in(model, tag)
    if tag is not None:
        raise ConfigError(f"`tag: {tag}` is for open_clip's own model names, given {model!r}.")
    return source


def _read_config(path: Path) -> dict[str, Any]:
    stated = json.loads(path.read_text(encoding="utf-8"))
    if "model_cfg" not in stated:
        raise WeightsError(f"{path} states no `model_cfg`, so it is not open_clip's.")
    return {"config": stated["model_cfg"], "preprocess": stated.get("preprocess_cfg", {})}


def _built_in(model: str, tag: str | None) -> Source:
    name = _name(model)
    config = open_clip.get_model_config(name)
    if config is None:
        hint = suggest(name, open_clip.list_models())
        if "/" in model:
            hint = f" There is no such folder; a model on the hub is written 'hf-hub:{model}'."
        raise ConfigError(
            f"open_clip has no model {model!r}.{hint} open_clip.list_models() lists all of them."
        )
    tags = {t: open_clip.get_pretrained_cfg(name, t) for t in _tags(name)}
    fitting = [t for t in tags if _quick(tags[t]) == _quick(config)]
    if tag is None:
        tag = DEFAULT_TAGS.get(name) or ("openai" if "openai" in fitting else None)
        tag = tag or (fitting[0] if len(fitting) == 1 else None)
    elif tag not in tags:
        raise ConfigError(
            f"open_clip has no weights {tag!r} of {model!r}.{suggest(tag, tags)} "
            f"It has: {', '.join(tags) or 'none'}."
        )
    elif tag not in fitting:  # open_clip only warns, and computes another function
        other = name.removesuffix("-quickgelu") if _quick(config) else f"{name}-quickgelu"
        raise ConfigError(
            f"The weights {tag!r} were trained with {'QuickGELU' if _quick(tags[tag]) else 'GELU'}"
            f", {model!r} has the other activation. Set `model: {other}`."
        )
    return Source(model, config, {} if tag is None else tags[tag], tag)


def _name(model: str | None) -> str:
    return str(model).replace("/", "-")  # OpenAI writes ViT-B/32


def _tags(name: str) -> list[str]:
    tags: list[str] = open_clip.list_pretrained_tags_by_model(name)
    return tags


def _quick(config: Mapping[str, Any]) -> bool:
    return bool(config.get("quick_gelu"))


def build_tower(part: Part, source: Source, weights: str, image_size: int | None = None) -> Any:
    """One tower with its weights; without any under the meta device.

    Args:
        part: Which of the two.
        source: From :func:`find`.
        weights: ``pretrained``, ``random``, or a local file or folder, of a whole model or of
            this tower alone.
        image_size: Side of the input that an image tower is built for; None for the model's own.

    Raises:
        ConfigError: The config has keys that open_clip does not know.
        WeightsError: The weights were not found or do not fit.
    """
    loads = not building_on_meta() and weights != "random"
    path = _weights_file(source, weights) if loads else None
    section = dict(source.config["vision_cfg" if part == "image" else "text_cfg"])
    if image_size is not None:
        section["image_size"] = image_size
    # Private, but the only way to build one tower: the public ones build both.
    models = open_clip.model
    make = models._build_vision_tower if part == "image" else models._build_text_tower
    try:
        tower = make(source.config["embed_dim"], section, _quick(source.config))
    except (TypeError, AssertionError) as error:
        raise ConfigError(f"open_clip cannot build the {part} tower: {error}") from error
    if path is None:
        return tower
    state = _tower_state(part, _read(path))
    if image_size is not None:
        _resize_positions(tower, state)
    _load(tower, state, path, f"the {part} tower of {source.name or 'this `config`'}")
    return tower


def _weights_file(source: Source, weights: str) -> Path:
    if weights != "pretrained":
        path = Path(locate(weights)).expanduser()
        return _in_folder(path) if path.is_dir() else path
    if source.folder is not None:
        return _in_folder(source.folder)
    if source.repository is not None:
        return Path(_download(source.repository, _FILES))
    stated = source.preprocess  # a tag states both
    if stated.get("hf_hub"):
        repository, _, file = stated["hf_hub"].rpartition("/")
        return Path(_download(repository, (file,) if file else _FILES))
    try:
        return Path(open_clip.download_pretrained_from_url(stated["url"]))
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"The weights {source.tag!r} of {source.name!r} were looked for at {stated['url']}: "
            f"{error}. {_REMEDY}"
        ) from error


def _in_folder(folder: Path) -> Path:
    names = (*_FILES, "model.safetensors", "pytorch_model.bin")
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise WeightsError(f"{folder} holds none of {', '.join(names)}. {_REMEDY}")
    return found


def _download(repository: str, files: Sequence[str]) -> str:
    """The first of some files that a repository of the hub has, from the cache if possible."""

    def read(name: str, local_files_only: bool = False) -> str:
        for file in files[:-1]:
            try:
                return hf_hub_download(name, file, local_files_only=local_files_only)
            except EntryNotFoundError:
                continue
        return hf_hub_download(name, files[-1], local_files_only=local_files_only)

    found: str = fetch(read, repository, " or ".join(files), _REMEDY)
    return found


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"The weights were looked for in {path}: no such file. {_REMEDY}")
    try:
        state = open_clip.factory.load_state_dict(str(path))
    # Each reader has error classes of its own for damaged files.
    except Exception as error:
        reason = textwrap.shorten(str(error), 300)
        raise WeightsError(f"The weights in {path} cannot be read: {reason}") from error
    return dict(state)


def _tower_state(part: Part, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "visual." if part == "image" else "text."
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    # The text tower of the plain CLIP has no prefix, nor has a tower that was saved alone.
    return inside or {k: v for k, v in state.items() if not k.startswith(_OTHER_KEYS)}


def _resize_positions(tower: Any, state: dict[str, Tensor]) -> None:
    whole = {f"visual.{key}": value for key, value in state.items()}
    open_clip.model.resize_pos_embed(whole, SimpleNamespace(visual=tower))
    state.update({key.removeprefix("visual."): value for key, value in whole.items()})


def _load(tower: Any, state: Mapping[str, Tensor], path: Path, what: str) -> None:
    own = tower.state_dict()
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is not part of it" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        rest = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(
            f"The weights in {path} do not fit {what}: {'; '.join(problems[:3])}{rest}. "
            f"Give the model they belong to, or other weights."
        )
    tower.load_state_dict(state)


def preprocessing(source: Source) -> dict[str, Any]:
    """open_clip's preprocessing of images for these weights; its defaults where none is stated."""
    transform = open_clip.transform
    merged = transform.merge_preprocess_dict(transform.PreprocessCfg(), dict(source.preprocess))
    return {**asdict(transform.PreprocessCfg()), **merged}


def tokenizer_of(source: Source) -> Any:
    """open_clip's tokenizer for a model: callable with texts and a length.

    Raises:
        WeightsError: It is one of the hub and was not found.
    """
    if source.name is None:
        return open_clip.SimpleTokenizer(**source.config["text_cfg"].get("tokenizer_kwargs", {}))
    built_in = source.name if source.repository else _name(source.name)
    try:
        return open_clip.get_tokenizer(f"local-dir:{source.folder}" if source.folder else built_in)
    except (OSError, ValueError) as error:
        raise WeightsError(f"The tokenizer of {source.name!r} was not found: {error}") from error
