"""Prompts as extra keys and values in the attention of transformers.

Since version 5 the layers of transformers hand their keyword arguments down to the attention
function that ``config._attn_implementation`` names, and the registry of those functions is open.
A model built with ``attn_implementation=PROMPTED`` therefore takes ``layer(tokens, ...,
prompts=rows)``, without hooks, subclasses or renamed parameters; without prompts it is
upstream's own ``sdpa``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fusionkit.encoders.attention import (
    PromptRows,
    hide_behind,
    parts_of,
    project_parts,
    widen_mask,
)
from fusionkit.encoders.sequences import known_real

PROMPTED = "fusionkit_prompts"
_ALIGNED = 8  # the fused kernels of GPUs read masks of a width that 8 divides twice as fast


def prompted_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prompts: PromptRows | None = None,
    prompts_keep: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Upstream's ``sdpa`` with the prompts in front of the keys and values.

    Args:
        module: The attention module; its own projections make keys and values of the prompts.
        query: (B, H, L, head_dim).
        key: (B, H, S, head_dim).
        value: (B, H, S, head_dim).
        attention_mask: Broadcastable to (B, H, L, S), bool with True = visible, or additive
            float; None if all is visible, or all up to the query for a causal module.
        prompts: Rows or parts of them, already through the block's own first norm if it has one;
            or None.
        prompts_keep: (B, n) bool, True = visible; None if all are.
        **kwargs: What ``sdpa`` of transformers takes.

    Returns:
        (B, L, H, head_dim), and None in place of the attention weights.
    """
    if parts := parts_of(prompts):
        if attention_mask is None and getattr(module, "is_causal", False):
            # is_causal aligns the triangle with the first key, which is now a prompt.
            shape = query.shape[-2], key.shape[-2]
            triangle = torch.ones(shape, dtype=torch.bool, device=key.device)
            attention_mask = triangle.tril(shape[1] - shape[0])[None, None]
        keys, values = project_parts(parts, functools.partial(project_prompts, module), len(key))
        if prompts_keep is None:
            attention_mask = widen_mask(attention_mask, sum(part.shape[1] for part in parts))
        else:
            attention_mask = _join_masks(prompts_keep, attention_mask, query, key)
        hidden = 0
        if attention_mask is not None:
            hidden = -attention_mask.shape[-1] % _ALIGNED
            attention_mask = hide_behind(attention_mask, hidden)
        key, value = _in_front(keys, key, hidden), _in_front(values, value, hidden)
        kwargs["is_causal"] = False
    out: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **kwargs
    )
    return out


def _in_front(rows: Sequence[Tensor], own: Tensor, hidden: int) -> Tensor:
    """Rows, a layer's own and zeros; the heads of a token stay side by side, as they come.

    Args:
        rows: Parts (B, n_j, H * head_dim), together n.
        own: (B, H, S, head_dim).
        hidden: How many zeros.

    Returns:
        (B, H, n + S + hidden, head_dim).
    """
    width = own.shape[-1]
    joined = [*(part.unflatten(-1, (-1, width)) for part in rows), own.transpose(1, 2)]
    if hidden:
        joined.append(own.new_zeros(()).expand(len(own), hidden, own.shape[1], width))
    return torch.cat(joined, dim=1).transpose(1, 2)


def _join_masks(keep: Tensor, mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """(B, 1, L, n + S) bool of the prompts' own mask and that of the other keys."""
    batch, length = len(query), query.shape[-2]
    if mask is None:
        mask = keep.new_ones(1, 1, length, key.shape[-2])
    front = keep[:, None, None].expand(-1, -1, length, -1)
    return torch.cat([front, mask.expand(batch, 1, length, -1)], dim=-1)


def padding_mask(keep: Tensor) -> Tensor | None:
    """Which keys all queries see, (B, 1, 1, S); None if all tokens are known to be real.

    Args:
        keep: (B, S) bool, True = real.
    """
    return None if known_real(keep) else keep[:, None, None]


def causal_mask(keep: Tensor) -> Tensor | None:
    """As :func:`padding_mask`, and none sees what comes after it: (B, 1, S, S)."""
    mask, length = padding_mask(keep), keep.shape[1]
    if mask is None:
        return None
    return mask & torch.ones(length, length, dtype=torch.bool, device=keep.device).tril()


def project_prompts(module: Any, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the prompts, (B, n, key heads * head_dim) each, without position.

    The projections are called as modules: what LoRA adds to them reaches the prompts too.
    """
    key, value = _project(module, prompts)
    for name in ("k_norm", "k_layernorm"):  # Qwen 3, Gemma 3, OLMo 2; Phi
        norm = getattr(module, name, None)
        if norm is not None:  # over one head, or over all as one
            key = norm(key.unflatten(-1, (-1, len(norm.weight)))).flatten(-2)
    return key, value


def _project(module: Any, prompts: Tensor) -> tuple[Tensor, Tensor]:
    if hasattr(module, "key"):
        return module.key(prompts), module.value(prompts)
    if hasattr(module, "k_proj"):  # Llama, CLIP, wav2vec2
        return module.k_proj(prompts), module.v_proj(prompts)
    if hasattr(module, "k_lin"):  # DistilBERT
        return module.k_lin(prompts), module.v_lin(prompts)
    if hasattr(module, "query_key_value"):  # GPT-NeoX: the three of a head stand together
        heads = module.query_key_value(prompts).unflatten(-1, (-1, 3, module.head_size))
        return heads[..., 1, :].flatten(-2), heads[..., 2, :].flatten(-2)
    if hasattr(module, "qkv_proj"):  # Phi-3: keys and values may have fewer heads than queries
        width = module.num_key_value_heads * module.head_dim
        _, key, value = module.qkv_proj(prompts).tensor_split((-2 * width, -width), dim=-1)
        return key, value
    fused = module.Wqkv if hasattr(module, "Wqkv") else module.c_attn  # ModernBERT, GPT-2
    _, key, value = fused(prompts).chunk(3, dim=-1)
    return key, value


AttentionInterface.register(PROMPTED, prompted_attention)
AttentionMaskInterface.register(PROMPTED, sdpa_mask)  # else no mask is made at all
