"""Static prompts: learned rows for every layer, the same for all instances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# The authors' code: VPT's Xavier rule sqrt(6 / (3 * patch + width)) at patch 16 and width 128.
INIT_RANGE = math.sqrt(6 / (3 * 16 + 128))


def uniform_rows(*shape: int, init_range: float = INIT_RANGE) -> nn.Parameter:
    """A parameter drawn from U(-init_range, init_range)."""
    return nn.Parameter(torch.empty(*shape).uniform_(-init_range, init_range))


class StaticPrompts(nn.Module):
    """P_s of Eq. 3 of arXiv 2312.03734, one set of rows for each layer.

    Args:
        widths: D_i of each prompted layer.
        length: l, rows per layer.
        init_range: Rows start as U(-init_range, init_range).
    """

    def __init__(self, widths: Sequence[int], length: int, init_range: float = INIT_RANGE) -> None:
        super().__init__()
        self.rows = nn.ParameterList(
            uniform_rows(length, width, init_range=init_range) for width in widths
        )

    def forward(self, slot: int, batch: int) -> Tensor:
        """Rows of the ``slot``-th prompted layer, (batch, l, D)."""
        rows: Tensor = self.rows[slot]
        return rows.expand(batch, -1, -1)
