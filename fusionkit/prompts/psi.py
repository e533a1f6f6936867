"""psi: one vector of what all complements saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fusionkit.errors import ConfigError

PsiMode = Literal["concat", "sum", "attention"]

# Three complements then make the 768 wide psi that the paper's figures were measured with.
PSI_DIM = 256


class Psi(nn.Module):
    """The complementary feature psi.

    One complement: psi is its pooled feature as it is, without parameters (arXiv 2312.03734,
    section 3.2), and ``mode`` and ``dim`` say nothing. Several: each feature x_j is projected,
    z_j = W_j x_j + b_j, and psi is

    - ``concat``: [z_1; ...; z_J], J d wide. Every complement keeps its own place.
    - ``sum``: z_1 + ... + z_J, d wide: one linear map of all features together. Not divided by
      J, which the W_j would only learn to undo.
    - ``attention``: sum_j a_j z_j, a = softmax_j(q . z_j / sqrt(d)), d wide, with one learned
      query q: how much a complement counts differs from sample to sample. q starts at 0, so
      psi starts as the mean.

    Nothing is normalised, as in the paper; each W_j learns the scale of its complement.
    Parameters: d * sum_j (C_j + 1), and d more for ``attention``.

    Args:
        complement_dims: C_j of each complement.
        mode: How several become one.
        dim: d.

    Raises:
        ConfigError: ``dim`` is below 1.
    """

    def __init__(self, complement_dims: Sequence[int], mode: PsiMode, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ConfigError(f"psi_dim is at least 1, given {dim}.")
        several = len(complement_dims) > 1
        self.mode = mode
        self.project = nn.ModuleList(nn.Linear(width, dim) for width in complement_dims if several)
        self.query = nn.Parameter(torch.zeros(dim)) if several and mode == "attention" else None
        self.out_dim = dim if several else complement_dims[0]
        if several and mode == "concat":
            self.out_dim *= len(complement_dims)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """One vector per sample.

        Args:
            pooled: (B, C_j) of each complement, in the order of ``complement_dims``.

        Returns:
            (B, out_dim).
        """
        if not self.project:
            return pooled[0]
        projected = [linear(x) for linear, x in zip(self.project, pooled, strict=True)]
        if self.mode == "concat":
            return torch.cat(projected, dim=-1)
        seen = torch.stack(projected, dim=1)  # (B, J, d)
        if self.query is None:
            return seen.sum(dim=1)
        scores = seen @ self.query.to(seen.dtype) / math.sqrt(len(self.query))
        weights = scores.softmax(dim=1).to(seen.dtype)  # autocast computes it in float32
        return (weights.unsqueeze(-1) * seen).sum(dim=1)
