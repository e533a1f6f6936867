"""What travels through an encoder: tokens, further tokens, features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Features:
    """What an encoder saw.

    Attributes:
        pooled: (B, C), one vector per sample: psi of arXiv 2312.03734, section 3.2.
        tokens: (B, T, C), the sequence it was pooled from, or None if there is none.
        keep: (B, T) bool, True = real token, or None if all are real.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    keep: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TokenState:
    """The tokens that enter a layer.

    Attributes:
        tokens: (B, L, D_i), or (B, H, W, D_i) for windowed encoders.
        keep: (B, L) bool, True = real token; None if all are real.
        cache: Private to the encoder: attention masks, lengths and the like.
    """

    tokens: Tensor
    keep: Tensor | None = None
    cache: Any = None

    def with_tokens(self, tokens: Tensor) -> TokenState:
        """The same state with other tokens."""
        return replace(self, tokens=tokens)


@dataclass(frozen=True, slots=True)
class ExtraTokens:
    """Further tokens of a main encoder's input, beside those of its own field.

    Unlike prompts they travel: what a layer makes of them enters the next. They are cut off before
    the readout. Where the field's tokens see only what came before, or a window of their own
    neighbourhood, so do these.

    Attributes:
        rows: (B, n, D_0), where word embeddings stand in a text encoder: before positions and norm.
        visible: (n, n) bool, True = the row's token sees the column's; None if all do. Each sees
            itself, whatever it says.
        blind: (n,) bool, True = the token sees none of the field's; None if all see them. The
            tokens of the field see all further ones.
    """

    rows: Tensor
    visible: Tensor | None = None
    blind: Tensor | None = None


def split_first(state: TokenState, count: int) -> tuple[TokenState, TokenState]:
    """The first ``count`` tokens, and the others: for encoders that pool those in front."""
    tokens, keep = state.tokens, state.keep
    first = TokenState(tokens[:, :count], None if keep is None else keep[:, :count], state.cache)
    others = None if keep is None else keep[:, count:]
    return first, TokenState(tokens[:, count:], others, state.cache)


def split_one(state: TokenState, index: Tensor) -> tuple[TokenState, TokenState]:
    """The token of each row at ``index``, (B,), and the others, among which it is masked."""
    tokens, keep = state.tokens, state.keep
    assert keep is not None
    rows = torch.arange(len(tokens), device=tokens.device)
    places = torch.arange(tokens.shape[1], device=tokens.device)
    one = TokenState(tokens[rows, index].unsqueeze(1), torch.ones_like(keep[:, :1]), state.cache)
    others = keep & (places < index.unsqueeze(1))
    return one, TokenState(tokens, others, state.cache)


def append_tokens(state: TokenState, rows: Tensor) -> TokenState:
    """The state with further real tokens behind all others."""
    tokens = torch.cat([state.tokens, rows.to(state.tokens.dtype)], dim=1)
    keep = None if state.keep is None else F.pad(state.keep, (0, rows.shape[1]), value=True)
    return TokenState(tokens, keep, state.cache)


def keep_tokens(state: TokenState, before: TokenState, place: int, count: int) -> TokenState:
    """The state with ``count`` tokens from ``place`` on as they were before."""
    end, tokens = place + count, state.tokens
    kept = before.tokens[:, place:end]
    return state.with_tokens(torch.cat([tokens[:, :place], kept, tokens[:, end:]], dim=1))


def cut_tokens(state: TokenState, place: int, count: int) -> TokenState:
    """The state without ``count`` tokens from ``place`` on."""

    def cut(rows: Tensor) -> Tensor:
        return torch.cat([rows[:, :place], rows[:, place + count :]], dim=1)

    keep = None if state.keep is None else cut(state.keep)
    return TokenState(cut(state.tokens), keep, state.cache)
