"""Prompts in the blocks of open_clip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.encoders.attention import (
    PromptRows,
    join_parts,
    parts_of,
    project_parts,
    run_concatenated,
    split_heads,
    widen_mask,
)
from fusionkit.registry import require

_upstream: Any = require("open_clip.transformer", "open_clip")


def run_block(
    block: Any, tokens: Tensor, prompts: PromptRows | None, mask: Tensor | None
) -> Tensor:
    """A block of open_clip with prompts in front.

    Args:
        block: A ``ResidualAttentionBlock`` or ``CustomResidualAttentionBlock``.
        tokens: (B, L, D).
        prompts: Rows (B, n, D) or parts of them, not normed yet; or None.
        mask: (L, L), 0 where visible, -inf where not; None if all is visible.

    Returns:
        (B, L, D).
    """
    parts = parts_of(prompts)
    if not parts:
        out: Tensor = block(tokens, attn_mask=mask)
        return out
    if _is_plain(block):
        rows = tuple(block.ln_1(part.to(tokens.dtype)) for part in parts)
        tokens = tokens + block.ls_1(_attend(block.attn, block.ln_1(tokens), rows, mask))
        out = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        return out
    joined = join_parts(parts, len(tokens))
    n = joined.shape[1]
    square = None if mask is None else F.pad(mask, (n, 0, n, 0))
    return run_concatenated(lambda rows: block(rows, attn_mask=square), tokens, joined)


def _is_plain(block: Any) -> bool:
    """Whether a block computes what :func:`run_block` does with its weights."""
    # peft wraps nn.MultiheadAttention as a whole, since that never calls its projections as
    # modules: wrapped attention must be called too, or prompts would miss the update.
    # Compares the methods, not the classes: FSDP2 gives a wrapped module a subclass.
    attention, plain = block.attn, _upstream.ResidualAttentionBlock
    return (
        type(block).forward is plain.forward
        and type(attention).forward is nn.MultiheadAttention.forward
        and type(attention.out_proj).forward is nn.Linear.forward
    )


def _attend(attn: Any, rows: Tensor, prompts: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
    """``nn.MultiheadAttention`` on (B, L, D) with keys and values of prompts before its own.

    open_clip's blocks ignore keys and values of their own, so this takes over its parameters.
    """
    width = attn.embed_dim
    weight, bias = attn.in_proj_weight, attn.in_proj_bias

    def project(part: Tensor) -> tuple[Tensor, Tensor]:
        key, value = F.linear(part, weight[width:], bias[width:]).chunk(2, dim=-1)
        return key, value

    query = F.linear(rows, weight[:width], bias[:width])
    keys, values = project_parts((*prompts, rows), project, len(rows))
    key, value = torch.cat(keys, dim=1), torch.cat(values, dim=1)
    q, k, v = (split_heads(part, attn.head_dim) for part in (query, key, value))
    if mask is not None:
        mask = widen_mask(mask.to(q.dtype), k.shape[2] - q.shape[2])
    dropout = attn.dropout if attn.training else 0.0
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    out: Tensor = attn.out_proj(heads.transpose(1, 2).flatten(2))
    return out
