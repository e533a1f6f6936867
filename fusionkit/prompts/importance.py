"""The importance loss: it keeps a few experts from serving everybody."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce whose gradient is all-reduced too.

    Each process then holds the gradient of the sum of all processes' losses; the mean that data
    parallel training takes over processes makes it the gradient of one loss over the whole batch.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def importance_loss(probabilities: Tensor, threshold: float) -> Tensor:
    """Squared coefficient of variation of the experts' importance (Eq. 5, 6 of arXiv 2312.03734).

    Imp_e = sum of the noise-free routing probabilities of expert e over the batch (over all
    processes in distributed training); CV2 = (std / mean)^2 over the experts with the sample
    standard deviation, as in the authors' code; averaged over layers. A layer whose CV2 is below
    the threshold contributes 0 and gets no gradient.

    Args:
        probabilities: (B, N, k) over batch, layers and experts.
        threshold: gamma.

    Returns:
        A scalar; 0 for a single expert, which nothing can unbalance.
    """
    if probabilities.shape[-1] == 1:
        return probabilities.new_zeros(())
    importance = probabilities.float().sum(dim=0)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        importance = _SumOverProcesses.apply(importance)
    variation = importance.var(dim=-1) / importance.mean(dim=-1).square()
    return torch.where(variation < threshold, 0.0, variation).mean()
