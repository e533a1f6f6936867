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


def _llama(
    width: int, inner: int, layers: int, heads: int, key_heads: int, kind: str = "llama"
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "rms_norm_eps": 1e-6 if kind.startswith("qwen") else 1e-5,
    }


def _neox(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "vocab_size": 50304,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25},
    }


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


_QWEN_05B = {**_llama(896, 4864, 24, 14, 2, "qwen2"), **_rope(1e6)}
_TINYLLAMA = _llama(2048, 5632, 22, 32, 4)

KNOWN |= {
    "gpt2": {"model_type": "gpt2"},
    "gpt2-medium": {"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {"model_type": "gpt2", "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25},
    "distilgpt2": {"model_type": "gpt2", "n_layer": 6},
    "opt-125m": {"model_type": "opt"},
    "pythia-70m": _neox(512, 6, 8),
    "pythia-160m": _neox(768, 12, 12),
    "pythia-410m": _neox(1024, 24, 16),
    "SmolLM2-135M": {
        **_llama(576, 1536, 30, 9, 3),
        **_rope(1e5),
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
    },
    "TinyLlama_v1.1": _TINYLLAMA,
    "TinyLlama-1.1B-Chat-v1.0": _TINYLLAMA,
    "Mistral-7B-v0.1": {
        **_llama(4096, 14336, 32, 32, 8, "mistral"),
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    },
    "Qwen2.5-0.5B": _QWEN_05B,
    "Qwen2.5-0.5B-Instruct": _QWEN_05B,
    "Qwen3-0.6B": {
        **_llama(1024, 3072, 28, 16, 8, "qwen3"),
        **_rope(1e6),
        "head_dim": 128,
        "max_position_embeddings": 40960,
    },
}


def _vit(width: int, layers: int, kind: str = "vit", **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        **more,
    }


def _dinov2(width: int, layers: int, kind: str = "dinov2", **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "image_size": 518,
        "patch_size": 14,
        **more,
    }


def _clip(image: dict[str, Any], text_width: int, projection: int) -> dict[str, Any]:
    text = _vit(text_width, 12, "clip_text_model", projection_dim=projection)
    vision = {**image, "model_type": "clip_vision_model", "projection_dim": projection}
    towers = {"text_config": text, "vision_config": vision}
    return {"model_type": "clip", "projection_dim": projection, **towers}


KNOWN |= {
    "clip-vit-base-patch32": _clip(_vit(768, 12, patch_size=32), 512, 512),
    "clip-vit-base-patch16": _clip(_vit(768, 12, patch_size=16), 512, 512),
    "clip-vit-large-patch14": _clip(_vit(1024, 24, patch_size=14), 768, 768),
    "clip-vit-large-patch14-336": _clip(_vit(1024, 24, patch_size=14, image_size=336), 768, 768),
    "vit-base-patch16-224": _vit(768, 12),
    "vit-base-patch16-224-in21k": _vit(768, 12),
    "vit-base-patch16-384": _vit(768, 12, image_size=384),
    "vit-large-patch16-224": _vit(1024, 24),
    "vit-large-patch16-224-in21k": _vit(1024, 24),
    "deit-tiny-patch16-224": _vit(192, 12),
    "deit-small-patch16-224": _vit(384, 12),
    "deit-base-patch16-224": _vit(768, 12),
    "deit-tiny-distilled-patch16-224": _vit(192, 12, "deit"),
    "deit-small-distilled-patch16-224": _vit(384, 12, "deit"),
    "deit-base-distilled-patch16-224": _vit(768, 12, "deit"),
    "dinov2-small": _dinov2(384, 12),
    "dinov2-base": _dinov2(768, 12),
    "dinov2-large": _dinov2(1024, 24),
    "dinov2-giant": _dinov2(1536, 40, use_swiglu_ffn=True),
    "dinov2-with-registers-small": _dinov2(384, 12, "dinov2_with_registers"),
    "dinov2-with-registers-base": _dinov2(768, 12, "dinov2_with_registers"),
    "dinov2-with-registers-large": _dinov2(1024, 24, "dinov2_with_registers"),
}


