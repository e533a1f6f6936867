"""A main encoder and a complement in plain PyTorch, small enough for every test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.data.base import Dataset, Sample, Split, Task
from fusionkit.encoders.base import ComplementEncoder, Features, Inputs, MainEncoder, TokenState
from fusionkit.encoders.stack import BlockStack
from fusionkit.errors import DataError


class Vectors:
    """Preprocessor of rows that are lists of numbers."""

    def __call__(self, raw: Any) -> Tensor:
        if isinstance(raw, str):
            raise DataError(f"{raw!r} is no list of numbers.")
        return torch.as_tensor(raw, dtype=torch.float32)

    def collate(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"x": torch.stack(list(rows))}


class Block(nn.Module):
    """Pre-norm self-attention with dropout and a batch norm, to see that frozen means frozen."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(dim),
            nn.Linear(dim, 3 * dim),
            nn.Linear(dim, dim),
        )
        self.dropout, self.batch_norm = nn.Dropout(0.5), nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.dropout(self.out(F.scaled_dot_product_attention(q, k, v)))
        return self.batch_norm(x.transpose(1, 2)).transpose(1, 2)


class TinyMain(BlockStack):
    """Two or more blocks over (B, L * dim) numbers cut into L tokens."""

    modality: ClassVar[Any] = "vector"

    def __init__(self, dim: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.dim = dim
        self.backbone = nn.ModuleList(Block(dim) for _ in range(depth))

    @property
    def layers(self) -> Sequence[nn.Module]:
        return list(self.backbone)

    @property
    def out_dim(self) -> int:
        return self.dim

    def preprocessor(self, train: bool) -> Vectors:
        return Vectors()

    def embed(self, inputs: Inputs) -> TokenState:
        return TokenState(inputs["x"].unflatten(-1, (-1, self.dim)))

    def readout(self, state: TokenState) -> Features:
        return Features(state.tokens.mean(dim=1), state.tokens)


class TinyComplement(ComplementEncoder):
    """One linear map with dropout and a batch norm."""

    modality: ClassVar[Any] = "vector"

    def __init__(self, in_dim: int = 6, dim: int = 5) -> None:
        super().__init__()
        self.dim = dim
        self.backbone = nn.Sequential(nn.Linear(in_dim, dim), nn.BatchNorm1d(dim), nn.Dropout(0.5))

    @property
    def out_dim(self) -> int:
        return self.dim

    def preprocessor(self, train: bool) -> Vectors:
        return Vectors()

    def encode(self, inputs: Inputs) -> Features:
        return Features(self.backbone(inputs["x"]))


def main_state(encoder: MainEncoder, batch: int, tokens: int = 3) -> TokenState:
    return TokenState(torch.randn(batch, tokens, encoder.layer_widths[0]))


class TinyData(Dataset):
    """Rows of random numbers; the label needs both fields."""

    def __init__(
        self,
        task: Task = "single_label",
        sizes: tuple[int, int, int] = (64, 16, 16),
        seed: int = 0,
        unreadable: bool = False,
        one_class: bool = False,
        lack: str | None = None,
        redundant: bool = False,
    ) -> None:
        self.one_class = one_class
        self.lack = lack  # every third sample lacks this field
        self.redundant = redundant  # either field says the label, b more clearly
        self.task = task
        self.sizes = sizes
        self.seed = seed
        self.unreadable = unreadable
        self.fields = {"a": "vector", "b": "vector"}

    @property
    def classes(self) -> list[str] | None:
        return None if self.task == "regression" else ["no", "yes"][: 1 if self.one_class else 2]

    def split(self, name: Split) -> list[Sample]:
        number = ("train", "val", "test").index(name)
        rng = torch.Generator().manual_seed(self.seed + number)
        samples = []
        for i in range(self.sizes[number]):
            a = torch.randn(24, generator=rng)
            b = torch.randn(6, generator=rng)
            value = (a[:6] * b).sum().item()
            if self.redundant:
                sign = math.copysign(1, value)
                a, b = a + 0.3 * sign, b + 3 * sign
            targets = {
                "single_label": int(value > 0),
                "multi_label": [j for j in (0, 1) if a[j] * b[j] > 0],
                "regression": 100 + 10 * value,
            }
            raw = "broken" if self.unreadable and i == 3 else a.tolist()
            target: Any = targets[self.task]
            fields = {"a": raw, "b": b.tolist()}
            if self.lack and i % 3 == 0:
                fields[self.lack] = None
            samples.append(Sample(str(i), fields, target, f"tiny {name}, row {i + 1}"))
        return samples
