"""Mappers: what the complements saw becomes prompt rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.encoders.base import Features
from fusionkit.errors import ConfigError

HEADS = 4  # of the sequence mapper: a row reads four places of the sequence


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
        self.widths = tuple(widths)
        self.shared = _layer(psi_dim, hidden_dim)
        self.by_width = _by_width(hidden_dim, widths)

    def forward(self, psi: Tensor) -> list[Tensor]:
        """The mapped prompt of each prompted layer, (B, 1, D_i)."""
        hidden = self.shared(psi)
        rows = {width: head(hidden).unsqueeze(1) for width, head in self.by_width.items()}
        return [rows[str(width)] for width in self.widths]


class SequenceMapper(nn.Module):
    """Mapped prompts from a sequence of features, where the paper's mapper reads one vector.

    Hidden tokens h_t = GELU(W x_t + b) come from the shared layer of their complement; several
    complements' tokens form one sequence. Row a of layer i reads it by a learned query u_ia:

        r_ia = sum_t softmax_t(u_ia . h_t / sqrt(d)) h_t    over the real tokens,

    in four heads over chunks of d = H / 4, and becomes the prompt GELU(V r_ia + c) by the map of
    the layer's width. Keys and values are h itself: with one token r = h, exactly
    :class:`Mapper`. A complement without tokens is a sequence of one, its pooled feature. A row
    without any real token has r = 0.

    Tokens have no order here: their positions count as far as their encoder wrote them in.

    All queries meet the sequence in one fused attention. What it adds to training memory are the
    hidden tokens (B, T, H), before and after the GELU, and r (B, N m, H); attention weights are
    not kept where torch has a fused kernel. Parameters: those of :class:`Mapper` for each
    complement's shared layer and for the widths, and N m H for the queries.

    Args:
        complement_dims: C_j of each complement.
        hidden_dim: H, a multiple of 4.
        widths: D_i of the N prompted layers; repeated widths share their map, not their queries.
        length: m, rows for each layer.

    Raises:
        ConfigError: ``hidden_dim`` is no multiple of 4.
    """

    def __init__(
        self, complement_dims: Sequence[int], hidden_dim: int, widths: Sequence[int], length: int
    ) -> None:
        super().__init__()
        if hidden_dim % HEADS:
            raise ConfigError(
                f"mapper: sequence reads in {HEADS} heads, so mapper_dim is a multiple of "
                f"{HEADS}, given {hidden_dim}."
            )
        self.widths = tuple(widths)
        self.length = length
        self.shared = nn.ModuleList(_layer(width, hidden_dim) for width in complement_dims)
        # Not near zero: rows of one layer that read alike get the same gradient and stay alike.
        self.queries = nn.Parameter(torch.randn(len(widths) * length, hidden_dim))
        self.by_width = _by_width(hidden_dim, widths)

    def forward(self, seen: Sequence[Features]) -> list[Tensor]:
        """The mapped prompts of each prompted layer, (B, m, D_i).

        Args:
            seen: Of each complement, in the order of ``complement_dims``.
        """
        hidden, keep = self._hidden(seen)
        read = self._read(hidden, keep).unflatten(1, (len(self.widths), self.length))
        by_width = {}
        for width, head in self.by_width.items():
            slots = [slot for slot, own in enumerate(self.widths) if str(own) == width]
            by_width[width] = iter(head(read[:, slots]).unbind(dim=1))
        return [next(by_width[str(width)]) for width in self.widths]

    def _hidden(self, seen: Sequence[Features]) -> tuple[Tensor, Tensor | None]:
        """h (B, T, H) of all complements, and keep (B, T), None if all tokens are real."""
        hidden, keeps = [], []
        for shared, features in zip(self.shared, seen, strict=True):
            x = features.pooled.unsqueeze(1) if features.tokens is None else features.tokens
            hidden.append(shared(x))
            keeps.append(features.keep)
        if all(keep is None for keep in keeps):
            return torch.cat(hidden, dim=1), None
        real = [
            h.new_ones(h.shape[:2], dtype=torch.bool) if keep is None else keep
            for h, keep in zip(hidden, keeps, strict=True)
        ]
        return torch.cat(hidden, dim=1), torch.cat(real, dim=1)

    def _read(self, hidden: Tensor, keep: Tensor | None) -> Tensor:
        """r of all rows of all layers, (B, N m, H)."""
        tokens = hidden.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (B, heads, T, d)
        queries = self.queries.to(hidden.dtype).unflatten(-1, (HEADS, -1)).transpose(0, 1)
        queries = queries.expand(len(hidden), -1, -1, -1)
        if keep is None:
            read = F.scaled_dot_product_attention(queries, tokens, tokens)
            return read.transpose(1, 2).flatten(2)
        # A softmax over nothing is not a number: such rows look at their padding and drop it.
        some = keep.any(dim=1)
        mask = (keep | ~some.unsqueeze(1))[:, None, None]
        read = F.scaled_dot_product_attention(queries, tokens, tokens, mask)
        return torch.where(some[:, None, None], read.transpose(1, 2).flatten(2), 0.0)


def _layer(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU())


def _by_width(hidden_dim: int, widths: Sequence[int]) -> nn.ModuleDict:
    return nn.ModuleDict({str(width): _layer(hidden_dim, width) for width in dict.fromkeys(widths)})
