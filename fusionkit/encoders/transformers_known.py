"""Architectures of well-known hub names, so that they can be built without a network."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig


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
