"""Static prompts: learned rows for every layer, the same for all instances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

# The authors' code: VPT's Xavier rule sqrt(6 / (3 * patch + width)) at patch 16 and width 128.
INIT_RANGE = math.sqrt(6 / (3 * 16 + 128))


def uniform_rows(*shape: int, init_range: float = INIT_RANGE) -> nn.Parameter:
    """A parameter drawn from U(-init_range, init_range)."""
    return nn.Parameter(torch.empty(*shape).uniform_(-init_range, init_range))


class ByWidth(nn.ParameterDict):
    """One tensor (N_D, ..., D) for the N_D layers of each width D.

    Few large tensors are mixed, dropped and updated in fewer steps than many small ones.

    Args:
        widths: D_i of each layer.
        shape: What stands between N_D and D.
        init_range: Entries start as U(-init_range, init_range).
    """

    def __init__(self, widths: Sequence[int], shape: Sequence[int], init_range: float) -> None:
        self.places: dict[str, list[int]] = {}
        for place, width in enumerate(widths):
            self.places.setdefault(str(width), []).append(place)
        super().__init__(
            {
                width: uniform_rows(len(places), *shape, int(width), init_range=init_range)
                for width, places in self.places.items()
            }
        )

    def in_order(self, by_width: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """One tensor for each layer, in the order of the layers.

        Args:
            by_width: What is taken apart, (N_D, ...) by width; None for what is learned.
        """
        if by_width is None:
            by_width = dict(self.items())
        found: dict[int, Tensor] = {}
        for width, places in self.places.items():
            found.update(zip(places, by_width[width].unbind(), strict=True))
        return [found[place] for place in range(len(found))]


class StaticPrompts(nn.Module):
    """P_s of Eq. 3 of arXiv 2312.03734, one set of rows for each layer.

    Args:
        widths: D_i of each prompted layer.
        length: l, rows per layer.
        init_range: Rows start as U(-init_range, init_range).
    """

    def __init__(self, widths: Sequence[int], length: int, init_range: float = INIT_RANGE) -> None:
        super().__init__()
        self.rows = ByWidth(widths, (length,), init_range)

    def forward(self, dropout: nn.Dropout) -> list[Tensor]:
        """Rows of every prompted layer, (1, l, D_i).

        Args:
            dropout: Drops entries, the same ones for all samples of a batch, so that the rows
                become keys and values once for all of them.
        """
        dropped = {width: dropout(rows).unsqueeze(1) for width, rows in self.rows.items()}
        return self.rows.in_order(dropped)
