"""Routers: which prompt experts an instance uses, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Query widths of the multimodal router: what the main encoder sees, what the complement saw.
QUERY_MAIN, QUERY_COMPLEMENT = 2, 8  # arXiv 2403.10568


@dataclass(frozen=True, slots=True)
class Gate:
    """How logits become weights.

    Attributes:
        temperature: tau; logits are divided by it.
        noise: Standard deviation of the normal noise added in training.
        top_k: Experts that keep their probability; None for all (dense).
    """

    temperature: float
    noise: float
    top_k: int | None

    def __call__(self, logits: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Weights and probabilities of the experts.

        r = softmax(logits / tau + eps), kept where it is among the top k and 0 elsewhere (Eq. 7
        of arXiv 2312.03734: the kept probability is the gate value, so the router gets a gradient).

        Args:
            logits: (..., k).
            training: Whether noise is added.

        Returns:
            weights (..., k), what mixes the experts, and probabilities (..., k), the softmax
            without noise and before any top-k.
        """
        scaled = logits.float() / self.temperature
        probabilities = scaled.softmax(dim=-1)
        weights = probabilities
        if training and self.noise > 0:
            weights = (scaled + self.noise * torch.randn_like(scaled)).softmax(dim=-1)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kept = weights.topk(self.top_k, dim=-1).indices
            weights = weights * torch.zeros_like(weights).scatter(-1, kept, 1.0)
        return weights.to(logits.dtype), probabilities


class ComplementRouter(nn.Module):
    """logits = W_i psi + b_i, one linear map for each layer (arXiv 2312.03734, section 3.3).

    Args:
        psi_dim: C, width of the complementary feature.
        layers: N, number of prompted layers.
        experts: k.
    """

    def __init__(self, psi_dim: int, layers: int, experts: int) -> None:
        super().__init__()
        self.shape = (layers, experts)
        self.linear = nn.Linear(psi_dim, layers * experts)  # all layers in one product

    def prepare(self, psi: Tensor) -> Tensor:
        """Logits of all layers, (B, N, k)."""
        logits: Tensor = self.linear(psi)
        return logits.unflatten(-1, self.shape)


class MultimodalRouter(nn.Module):
    """logits = [A_i xbar ; C_i psi] K_i with frozen orthogonal keys K_i (arXiv 2403.10568).

    Args:
        psi_dim: C, width of the complementary feature.
        widths: D_i of each prompted layer.
        experts: k.
    """

    keys: Tensor

    def __init__(self, psi_dim: int, widths: Sequence[int], experts: int) -> None:
        super().__init__()
        self.from_main = nn.ModuleList(nn.Linear(width, QUERY_MAIN, bias=False) for width in widths)
        self.from_complement = nn.Linear(psi_dim, len(widths) * QUERY_COMPLEMENT, bias=False)
        keys = torch.empty(len(widths), QUERY_MAIN + QUERY_COMPLEMENT, experts)
        for key in keys:
            nn.init.orthogonal_(key)
        self.register_buffer("keys", keys)

    def prepare(self, psi: Tensor) -> Tensor:
        """The complement's part of all queries, (B, N, 8)."""
        query: Tensor = self.from_complement(psi)
        return query.unflatten(-1, (len(self.from_main), QUERY_COMPLEMENT))

    def forward(self, prepared: Tensor, slot: int, tokens_mean: Tensor) -> Tensor:
        """Logits of one layer, (B, k); ``tokens_mean`` (B, D) is over the layer's input tokens."""
        query = torch.cat([self.from_main[slot](tokens_mean), prepared[:, slot]], dim=-1)
        return query @ self.keys[slot].to(query.dtype)
