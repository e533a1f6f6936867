"""Contract cases of audio encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cases import shaken
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel

from fusionkit.encoders.ast import AST
from fusionkit.encoders.attention import run_concatenated
from fusionkit.encoders.base import TokenState
from fusionkit.encoders.torchaudio_bundle import TorchaudioBundle
from fusionkit.encoders.wav2vec2 import Hubert, TransformersSpeech, Wav2Vec2
from fusionkit.encoders.wavlm import WavLM
from fusionkit.testing import Case


def clip(seed: int, seconds: float, rate: int) -> tuple[np.ndarray, int]:
    """A tone in noise whose loudness changes over time, as in speech."""
    random, time = np.random.default_rng(seed), np.arange(int(seconds * rate)) / rate
    sound = np.sin(2 * np.pi * 180 * (seed + 1) * time) + random.standard_normal(len(time)) / 4
    return (0.2 * sound * np.sin(9 * time + seed)).astype(np.float32), rate


# Of different lengths and rates, and one shorter than a frame.
CLIPS = [clip(0, 0.11, 16_000), clip(1, 0.3, 8_000), clip(2, 0.2, 22_050), clip(3, 0.01, 16_000)]

SPEECH = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (20, 4, 2),
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
}
PRE_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def plain_transformer(backbone: Any, attention: str = "eager") -> Any:
    """Upstream's own model in its own attention, with the weights of ``backbone``."""
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    plain = AutoModel.from_config(config, attn_implementation=attention).double().eval()
    plain.load_state_dict(backbone.state_dict())
    return plain


def each_alone(run: Callable[[Tensor], Tensor], inputs: Any) -> Tensor:
    """Upstream's mean over time of each clip by itself, without padding."""
    rows = zip(inputs["waveform"], inputs["samples"], strict=True)
    return torch.cat([run(waveform[None, :samples]).mean(1) for waveform, samples in rows])


def mean_of_frames(backbone: nn.Module, inputs: Any) -> Tensor:
    plain = plain_transformer(backbone)
    return each_alone(lambda waveform: plain(waveform).last_hidden_state, inputs)


def visible_to_all(keep: Tensor, n: int) -> Tensor:
    """(B, 1, 1, n + L) additive mask."""
    hidden = F.pad(~keep, (n, 0))[:, None, None]
    return torch.zeros(hidden.shape, dtype=torch.float64).masked_fill(hidden, -torch.inf)


