"""Learned stand-ins for what a sample lacks.

A zero vector or a blank image would be a value like any other; a learned vector tells the layers
behind it that there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fusionkit.encoders.base import PRESENT, Features, Inputs, TokenState

_INIT_STD = 0.02  # that of BERT and ViT for learned tokens


def make_stand_in(width: int) -> nn.Parameter:
    """One vector, (width,)."""
    return nn.Parameter(nn.init.normal_(torch.empty(width), std=_INIT_STD))


def take_presence(inputs: Inputs) -> tuple[Mapping[str, Tensor], Tensor | None]:
    """A role's inputs for its encoder, and (B,) bool, True = present; None if all are."""
    rows = {name: tensor for name, tensor in inputs.items() if name != PRESENT}
    return rows, inputs.get(PRESENT)


def idle(stand_in: Tensor, encoder: nn.Module) -> Tensor:
    """The same stand-in in the place of an encoder that has nothing to see.

    Its trained weights take part with gradient zero, since processes that train together must
    agree on which gradients there are.
    """
    trained = [p for p in encoder.parameters() if p.requires_grad and torch.is_grad_enabled()]
    return stand_in + sum(0 * weight.sum() for weight in trained)


@contextmanager
def resting_batch_norms(encoder: nn.Module) -> Iterator[None]:
    """Batch norms use their running statistics: a single present row has no spread to norm by."""
    norms = [m for m in encoder.modules() if isinstance(m, _BatchNorm) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def fill_in(features: Features | None, present: Tensor, stand_in: Tensor) -> Features:
    """Features of a whole batch from those of its present rows.

    Args:
        features: Of the P present rows, in order; None where P is 0.
        present: (B,) bool, True = present.
        stand_in: (C,), the pooled feature of all other rows and their only real token.

    Returns:
        Features of B rows; with tokens if ``features`` has some, or if there are none to follow.
    """
    batch = len(present)
    if features is None:
        pooled = stand_in.expand(batch, -1)
        return Features(pooled, pooled.unsqueeze(1))
    # Gathered and chosen from, not written into: masked writes would wait for the device.
    place = (present.cumsum(0) - 1).clamp(min=0)
    stand_in = stand_in.to(features.pooled.dtype)
    pooled = torch.where(present[:, None], features.pooled[place], stand_in)
    if features.tokens is None:
        return Features(pooled)
    tokens = features.tokens[place]
    first = torch.arange(tokens.shape[1], device=tokens.device) == 0  # (T,)
    alone = torch.where(first[:, None], stand_in.to(tokens.dtype), tokens.new_zeros(()))  # (T, C)
    keep = present[:, None] if features.keep is None else features.keep[place]
    return Features(
        pooled,
        torch.where(present[:, None, None], tokens, alone),
        torch.where(present[:, None], keep, first),
    )


@dataclass(frozen=True, slots=True)
class ReplaceTokens:
    """A :class:`~fusionkit.encoders.base.TokenEdit`: stand-ins enter the first layer.

    Attributes:
        present: (B,) bool, True = present.
        stand_in: (D_0,), every token of the other rows.
    """

    present: Tensor
    stand_in: Tensor

    def __call__(self, layer: int, state: TokenState) -> TokenState:
        if layer > 0:
            return state
        tokens = state.tokens
        present = self.present.view(-1, *[1] * (tokens.ndim - 1))
        return state.with_tokens(torch.where(present, tokens, self.stand_in.to(tokens.dtype)))
