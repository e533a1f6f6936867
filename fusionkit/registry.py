"""Names of encoders, fusions, transfers and data sets, built in or from other distributions.

A name maps to ``"module:Class"``. Listing reads metadata only and imports neither torch nor a
plug-in; :func:`load` imports the one class that is asked for and checks that it can be used.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Literal

from fusionkit.errors import ConfigError, MissingExtraError, PluginError, UnknownNameError, suggest

Kind = Literal["main_encoder", "complement_encoder", "fusion", "transfer", "dataset"]

API_VERSION = 1  # raised when a change of the interfaces breaks plug-ins written for the old ones

GROUPS: dict[Kind, str] = {
    "main_encoder": "fusionkit.main_encoders",
    "complement_encoder": "fusionkit.complement_encoders",
    "fusion": "fusionkit.fusions",
    "transfer": "fusionkit.transfers",
    "dataset": "fusionkit.datasets",
}

# Name of an encoder -> "module:function" that returns its Case for `fusionkit contract`.
CASES_GROUP = "fusionkit.contract_cases"

_BASES: dict[Kind, str] = {
    "main_encoder": "fusionkit.encoders.base:MainEncoder",
    "complement_encoder": "fusionkit.encoders.base:ComplementEncoder",
    "fusion": "fusionkit.fusion.base:Fusion",
    "transfer": "fusionkit.transfer.base:Transfer",
    "dataset": "fusionkit.data.base:Dataset",
}

# name -> (import path, one line for the listing)
_BUILT_IN: dict[Kind, dict[str, tuple[str, str]]] = {
    "main_encoder": {
        "timm_vit": ("fusionkit.encoders.timm_vit:TimmViT", "image: ViT and DeiT of timm"),
        "timm_swin": ("fusionkit.encoders.timm_swin:TimmSwin", "image: Swin of timm"),
        "hf_vit": (
            "fusionkit.encoders.hf_vit:HfViT",
            "image: ViT, DeiT, DINOv2 and DINOv3 of transformers",
        ),
        "clip_image": ("fusionkit.encoders.clip_hf:ClipImage", "image: CLIP of transformers"),
        "open_clip_image": (
            "fusionkit.encoders.clip_open:OpenClipImage",
            "image: CLIP and kin of open_clip; needs the extra open_clip",
        ),
        "bert": (
            "fusionkit.encoders.bert:Bert",
            "text: BERT, RoBERTa, MiniLM, DistilBERT and kin of transformers",
        ),
        "clip_text": ("fusionkit.encoders.clip_hf:ClipText", "text: CLIP of transformers"),
        "open_clip_text": (
            "fusionkit.encoders.clip_open:OpenClipText",
            "text: CLIP and kin of open_clip; needs the extra open_clip",
        ),
        "gpt2": (
            "fusionkit.encoders.gpt2:CausalLM",
            "text: GPT-2, Llama, Mistral, Qwen and kin of transformers",
        ),
        "wav2vec2": ("fusionkit.encoders.wav2vec2:Wav2Vec2", "audio: wav2vec 2.0 of transformers"),
        "hubert": ("fusionkit.encoders.wav2vec2:Hubert", "audio: HuBERT of transformers"),
        "wavlm": ("fusionkit.encoders.wavlm:WavLM", "audio: WavLM of transformers"),
        "ast": (
            "fusionkit.encoders.ast:AST",
            "audio: Audio Spectrogram Transformer of transformers",
        ),
        "torchaudio_bundle": (
            "fusionkit.encoders.torchaudio_bundle:TorchaudioBundle",
            "audio: wav2vec 2.0, HuBERT and WavLM of torchaudio's pipelines",
        ),
    },
    "complement_encoder": {
        "bow": ("fusionkit.encoders.bow:BagOfWords", "text: mean of word embeddings"),
        "timm_cnn": ("fusionkit.encoders.timm_cnn:TimmCNN", "image: any convolutional net of timm"),
        "table": (
            "fusionkit.encoders.table:TableEncoder",
            "table: columns of numbers and categories, an FT-Transformer",
        ),
        "vector": ("fusionkit.encoders.vector:Vector", "vector: features computed before"),
        "video": (
            "fusionkit.encoders.video:Video",
            "video: frames through any image encoder, pooled over time",
        ),
    },
    "fusion": {
        "conditional_prompt": (
            "fusionkit.fusion.conditional_prompt:ConditionalPrompt",
            "static, dynamic and mapped prompts at every layer of the main encoder (MoPE)",
        ),
        "main_only": (
            "fusionkit.fusion.main_only:MainOnly",
            "the main encoder alone, as the reference for one modality",
        ),
        "late_concat": (
            "fusionkit.fusion.late_concat:LateConcat",
            "features of all encoders, concatenated",
        ),
        "ensemble": (
            "fusionkit.fusion.ensemble:Ensemble",
            "a prediction from each encoder, scores averaged",
        ),
        "gated": ("fusionkit.fusion.gated:Gated", "gated multimodal unit over all features"),
        "low_rank_tensor": (
            "fusionkit.fusion.low_rank_tensor:LowRankTensor",
            "low-rank tensor product of all features",
        ),
        "cross_attention": (
            "fusionkit.fusion.cross_attention:CrossAttention",
            "the main encoder's tokens attend to the complement's",
        ),
        "mmbt": (
            "fusionkit.fusion.mmbt:MMBT",
            "regions of the complement as input tokens of the main encoder",
        ),
        "frozen": (
            "fusionkit.fusion.frozen_lm:FrozenLM",
            "the complement's feature as input tokens of a causal language model",
        ),
        "promptfuse": (
            "fusionkit.fusion.promptfuse:PromptFuse",
            "the complement's feature and learned prompts at a language model's input",
        ),
        "cocoop": (
            "fusionkit.fusion.cocoop:CoCoOp",
            "learned input prompts, shifted by the complement's feature",
        ),
        "pmf": (
            "fusionkit.fusion.pmf:PMF",
            "interactive prompts between the deep layers of two encoders",
        ),
    },
    "transfer": {
        "frozen": ("fusionkit.transfer.frozen:Frozen", "nothing is trained"),
        "prompt": (
            "fusionkit.transfer.prompt:Prompt",
            "frozen weights, static prompts at every layer or at the input",
        ),
        "prefix": (
            "fusionkit.transfer.prefix:Prefix",
            "frozen weights, prompts at every layer made by one MLP",
        ),
        "fine_tune": (
            "fusionkit.transfer.fine_tune:FineTune",
            "every weight is trained, or those of the last layers",
        ),
        "lora": (
            "fusionkit.transfer.lora:Lora",
            "low-rank updates of frozen weights; needs the extra peft",
        ),
        "adapter": (
            "fusionkit.transfer.adapter:Adapter",
            "frozen weights, a bottleneck behind every layer or the feature",
        ),
        "bias_only": ("fusionkit.transfer.bias_only:BiasOnly", "biases are trained (BitFit)"),
        "norm_only": (
            "fusionkit.transfer.norm_only:NormOnly",
            "scale and shift of the norms are trained",
        ),
    },
    "dataset": {
        "table": (
            "fusionkit.data.table:Table",
            "CSV, TSV, JSONL or Parquet with a column for each field",
        ),
        "webdataset": (
            "fusionkit.data.webdataset:WebDataset",
            "shards (tar files) of samples, local or at URLs: data that fit no disk",
        ),
        "food101": (
            "fusionkit.data.food101:Food101",
            "UPMC Food-101: dishes by photo and title or page; needs `fusionkit data prepare`",
        ),
        "mmimdb": (
            "fusionkit.data.mmimdb:MMIMDB",
            "MM-IMDB: genres by poster and plot; needs `fusionkit data prepare`",
        ),
        "snli_ve": (
            "fusionkit.data.snli_ve:SnliVe",
            "SNLI-VE: does a picture entail a sentence; needs `fusionkit data prepare`",
        ),
        "mustard": (
            "fusionkit.data.mustard:Mustard",
            "MUStARD: sarcasm by words, voice and face; needs `fusionkit data prepare`",
        ),
        "digit_claims": (
            "fusionkit.data.digit_claims:DigitClaims",
            "handwritten digits paired with claims about them; ships with fusionkit",
        ),
    },
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered name.

    Attributes:
        kind: What it is.
        name: The name that configs use.
        path: ``"module:Class"``.
        summary: One line; for a plug-in, its distribution's summary.
        distribution: ``"fusionkit"`` or the name of the distribution that brings it.
        version: The version of that distribution.
    """

    kind: Kind
    name: str
    path: str
    summary: str
    distribution: str
    version: str