def _speech(kind: str, width: int = 768, layers: int = 12, **more: Any) -> dict[str, Any]:
    heads = {768: 12, 1024: 16, 1280: 16, 1920: 16}[width]
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"model_type": kind, **sizes, "intermediate_size": 4 * width, **more}


def _pre_norm(kind: str, width: int = 1024, layers: int = 24, bias: bool = True) -> dict[str, Any]:
    more = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": bias}
    return _speech(kind, width, layers, **more)


def _ast(stride: int = 10, **more: Any) -> dict[str, Any]:
    strides = {"frequency_stride": stride, "time_stride": stride}
    return {"model_type": "audio-spectrogram-transformer", **strides, **more}


KNOWN |= {
    "wav2vec2-base": _speech("wav2vec2"),
    "wav2vec2-base-960h": _speech("wav2vec2"),
    "wav2vec2-large": _speech("wav2vec2", 1024, 24),
    "wav2vec2-large-960h": _speech("wav2vec2", 1024, 24),
    "wav2vec2-large-lv60": _pre_norm("wav2vec2"),
    "wav2vec2-large-960h-lv60-self": _pre_norm("wav2vec2"),
    "wav2vec2-large-robust": _pre_norm("wav2vec2"),
    "wav2vec2-large-xlsr-53": _pre_norm("wav2vec2"),
    "wav2vec2-xls-r-300m": _pre_norm("wav2vec2"),
    "wav2vec2-xls-r-1b": _pre_norm("wav2vec2", 1280, 48),
    "wav2vec2-xls-r-2b": _pre_norm("wav2vec2", 1920, 48),
    "hubert-base-ls960": _speech("hubert"),
    "hubert-large-ll60k": _pre_norm("hubert"),
    "hubert-large-ls960-ft": _pre_norm("hubert"),
    "hubert-xlarge-ll60k": _pre_norm("hubert", 1280, 48),
    "wavlm-base": _speech("wavlm"),
    "wavlm-base-plus": _speech("wavlm"),
    "wavlm-large": _pre_norm("wavlm", bias=False),
    "ast-finetuned-audioset-10-10-0.4593": _ast(),
    "ast-finetuned-audioset-12-12-0.447": _ast(12),
    "ast-finetuned-audioset-14-14-0.443": _ast(14),
    "ast-finetuned-audioset-16-16-0.442": _ast(16),
    "ast-finetuned-speech-commands-v2": _ast(max_length=128),
}

# Of their preprocessor_config.json, what differs from the defaults of its class.
_PREPROCESSING: dict[str, dict[str, Any]] = {
    "wavlm-base": {"do_normalize": False},
    "wavlm-base-plus": {"do_normalize": False},
    "ast-finetuned-speech-commands-v2": {"mean": -6.845978, "std": 5.5654526},
}

# Who publishes them; a fork under another name may have another architecture.
_PUBLISHERS = {
    *("", "google-bert", "FacebookAI", "distilbert", "almanach", "google"),
    *("sentence-transformers", "answerdotai"),
    *("openai-community", "EleutherAI", "HuggingFaceTB", "TinyLlama", "mistralai", "Qwen"),
    *("facebook", "openai", "microsoft", "MIT"),
}


def known_config(model: str) -> Any | None:
    """The architecture of a well-known hub name, or None."""
    publisher, _, name = model.rpartition("/")
    if publisher not in _PUBLISHERS or name not in KNOWN:
        return None
    return AutoConfig.for_model(**KNOWN[name])


def known_preprocessing(model: str) -> dict[str, Any] | None:
    """What ``preprocessor_config.json`` of a well-known hub name says, or None."""
    if known_config(model) is None:
        return None
    return _PREPROCESSING.get(model.rpartition("/")[2], {})
