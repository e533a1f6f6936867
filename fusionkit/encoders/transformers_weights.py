"""Architectures and weights of transformers: local first, then the hub, strictly checked."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig
from transformers.utils import logging

from fusionkit.encoders.transformers_attention import PROMPTED
from fusionkit.encoders.transformers_known import known_config
from fusionkit.encoders.weights import building_on_meta, locate
from fusionkit.errors import ConfigError, WeightsError, suggest

REMEDY = "Give a local folder with `model: PATH` or `weights: PATH`, or `weights: random`."


def architecture(
    model: str | None, weights: str, config: Mapping[str, Any] | None, default: str
) -> tuple[Any, str | None]:
    """The architecture that an encoder's arguments ask for, named or spelled out.

    Returns:
        The architecture, and its name: ``default`` if neither ``model`` nor ``config`` is given,
        None for a net of one's own.

    Raises:
        ConfigError: Both are given, or pretrained weights for a net of one's own.
        WeightsError: The architecture was not found.
    """
    if config is None:
        name = model or default
        return read_config(name, weights), name
    if model is not None:
        raise ConfigError("Give either `model` (a name or a folder) or `config` (a net's own).")
    if weights == "pretrained":
        raise ConfigError(
            "A net described by `config` has no pretrained weights of its own. "
            "Set `weights: random` or `weights: PATH`, or give `model` instead."
        )
    return own_config(config), None


def own_config(config: Mapping[str, Any]) -> Any:
    """The architecture that a config file spells out.

    Raises:
        ConfigError: No ``model_type``, an unknown one, or a key that it does not have.
    """
    values = dict(config)
    kind = values.pop("model_type", None)
    if kind is None:
        raise ConfigError(
            f"`config` describes a net of one's own and needs `model_type`, given "
            f"{', '.join(values) or 'nothing'}. Add for example `model_type: bert`."
        )
    try:
        default = AutoConfig.for_model(kind)
        result = AutoConfig.for_model(kind, **values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"`config` with model_type {kind!r} was refused: {error}") from error
    known = {*default.to_dict(), *default.attribute_map}
    for key in values:
        if key not in known:
            raise ConfigError(f"A {kind!r} config has no key {key!r}.{suggest(key, known)}")
    return result


def read_config(model: str, weights: str) -> Any:
    """The architecture of ``model``: cached or local, well known, or from the hub.

    On meta, or if the weights come from elsewhere, well-known names need no network.

    Raises:
        WeightsError: It was not found.
    """
    source = locate(model)
    if weights == "pretrained" and not building_on_meta():
        return fetch(AutoConfig.from_pretrained, source, "config.json")
    try:
        return AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError):
        known = known_config(source)
    return known or fetch(AutoConfig.from_pretrained, source, "config.json")


def fetch(read: Callable[..., Any], source: str, what: str, remedy: str = REMEDY) -> Any:
    """Read from a local folder or the local cache, then from the hub.

    Args:
        read: A ``from_pretrained``.
        source: A local folder or a hub name.
        what: What is looked for, for the message.
        remedy: What to do if it is not found, for the message.

    Raises:
        WeightsError: It is in none of them.
    """
    try:
        return read(source, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = _first_line(error)
    if Path(source).is_dir():
        raise WeightsError(f"No usable {what} in the folder {source!r}: {reason} {remedy}")
    if Path(source).is_absolute() or source.startswith((".", "~")):
        raise WeightsError(f"Looked for {what} in {source!r}: there is no such folder. {remedy}")
    if not _hub_answers():
        raise WeightsError(
            f"Looked for {what} of {source!r} in the folder of that name, in the local cache "
            f"({constants.HF_HUB_CACHE}) and on the hub ({constants.ENDPOINT}), which is switched "
            f"off or cannot be reached. {remedy}"
        )
    try:
        return read(source)
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(
            f"Looked for {what} of {source!r} in the local cache and on the hub "
            f"({constants.ENDPOINT}): {_first_line(error)} {remedy}"
        ) from error


def build(config: Any, weights: str, source: str | None, model_class: Any = None) -> nn.Module:
    """A model without its pooler that takes prompts in attention; in the default dtype.

    Args:
        config: Its architecture.
        weights: ``pretrained`` (those of ``source``), ``random``, or a local file or folder.
        source: A hub name or a local folder.
        model_class: What to build instead of the plain model of the architecture.

    Raises:
        WeightsError: The weights were not found, or do not fit.
    """
    model_class = model_class or MODEL_MAPPING[type(config)]
    # A checkpoint stored in half precision would otherwise be built in half precision.
    options = {"attn_implementation": PROMPTED, "dtype": torch.get_default_dtype()}
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        options["add_pooling_layer"] = False  # the pooled output is read from the last layer
    if building_on_meta() or weights == "random":
        return model_class._from_config(config, **options)  # type: ignore[no-any-return]
    options |= {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    given = str(source) if weights == "pretrained" else locate(weights)

    def read(name: str | None, **more: Any) -> Any:
        with _quiet():
            return model_class.from_pretrained(name, **options, **more)

    if weights != "pretrained" and not Path(given).exists():
        raise WeightsError(f"`weights: {weights}` is neither a file nor a folder. {REMEDY}")
    if Path(given).is_file():
        model, report = read(None, state_dict=_read_file(Path(given)))
    else:
        model, report = fetch(read, given, "model.safetensors or pytorch_model.bin")
    _check_fit(report, given, model_class.__name__)
    return model  # type: ignore[no-any-return]


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)  # type: ignore[no-any-return]
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, SafetensorError, EOFError) as error:
        raise WeightsError(f"{str(path)!r} holds no weights: {_first_line(error)}") from error
    return weights


def _check_fit(report: Mapping[str, Any], source: str, name: str) -> None:
    """Refuse what transformers only warns of: weights that are missing or of another shape."""
    problems = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    problems += [
        f"{key} is {tuple(found)} instead of {tuple(wanted)}"
        for key, found, wanted in sorted(report["mismatched_keys"])
    ]
    if problems:
        rest = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(
            f"The weights in {source!r} do not fit {name}: {'; '.join(problems[:3])}{rest}. "
            f"Give the architecture they were made with, or other weights."
        )


def _hub_answers() -> bool:
    """One short request, because the clients of the hub retry for 20 s and more."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
    except HTTPError:
        return True
    except URLError as error:
        # The hub's own client may know a certificate that urllib does not.
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no table of unused weights: heads are dropped on purpose."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