def concatenated_speech(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    upstream = plain_transformer(encoder.backbone).encoder.layers[layer]
    mask = visible_to_all(state.keep, prompts.shape[1])
    return state.with_tokens(
        run_concatenated(lambda rows: upstream(rows, attention_mask=mask), state.tokens, prompts)
    )


def relative_biases(attention: Any, length: int, n: int) -> Tensor:
    """Upstream's table for ``length`` tokens, zero for ``n`` prompts in front."""
    return F.pad(attention.compute_bias(length, length), (n, 0, n, 0))


def concatenated_wavlm(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    layers = plain_transformer(encoder.backbone).encoder.layers
    (batch, length, _), n = state.tokens.shape, prompts.shape[1]
    biases = relative_biases(layers[0].attention, length, n).repeat(batch, 1, 1)
    visible = F.pad(state.keep, (n, 0), value=True)

    def block(rows: Tensor) -> Tensor:
        return layers[layer](rows, attention_mask=visible, position_bias=biases)[0]

    return state.with_tokens(run_concatenated(block, state.tokens, prompts))


def speech(
    encoder: type[TransformersSpeech], reference: Any = concatenated_speech, **more: Any
) -> Case:
    config = {"model_type": encoder.model_type, **SPEECH, **more}

    def make() -> TransformersSpeech:
        return shaken(encoder(config=dict(config), weights="random"))

    keys = plain_transformer(make().double().backbone).state_dict()
    return Case(make, CLIPS, mean_of_frames, reference, tuple(keys))


AST_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "patch_size": 8,
    "max_length": 40,
    "num_mel_bins": 16,
}


def plain_ast(backbone: Any) -> Any:
    return plain_transformer(backbone, "sdpa")  # its eager attention rounds to float32


def pooled_by_ast(backbone: nn.Module, inputs: Any) -> Tensor:
    frames = inputs["spectrogram"]
    whole = inputs["silence"][:, None, None].repeat(1, 40, 16)
    whole[:, : frames.shape[1]] = frames
    return plain_ast(backbone)(whole).pooler_output


def concatenated_ast(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    block = plain_ast(encoder.backbone).layers[layer]
    return state.with_tokens(run_concatenated(block, state.tokens, prompts, prefix=2))


def ast() -> Case:
    config = {"model_type": "audio-spectrogram-transformer", **AST_SIZES}

    def make() -> AST:
        return shaken(AST(config=dict(config), weights="random"))

    keys = plain_ast(make().double().backbone).state_dict()
    return Case(make, CLIPS, pooled_by_ast, concatenated_ast, tuple(keys))


BUNDLE = {
    "extractor_conv_layer_config": [(8, 10, 20), (8, 3, 4), (8, 3, 2)],
    "encoder_embed_dim": 16,
    "encoder_pos_conv_kernel": 6,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 24,
}


def plain_bundle(backbone: nn.Module | None, model: str) -> Any:
    """torchaudio's own model, with the weights of ``backbone``."""
    import torchaudio

    bundle = getattr(torchaudio.pipelines, model)
    kind = "wavlm_model" if model.startswith("WAVLM") else "wav2vec2_model"
    plain = getattr(torchaudio.models, kind)(**{**bundle._params, **BUNDLE}).double().eval()
    if backbone is not None:
        plain.load_state_dict(backbone.state_dict())
    return plain


def attention_by_hand(attention: Any, rows: Tensor, bias: Tensor) -> Tensor:
    """(B, n + L, D) to the same; ``bias`` is added to the scores."""
    if hasattr(attention, "attention"):  # WavLM
        inner = attention.attention
        projected = rows @ inner.in_proj_weight.T + inner.in_proj_bias
        query, key, value = projected.chunk(3, dim=-1)
        project = inner.out_proj
    else:
        query, key, value = attention.q_proj(rows), attention.k_proj(rows), attention.v_proj(rows)
        project = attention.out_proj
    size = attention.head_dim
    heads = []
    for head in range(attention.num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / size**0.5
        heads.append((scores + bias[:, head]).softmax(-1) @ value[..., part])
    return project(torch.cat(heads, dim=-1))


def gates(attention: Any, rows: Tensor) -> Tensor:
    """(B, heads, n + L, 1): section 3.1 of arXiv 2110.13900."""
    per_head = rows.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    first, second = (
        attention.gru_rel_pos_linear(per_head)[..., half].sum(-1, keepdim=True).sigmoid()
        for half in (slice(0, 4), slice(4, 8))
    )
    return first * (second * attention.gru_rel_pos_const - 1) + 2


def concatenated_bundle(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    block, n = encoder.layers[layer], prompts.shape[1]
    x = torch.cat([prompts, state.tokens], dim=1)
    rows = block.layer_norm(x) if block.layer_norm_first else x
    bias = visible_to_all(state.keep, n).repeat(1, 2, rows.shape[1], 1)
    first = encoder.layers[0].attention
    if hasattr(first, "compute_bias"):
        biases = relative_biases(first, state.tokens.shape[1], n)
        bias = bias + gates(block.attention, rows) * biases
    x = x + attention_by_hand(block.attention, rows, bias)
    if block.layer_norm_first:
        x = x + block.feed_forward(block.final_layer_norm(x))
    else:
        x = block.layer_norm(x)
        x = block.final_layer_norm(x + block.feed_forward(x))
    return state.with_tokens(x[:, n:])


def bundle(model: str) -> Case:
    def make() -> TorchaudioBundle:
        return shaken(TorchaudioBundle(model, weights="random", options=dict(BUNDLE)))

    def upstream(backbone: nn.Module, inputs: Any) -> Tensor:
        plain = plain_bundle(backbone, model)
        return each_alone(lambda waveform: plain(waveform)[0], inputs)

    keys = tuple(plain_bundle(None, model).state_dict())
    return Case(make, CLIPS, upstream, concatenated_bundle, keys)


CASES: dict[str, dict[str, Callable[[str], Case]]] = {
    "wav2vec2": {
        "group_norm": lambda _: speech(Wav2Vec2),
        "pre_norm": lambda _: speech(Wav2Vec2, **PRE_NORM),
    },
    "hubert": {
        "group_norm": lambda _: speech(Hubert),
        "pre_norm": lambda _: speech(Hubert, **PRE_NORM),
    },
    "wavlm": {
        "group_norm": lambda _: speech(WavLM, concatenated_wavlm),
        "pre_norm": lambda _: speech(WavLM, concatenated_wavlm, **PRE_NORM),
    },
    "ast": {"audioset": lambda _: ast()},
    "torchaudio_bundle": {
        name.lower(): lambda _, name=name: bundle(name)
        for name in ("WAV2VEC2_BASE", "HUBERT_LARGE", "WAVLM_BASE", "WAVLM_LARGE")
    },
}
