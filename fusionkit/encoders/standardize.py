"""Numbers with mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Standardizer(nn.Module):
    """``(x - mean) / std``, both taken from the training split; at first 0 and 1.

    Args:
        width: Size of the last dimension.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        return (x - self.mean) / self.std

    def fit(self, blocks: Iterable[NDArray[np.float64]]) -> None:
        """Take mean and standard deviation in one pass, in memory of one block.

        A column without spread keeps 1 as its standard deviation.

        Args:
            blocks: (n, width) each, NaN where a value is absent.
        """
        count, mean, squares = np.zeros((3, *self.mean.shape))
        for block in blocks:  # merged as in Chan, Golub and LeVeque 1979, eq. 2.1
            present = ~np.isnan(block)
            n = present.sum(axis=0)
            own = np.where(present, block, 0).sum(axis=0) / np.maximum(n, 1)
            within = (np.where(present, block - own, 0) ** 2).sum(axis=0)
            delta, total = own - mean, np.maximum(count + n, 1)
            squares += within + delta**2 * count * n / total
            mean += delta * n / total
            count += n
        std: NDArray[Any] = np.sqrt(squares / np.maximum(count, 1))
        # Less spread than float32 can tell apart is rounding.
        std[std <= np.finfo(np.float32).eps * np.abs(mean)] = 1
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(std))
