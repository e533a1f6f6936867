"""The conditional-prompt engine: static, dynamic and mapped prompts for every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fusionkit.encoders.base import Features, TokenState
from fusionkit.errors import ConfigError
from fusionkit.prompts.mapper import Mapper, SequenceMapper
from fusionkit.prompts.psi import PSI_DIM, Psi, PsiMode
from fusionkit.prompts.router import ComplementRouter, Gate, MultimodalRouter
from fusionkit.prompts.static import INIT_RANGE, ByWidth, StaticPrompts


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts each sample of a batch used.

    Attributes:
        weights: (B, N, k), what mixed the experts: noise in training, zeros outside the top k.
        probabilities: (B, N, k), the softmax without noise and before any top-k.
        layers: The N prompted layers' indices in the main encoder.
    """

    weights: Tensor
    probabilities: Tensor
    layers: tuple[int, ...]


class ConditionalPrompts(nn.Module):
    """Prompts ``[P_s, P_d, P_m]`` of Eq. 3 of arXiv 2312.03734.

    P_s is learned and the same for all instances, P_d = sum_e r_e E_e mixes k prompt experts by
    the router's scores (Eq. 4), P_m = f_m(psi) maps the complementary feature to one row or, under
    ``mapper="sequence"``, reads m rows from the complements' tokens.

    Args:
        widths: D_i of every layer of the main encoder.
        complement_dims: C_j of each complement; none if only static prompts are used.
        static: Whether P_s is used.
        dynamic: Whether P_d is used.
        mapped: Whether P_m is used.
        prompt_length: l, rows of P_s and of each expert.
        experts: k.
        layers: First prompted layer and the one after the last; None for all.
        router: ``complement`` routes by psi, ``multimodal`` by psi and the layer's input tokens.
        top_k: Experts that are mixed; None for all (dense).
        temperature: tau of the router's softmax.
        noise: Standard deviation of the routing noise in training; None for 1 / k^2.
        psi: How several complements make one psi, see :class:`~fusionkit.prompts.psi.Psi`; one
            complement's feature is psi as it is.
        psi_dim: Width each of several complements is projected to.
        mapper: ``pooled`` maps psi (the paper), ``sequence`` reads the complements' tokens, see
            :class:`~fusionkit.prompts.mapper.SequenceMapper`.
        mapped_length: m, rows of P_m; above 1 only under ``sequence``.
        mapper_dim: Hidden width of the mapper.
        dropout: Probability that an entry of a prompt is dropped in training; of P_s the same
            entries for all samples of a batch.
        init_range: P_s and the experts start as U(-init_range, init_range).

    Raises:
        ConfigError: A number is out of range, or no prompt is switched on.
    """

    def __init__(
        self,
        widths: Sequence[int],
        complement_dims: Sequence[int],
        *,
        static: bool = True,
        dynamic: bool = True,
        mapped: bool = True,
        prompt_length: int = 6,  # paper, section 4.1
        experts: int = 16,  # paper, section 4.1
        layers: tuple[int, int] | None = None,
        router: Literal["complement", "multimodal"] = "complement",
        top_k: int | None = None,
        temperature: float = 0.1,  # paper, section 3.3
        noise: float | None = None,
        psi: PsiMode = "concat",
        psi_dim: int = PSI_DIM,
        mapper: Literal["pooled", "sequence"] = "pooled",
        mapped_length: int = 1,
        mapper_dim: int = 384,  # authors' code; reproduces Table 1
        dropout: float = 0.1,  # authors' code
        init_range: float = INIT_RANGE,
    ) -> None:
        super().__init__()
        _check(
            static, dynamic, mapped, prompt_length, experts, top_k, temperature,
            noise, mapper_dim, init_range,
        )  # fmt: skip
        _check_mapper(mapped, mapper, mapped_length)
        first, last = _layer_range(layers, len(widths))
        chosen = list(widths[first:last])
        self.layers = tuple(range(first, last))
        self.widths = tuple(chosen)
        self.static = StaticPrompts(chosen, prompt_length, init_range) if static else None
        self.experts: ByWidth | None = None  # (N_D, k, l, D) for the N_D layers of width D
        self.router: ComplementRouter | MultimodalRouter | None = None
        self.psi: Psi | None = None
        self.mapper: Mapper | SequenceMapper | None = None
        if (dynamic or mapped) and not complement_dims:
            raise ConfigError(
                "Dynamic and mapped prompts need a complement to condition on; "
                "give one, or set dynamic: false and mapped: false."
            )
        if dynamic or (mapped and mapper == "pooled"):
            self.psi = Psi(complement_dims, psi, psi_dim)
        if dynamic and self.psi is not None:
            self.experts = ByWidth(chosen, (experts, prompt_length), init_range)
            self.router = (
                ComplementRouter(self.psi.out_dim, len(chosen), experts)
                if router == "complement"
                else MultimodalRouter(self.psi.out_dim, chosen, experts)
            )
        if mapped and mapper == "sequence":
            self.mapper = SequenceMapper(complement_dims, mapper_dim, chosen, mapped_length)
        elif mapped and self.psi is not None:
            self.mapper = Mapper(self.psi.out_dim, mapper_dim, chosen)
        self.gate = Gate(temperature, 1 / experts**2 if noise is None else noise, top_k)
        self.dropout = nn.Dropout(dropout)

    def forward(self, seen: Sequence[Features]) -> BatchPrompts:
        """Everything that does not depend on the main encoder's tokens, once for a batch.

        Args:
            seen: Features of each complement, in the order of ``complement_dims``; none if only
                static prompts are used.
        """
        static = None if self.static is None else self.static(self.dropout)
        psi = None if self.psi is None else self.psi([features.pooled for features in seen])
        mapped: list[Tensor] | None = None
        if isinstance(self.mapper, SequenceMapper):
            mapped = self.mapper(seen)
        elif self.mapper is not None and psi is not None:
            mapped = self.mapper(psi)
        routed = None if self.router is None or psi is None else self.router.prepare(psi)
        if isinstance(self.router, MultimodalRouter) and routed is not None:
            return RoutedByTokens(self, static, mapped, routed)
        if routed is None:
            own = None if mapped is None else [self.dropout(rows) for rows in mapped]
            return BatchPrompts(self.layers, static, own, None)
        weights, probabilities = self.gate(routed, self.training)
        own = self._mix(weights, mapped)
        return BatchPrompts(self.layers, static, own, Routing(weights, probabilities, self.layers))

    def _mix(self, weights: Tensor, mapped: Sequence[Tensor] | None) -> list[Tensor]:
        """[P_d, P_m] of all layers, (B, l + m, D_i), from weights (B, N, k)."""
        assert self.experts is not None
        by_layer, by_width = weights.unbind(dim=1), {}
        for width, experts in self.experts.items():
            places = self.experts.places[width]
            scores = torch.stack([by_layer[place] for place in places]).to(experts.dtype)
            rows = (scores @ experts.flatten(2)).unflatten(-1, experts.shape[2:])  # (N_D, B, l, D)
            if mapped is not None:
                rows = torch.cat([rows, torch.stack([mapped[place] for place in places])], dim=2)
            by_width[width] = self.dropout(rows)
        return self.experts.in_order(by_width)


