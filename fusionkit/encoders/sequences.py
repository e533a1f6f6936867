"""Rows of different length in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.rnn import pad_sequence


def pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of (T_i, ...) to (B, T, ...), zeros after their end, and (B, T) bool, True = real."""
    lengths = torch.tensor([len(row) for row in rows])
    keep = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    return pad_sequence(list(rows), batch_first=True), keep


def masked_mean(tokens: Tensor, keep: Tensor) -> Tensor:
    """Mean over the real tokens, zeros where there is none.

    Args:
        tokens: (B, T, C).
        keep: (B, T) bool, True = real token.

    Returns:
        (B, C).
    """
    weights = keep.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)


def insert_rows(tensor: Tensor, rows: Tensor, place: int) -> Tensor:
    """(B, L, ...) with (B, n, ...) between positions ``place`` - 1 and ``place``."""
    return torch.cat([tensor[:, :place], rows.to(tensor.dtype), tensor[:, place:]], dim=1)


def all_real(rows: Tensor) -> Tensor:
    """(B, n) bool for (B, n, D): every row is a real token."""
    return rows.new_ones(rows.shape[:2], dtype=torch.bool)


def append_rows(tokens: Tensor, keep: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, D) and keep (B, L) with real rows (B, n, D) behind, if there are any."""
    if rows is None:
        return tokens, keep
    return torch.cat([tokens, rows], dim=1), torch.cat([keep, all_real(rows)], dim=1)


def known_real(keep: Tensor) -> bool:
    """Whether no token is padding, as far as can be told at once.

    On a GPU the host would have to wait for the answer, which is no then; so it is of tensors
    that have no values.

    Args:
        keep: (B, L) bool, True = real.
    """
    if keep.device.type != "cpu" or torch.compiler.is_compiling() or isinstance(keep, FakeTensor):
        return False
    return bool(keep.all())
