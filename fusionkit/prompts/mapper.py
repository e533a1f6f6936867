"""The mapper: a complementary feature becomes one prompt row."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Mapper(nn.Module):
    """f_m of Eq. 3 of arXiv 2312.03734: a two-layer MLP with GELU.

    The first layer is shared, the second exists once for each distinct width, which gives the
    parameter column of the paper's Table 1.

    Args:
        psi_dim: C, width of the complementary feature.
        hidden_dim: Width of the shared layer.
        widths: D_i of the prompted layers; repeated widths share their map.
    """

    def __init__(self, psi_dim: int, hidden_dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(psi_dim, hidden_dim), nn.GELU())
        self.by_width = nn.ModuleDict(
            {
                str(width): nn.Sequential(nn.Linear(hidden_dim, width), nn.GELU())
                for width in dict.fromkeys(widths)
            }
        )

    def forward(self, psi: Tensor) -> dict[int, Tensor]:
        """The mapped prompt of each width: D -> (B, 1, D)."""
        hidden = self.shared(psi)
        return {int(width): head(hidden).unsqueeze(1) for width, head in self.by_width.items()}