def _installed_entry_points(group: str) -> list[metadata.EntryPoint]:
    """The entry points of one group; a function of its own so that tests can replace it."""
    return _scanned(group, tuple(sys.path))


@cache
def _scanned(group: str, path: tuple[str, ...]) -> list[metadata.EntryPoint]:
    """Reading every distribution's metadata takes longer than what a look-up is for."""
    return list(metadata.entry_points(group=group))


def entries(kind: Kind) -> dict[str, Entry]:
    """All names of one kind, built-ins first; imports nothing.

    Raises:
        PluginError: Two distributions claim one name, or a plug-in claims a built-in's.
    """
    from fusionkit import __version__

    found = {
        name: Entry(kind, name, path, summary, "fusionkit", __version__)
        for name, (path, summary) in _BUILT_IN[kind].items()
    }
    for point in _installed_entry_points(GROUPS[kind]):
        dist = point.dist
        entry = Entry(
            kind,
            point.name,
            point.value,
            (dist.metadata["Summary"] or "") if dist else "",
            dist.name if dist else "unknown",
            dist.version if dist else "unknown",
        )
        other = found.get(point.name)
        if other is not None and other != entry:
            raise PluginError(
                f"Two distributions register the {_spoken(kind)} {point.name!r}: "
                f"{other.distribution} {other.version} ({other.path}) and "
                f"{entry.distribution} {entry.version} ({entry.path}). Uninstall one of them."
            )
        found[point.name] = entry
    return found


