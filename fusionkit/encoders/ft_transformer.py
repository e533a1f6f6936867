"""FT-Transformer: each column of a table becomes a token (Gorishniy et al. 2021, 2106.11959)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.encoders.standardize import Standardizer

HEADS = 8  # this and the rates below: section 4.3 of arXiv 2106.11959, "default" FT-Transformer
_ATTENTION_DROPOUT, _HIDDEN_DROPOUT = 0.2, 0.1
_HIDDEN = 4 / 3  # width of the feed-forward part, in widths of a token


class FTTransformer(nn.Module):
    """Feature tokenizer and pre-norm Transformer, read out at a class token.

    A number x of column j becomes ``bias_j + x * weight_j``, a category ``bias_j`` plus the mean
    of the two rows it is hashed to (Svenstrup et al. 2017, arXiv 1709.03933): two categories
    share one row here and there, and both next to never. An empty number is 0, the mean, and
    adds a learned row of its column; an empty category has a learned row of its column.

    Args:
        numeric: Number of numeric columns.
        categorical: Number of categorical columns.
        buckets: Rows that categories are hashed to.
        dim: C, width of a token, a multiple of 8.
        layers: Number of blocks.
    """

    def __init__(self, numeric: int, categorical: int, buckets: int, dim: int, layers: int) -> None:
        super().__init__()
        rows = buckets + categorical if categorical else 0
        self.scale = Standardizer(numeric)
        self.weight = nn.Parameter(torch.empty(numeric, dim))
        self.empty = nn.Parameter(torch.empty(numeric, dim))
        self.categories = nn.Embedding(rows, dim)
        self.bias = nn.Parameter(torch.empty(numeric + categorical, dim))
        self.cls = nn.Parameter(torch.empty(1, dim))
        for drawn in (self.weight, self.empty, self.categories.weight, self.bias, self.cls):
            nn.init.uniform_(drawn, -(dim**-0.5), dim**-0.5)
        self.blocks = nn.ModuleList(Block(dim, first=layer == 0) for layer in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, numbers: Tensor, empty: Tensor, categories: Tensor) -> Tensor:
        """Columns to tokens.

        Args:
            numbers: (B, numeric), anything where empty.
            empty: (B, numeric) bool, True = empty cell.
            categories: (B, categorical, 2) rows of the table of embeddings.

        Returns:
            (B, 1 + numeric + categorical, C), normed, the class token first.
        """
        x = self.scale(numbers).masked_fill(empty, 0).unsqueeze(-1) * self.weight
        x = x + empty.unsqueeze(-1) * self.empty
        columns = torch.cat([x, self.categories(categories).mean(dim=-2)], dim=1) + self.bias
        tokens = torch.cat([self.cls.expand(len(columns), 1, -1), columns], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class Block(nn.Module):
    """A pre-norm block with a ReGLU feed-forward part.

    Args:
        dim: Width of a token.
        first: Whether it is the first block, which norms nothing ahead of its attention.
    """

    def __init__(self, dim: int, first: bool) -> None:
        super().__init__()
        hidden = int(_HIDDEN * dim)
        self.norm1 = nn.Identity() if first else nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(_HIDDEN_DROPOUT)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        rate = _ATTENTION_DROPOUT if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        value, gate = self.fc1(self.norm2(x)).chunk(2, dim=-1)
        hidden: Tensor = x + self.fc2(self.dropout(value * F.relu(gate)))
        return hidden
