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
from transformers import MODEL_MAPPING, AutoConfig, AutoModel
from transformers.utils import logging

from fusionkit.encoders.transformers_attention import PROMPTED
from fusionkit.encoders.weights import building_on_meta, locate
from fusionkit.errors import ConfigError, WeightsError, suggest

REMEDY = "Give a local folder with `model: PATH` or `weights: PATH`, or `weights: random`."


def _bert(width: int, layers: int, vocab_size: int, heads: int = 0) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads or width // 64,
        "intermediate_size": 4 * width,
        "vocab_size": vocab_size,
    }


def _roberta(width: int, layers: int, vocab_size: int, kind: str = "roberta") -> dict[str, Any]:
    positions = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    return {**_bert(width, layers, vocab_size), **positions, **tokens, "model_type": kind}


def _electra(width: int, layers: int, embedding: int, heads: int) -> dict[str, Any]:
    rest = {"model_type": "electra", "embedding_size": embedding}
    return {**_bert(width, layers, 30522, heads), **rest}


_MODERN = {"model_type": "modernbert", "vocab_size": 50368}

# Architectures of well-known hub names, so that they can be built without a network.
KNOWN: dict[str, dict[str, Any]] = {
    "bert-base-uncased": _bert(768, 12, 30522),
    "bert-base-cased": _bert(768, 12, 28996),
    "bert-large-uncased": _bert(1024, 24, 30522),
    "bert-large-cased": _bert(1024, 24, 28996),
    "bert-base-multilingual-uncased": _bert(768, 12, 105879),
    "bert-base-multilingual-cased": _bert(768, 12, 119547),
    "all-MiniLM-L6-v2": _bert(384, 6, 30522, heads=12),
    "all-MiniLM-L12-v2": _bert(384, 12, 30522, heads=12),
    "roberta-base": _roberta(768, 12, 50265),
    "roberta-large": _roberta(1024, 24, 50265),
    "distilroberta-base": _roberta(768, 6, 50265),
    "xlm-roberta-base": _roberta(768, 12, 250002, "xlm-roberta"),
    "xlm-roberta-large": _roberta(1024, 24, 250002, "xlm-roberta"),
    "camembert-base": _roberta(768, 12, 32005, "camembert"),
    "distilbert-base-uncased": {"model_type": "distilbert", "vocab_size": 30522},
    "distilbert-base-cased": {"model_type": "distilbert", "vocab_size": 28996},
    "electra-small-discriminator": _electra(256, 12, 128, 4),
    "electra-base-discriminator": _electra(768, 12, 768, 12),
    "electra-large-discriminator": _electra(1024, 24, 1024, 16),
    "ModernBERT-base": _MODERN,
    "ModernBERT-large": {
        **_MODERN,
        "hidden_size": 1024,
        "intermediate_size": 2624,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
}

# Who publishes them; a fork under another name may have another architecture.
_PUBLISHERS = {
    *("", "google-bert", "FacebookAI", "distilbert", "almanach", "google"),
    *("sentence-transformers", "answerdotai"),
}


def known_config(model: str) -> Any | None:
    """The architecture of a well-known hub name, or None."""
    publisher, _, name = model.rpartition("/")
    if publisher not in _PUBLISHERS or name not in KNOWN:
        return None
    return AutoConfig.for_model(**KNOWN[name])


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


def build(config: Any, weights: str, source: str | None) -> nn.Module:
    """A model without its pooler that takes prompts in attention; in the default dtype.

    Args:
        config: Its architecture.
        weights: ``pretrained`` (those of ``source``), ``random``, or a local file or folder.
        source: A hub name or a local folder.

    Raises:
        WeightsError: The weights were not found, or do not fit.
    """
    model_class = MODEL_MAPPING[type(config)]
    # A checkpoint stored in half precision would otherwise be built in half precision.
    options = {"attn_implementation": PROMPTED, "dtype": torch.get_default_dtype()}
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        options["add_pooling_layer"] = False  # the pooled output is read from the last layer
    if building_on_meta() or weights == "random":
        return AutoModel.from_config(config, **options)  # type: ignore[no-any-return]
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
