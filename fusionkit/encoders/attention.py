"""Prompts in attention: as extra keys and values, or by concatenation.

The outputs at prompt positions are dropped (VPT-deep), so a prompt needs neither a query, nor an
output projection, nor a feed-forward pass. Extra keys and values give exactly what concatenation
gives; :func:`run_concatenated` is the fallback for blocks whose attention cannot be reached and
the reference in tests.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Prompt rows of a layer, (B, n, D); or parts of them, each (B, n_j, D), or (1, n_j, D) where all
# samples have the same.
PromptRows = Tensor | tuple[Tensor, ...]


def parts_of(prompts: PromptRows | None) -> tuple[Tensor, ...]:
    """The parts that have any rows."""
    parts = () if prompts is None else (prompts,) if isinstance(prompts, Tensor) else prompts
    return tuple(part for part in parts if part.shape[1] > 0)


def join_parts(parts: tuple[Tensor, ...], batch: int) -> Tensor:
    """One or more parts as one, (B, n, D)."""
    if len(parts) == 1:
        return parts[0].expand(batch, -1, -1)
    return torch.cat([part.expand(batch, -1, -1) for part in parts], dim=1)


def project_parts(
    parts: tuple[Tensor, ...], project: Callable[[Tensor], tuple[Tensor, Tensor]], batch: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of prompt rows; of those that all samples share, computed once.

    Args:
        parts: Through the block's own first norm if it has one.
        project: Makes keys and values (b, n, A) of rows (b, n, D).
        batch: B.

    Returns:
        Keys and values of each part, (B, n_j, A): to be joined with others in one copy.
    """
    made = [project(part) for part in parts]
    keys, values = (
        [rows.expand(batch, -1, -1) for rows in kind] for kind in zip(*made, strict=True)
    )
    return keys, values


def split_heads(rows: Tensor, head_dim: int) -> Tensor:
    """(B, n, heads * head_dim) to (B, heads, n, head_dim)."""
    return rows.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def widen_mask(mask: Tensor | None, extra: int) -> Tensor | None:
    """Let every query see ``extra`` more keys in front.

    Args:
        mask: (..., L, S), bool with True = visible, or additive float; None if all is visible.
        extra: Number of keys in front that are never masked.
    """
    if mask is None or extra == 0:
        return mask
    visible = True if mask.dtype == torch.bool else 0.0
    return F.pad(mask, (extra, 0), value=visible)


def hide_behind(mask: Tensor, extra: int) -> Tensor:
    """Let no query see ``extra`` more keys behind the others; ``mask`` as in :func:`widen_mask`."""
    if extra == 0:
        return mask
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return F.pad(mask, (0, extra), value=hidden)


def hide_tokens(
    mask: Tensor | None,
    visible: Tensor | None,
    place: int,
    length: int,
    causal: bool,
    blind: Tensor | None = None,
) -> Tensor | None:
    """Hide some tokens from each other, or all others from them; each sees itself.

    Args:
        mask: (..., L, L), bool with True = visible, or additive float; None if all is visible, or
            all up to the query if ``causal``.
        visible: (n, n) bool, True = the row's token sees the column's; None if all do.
        place: Where the first of the n tokens stands.
        length: L.
        causal: What ``mask`` None means.
        blind: (n,) bool, True = the token sees none but the n; None for none of them.

    Returns:
        The mask, broadcastable to (..., L, L); ``mask`` itself if nothing is to be hidden.
    """
    given = visible if blind is None else blind
    if given is None:
        return mask
    seen = torch.ones(length, length, dtype=torch.bool, device=given.device)
    if mask is None and causal:
        seen = seen.tril()
    end = place + len(given)
    if visible is not None:
        # Else a blind token that is hidden from all would have nothing to attend to.
        itself = torch.eye(len(visible), dtype=torch.bool, device=visible.device)
        seen[place:end, place:end] &= visible | itself
    if blind is not None:
        seen[place:end, :place] &= ~blind[:, None]
        seen[place:end, end:] &= ~blind[:, None]
    if mask is None:
        return seen[None, None]
    if mask.dtype == torch.bool:
        return mask & seen
    return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)


def run_concatenated(
    block: Callable[[Tensor], Tensor], tokens: Tensor, prompts: Tensor | None, prefix: int = 0
) -> Tensor:
    """Run a block on ``[prefix tokens, prompts, tokens]`` (Eq. 3 of arXiv 2312.03734).

    Args:
        block: Maps (B, L + n, D) to the same shape; masks included.
        tokens: (B, L, D), the first ``prefix`` of them class tokens and the like.
        prompts: (B, n, D) or None.
        prefix: Number of tokens that stay in front of the prompts.

    Returns:
        (B, L, D): the outputs at the prompt positions are dropped.
    """
    if prompts is None or prompts.shape[1] == 0:
        return block(tokens)
    n, prefix = prompts.shape[1], min(prefix, tokens.shape[1])
    rows = prompts.to(tokens.dtype)  # under autocast, concatenation would promote the tokens
    out = block(torch.cat([tokens[:, :prefix], rows, tokens[:, prefix:]], dim=1))
    return torch.cat([out[:, :prefix], out[:, prefix + n :]], dim=1)