def find(kind: Kind, name: str) -> Entry:
    """The entry of a name; complements are looked up among the main encoders too.

    Raises:
        UnknownNameError: No such name; the message suggests close ones.
        ConfigError: A complement was asked for as main encoder.
    """
    known = entries(kind)
    if kind == "complement_encoder":
        known = {**entries("main_encoder"), **known}
    if name in known:
        return known[name]
    if kind == "main_encoder" and name in entries("complement_encoder"):
        raise ConfigError(
            f"{name!r} has no layers to prompt: it can be a complement, not the main encoder. "
            f"Main encoders: {', '.join(sorted(known))}."
        )
    raise UnknownNameError(
        f"Unknown {_spoken(kind)} {name!r}.{suggest(name, known)} "
        f"Known: {', '.join(sorted(known))}. `fusionkit list {_plural(kind)}` describes them."
    )


def load(kind: Kind, name: str) -> type[Any]:
    """Import the class behind a name and check that configs can build it.

    Raises:
        UnknownNameError, ConfigError: See :func:`find`.
        MissingExtraError: The class needs an optional library that is not installed.
        PluginError: The plug-in does not import, has the wrong base class, was written for
            another version of the interfaces, or its ``__init__`` takes ``*args``, ``**kwargs``
            or arguments without annotation.
    """
    entry = find(kind, name)
    return _load(entry, kind)


@cache
def _load(entry: Entry, kind: Kind) -> type[Any]:
    who = f"{entry.name!r} of {entry.distribution} {entry.version} ({entry.path})"
    module_name, _, attribute = entry.path.partition(":")
    try:
        found = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except MissingExtraError:
        raise
    except Exception as error:
        if entry.distribution == "fusionkit":
            raise
        raise PluginError(
            f"The plug-in {who} cannot be imported: {type(error).__name__}: {error}. "
            f"Repair or uninstall {entry.distribution}; nothing else is affected."
        ) from error
    base_module, _, base_name = _BASES[kind].partition(":")
    base = getattr(importlib.import_module(base_module), base_name)
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise PluginError(f"The plug-in {who} is not a subclass of {base_module}.{base_name}.")
    if found.api_version != API_VERSION:
        raise PluginError(
            f"The plug-in {who} was written for version {found.api_version} of the interfaces, "
            f"this fusionkit has version {API_VERSION}. Update the older of the two."
        )
    _check_signature(found, who)
    return found


def _check_signature(found: type[Any], who: str) -> None:
    for parameter in list(inspect.signature(found.__init__).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise PluginError(
                f"The plug-in {who} takes {parameter}; a config needs every argument by name. "
                f"Give the class an __init__ of its own with explicit arguments."
            )
        if parameter.annotation is parameter.empty:
            raise PluginError(
                f"The plug-in {who} takes {parameter.name!r} without a type annotation."
            )


def load_case(entry: Entry) -> Callable[[], Any] | None:
    """The function that makes an encoder's contract case; None if its distribution has none.

    Raises:
        PluginError: The function cannot be imported.
    """
    for point in _installed_entry_points(CASES_GROUP):
        owner = point.dist.name if point.dist else "unknown"
        if (point.name, owner) == (entry.name, entry.distribution):
            try:
                return point.load()
            except Exception as error:
                raise PluginError(
                    f"The contract case of {entry.name!r} ({point.value}, of {owner}) cannot be "
                    f"imported: {type(error).__name__}: {error}. Repair it, or give arguments to "
                    f"build the encoder with."
                ) from error
    return None


def require(module: str, extra: str) -> Any:
    """Import an optional library.

    Raises:
        MissingExtraError: It is not installed; the message says which extra brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtraError(
            f"This needs {module.partition('.')[0]!r}, which is not installed. "
            f"Install it with: pip install 'fusionkit[{extra}]'"
        ) from error


def _spoken(kind: Kind) -> str:
    return {
        "main_encoder": "main encoder",
        "complement_encoder": "complement encoder",
        "dataset": "data set",
    }.get(kind, kind)


def _plural(kind: Kind) -> str:
    return "encoders" if kind.endswith("encoder") else f"{kind}s"