class BatchPrompts:
    """The prompts of one batch, which hands each layer its rows.

    Args:
        layers: Indices of the N prompted layers.
        static: P_s of each, (1, l, D_i); None if it is not used.
        own: The rows of each that differ from sample to sample, (B, n, D_i); None if there are
            none.
        routing: Which experts were used; None without dynamic prompts.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        static: Sequence[Tensor] | None,
        own: Sequence[Tensor] | None,
        routing: Routing | None,
    ) -> None:
        self.layers = layers
        self.static = static
        self.own = own
        self._routing = routing

    def __call__(self, layer: int, state: TokenState) -> tuple[Tensor, ...] | None:
        """Rows of ``layer``: P_s (1, l, D), [P_d, P_m] (B, l + m, D); None if unprompted."""
        if layer not in self.layers:
            return None
        slot = layer - self.layers[0]
        parts = () if self.static is None else (self.static[slot],)
        own = self._own(slot, state)
        return parts if own is None else (*parts, own)

    def _own(self, slot: int, state: TokenState) -> Tensor | None:
        return None if self.own is None else self.own[slot]

    @property
    def routing(self) -> Routing | None:
        """Which experts were used, once the main encoder has run."""
        return self._routing


class RoutedByTokens(BatchPrompts):
    """Prompts whose routing waits for the tokens that enter each layer.

    Args:
        engine: Where they come from.
        static: As in :class:`BatchPrompts`.
        mapped: P_m of each layer, (B, m, D_i); None if it is not used.
        routed: What the router made of psi, see :meth:`MultimodalRouter.prepare`.
    """

    def __init__(
        self,
        engine: ConditionalPrompts,
        static: Sequence[Tensor] | None,
        mapped: Sequence[Tensor] | None,
        routed: Tensor,
    ) -> None:
        super().__init__(engine.layers, static, None, None)
        assert engine.experts is not None
        self.engine = engine
        self.mapped = mapped
        self.routed = routed
        self.experts = engine.experts.in_order()
        self.record: list[tuple[Tensor, Tensor]] = []

    def _own(self, slot: int, state: TokenState) -> Tensor:
        engine, experts = self.engine, self.experts[slot]
        assert isinstance(engine.router, MultimodalRouter)
        logits = engine.router(self.routed, slot, tokens_mean(state))
        weights, probabilities = engine.gate(logits, engine.training)
        self.record.append((weights, probabilities))
        rows = (weights.to(experts.dtype) @ experts.flatten(1)).unflatten(-1, experts.shape[1:])
        if self.mapped is not None:
            rows = torch.cat([rows, self.mapped[slot]], dim=1)
        dropped: Tensor = engine.dropout(rows)
        return dropped

    @property
    def routing(self) -> Routing | None:
        if not self.record:
            return None
        weights, probabilities = (
            torch.stack(part, dim=1) for part in zip(*self.record, strict=True)
        )
        return Routing(weights, probabilities, self.layers)


def tokens_mean(state: TokenState) -> Tensor:
    """Mean of the real tokens, (B, D); padding does not count."""
    tokens = state.tokens.flatten(1, -2)
    if state.keep is None:
        return tokens.mean(dim=1)
    keep = state.keep.unsqueeze(-1).to(tokens.dtype)
    return (tokens * keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1)


def _check(
    static: bool,
    dynamic: bool,
    mapped: bool,
    prompt_length: int,
    experts: int,
    top_k: int | None,
    temperature: float,
    noise: float | None,
    mapper_dim: int,
    init_range: float,
) -> None:
    if not (static or dynamic or mapped):
        raise ConfigError("Switch on at least one of static, dynamic and mapped prompts.")
    if prompt_length < 1 or experts < 1:
        raise ConfigError(
            f"prompt_length and experts are at least 1, given {prompt_length} and {experts}; "
            f"switch prompts off by static, dynamic and mapped."
        )
    if top_k is not None and not 1 <= top_k <= experts:
        raise ConfigError(
            f"top_k is between 1 and the number of experts ({experts}), given {top_k}."
        )
    if temperature <= 0:
        raise ConfigError(f"temperature is above 0, given {temperature}.")
    if mapper_dim < 1 or init_range < 0 or (noise is not None and noise < 0):
        raise ConfigError(
            f"mapper_dim is at least 1, init_range and noise at least 0, given {mapper_dim}, "
            f"{init_range} and {noise}."
        )


def _check_mapper(mapped: bool, mapper: str, mapped_length: int) -> None:
    if mapper == "sequence" and not mapped:
        raise ConfigError(
            "mapper: sequence makes mapped prompts, but mapped is false; set mapped: true, "
            "or mapper: pooled."
        )
    if mapped_length < 1:
        raise ConfigError(
            f"mapped_length is at least 1, given {mapped_length}; "
            f"mapped: false leaves mapped prompts out."
        )
    if mapper == "pooled" and mapped_length > 1:
        raise ConfigError(
            f"mapped_length is {mapped_length}, but mapper: pooled makes one row of one vector; "
            f"set mapper: sequence, or mapped_length: 1."
        )


def _layer_range(layers: tuple[int, int] | None, depth: int) -> tuple[int, int]:
    if layers is None:
        return 0, depth
    first, last = layers
    if not 0 <= first < last <= depth:
        raise ConfigError(
            f"layers is [first, one after the last] within the main encoder's {depth} layers, "
            f"given [{first}, {last}]; [0, {depth}] prompts all."
        )
    return first, last
