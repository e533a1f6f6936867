"""The interface of a fusion method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from fusionkit.encoders.base import (
    ExtraTokens,
    Features,
    Inputs,
    MainEncoder,
    Prompts,
    TokenState,
)
from fusionkit.fusion.stand_in import (
    ReplaceTokens,
    fill_in,
    idle,
    make_stand_in,
    resting_batch_norms,
    take_presence,
)
from fusionkit.prompts.engine import Routing
from fusionkit.registry import API_VERSION
from fusionkit.transfer.base import Transfer


@dataclass(frozen=True, slots=True)
class FusionOutput:
    """What a fusion makes of a batch.

    Attributes:
        feature: (B, C), what the head predicts from.
        routing: Which experts were used, where a fusion has experts.
        losses: Further terms of the training loss by name, weighted.
    """

    feature: Tensor
    routing: Routing | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)


def role_names(complements: int) -> tuple[str, ...]:
    """``main``, ``complement``, ``complement_2``, ...: the names of encoders in batches."""
    extra = tuple(f"complement_{i}" for i in range(2, complements + 1))
    return ("main", *(("complement",) if complements else ()), *extra)


class Fusion(nn.Module, ABC):
    """Makes one feature of what several encoders see.

    A constructor takes the main encoder and the complements, both under their transfer modes,
    then what a config may set. It passes the encoders it uses to ``super().__init__``; others
    are neither kept nor fed. It calls the encoders through :meth:`see` and :meth:`run_main`, or
    runs their layers from :meth:`enter` on: these put stand-ins where a sample lacks a field.

    Attributes:
        runs_layers_of: Roles whose layers run for every sample: where a field is missing, their
            encoder gets a blank input, and one learned token stands for all of its.
        main_alone: Whether :meth:`run_main` is called with the field alone, without prompts and
            further tokens.
        reads_tokens: Whether more of :class:`Features` is read than ``pooled``.
        encoders: The encoders in use, by role.
        stand_ins: One learned vector for each role whose field a sample may lack.
    """

    api_version: ClassVar[int] = API_VERSION
    runs_layers_of: ClassVar[tuple[str, ...]] = ("main",)
    main_alone: bool = False
    reads_tokens: bool = True

    def __init__(self, main: Transfer, complements: Sequence[Transfer]) -> None:
        super().__init__()
        roles = role_names(len(complements))
        self.encoders = nn.ModuleDict(dict(zip(roles, (main, *complements), strict=True)))
        self.stand_ins = nn.ParameterDict()

    @property
    def main(self) -> Transfer:
        """The main encoder under its transfer mode."""
        main = self.encoders["main"]
        assert isinstance(main, Transfer)
        return main

    @property
    def complements(self) -> dict[str, Transfer]:
        """The complements in use, by role."""
        return {
            role: encoder
            for role, encoder in self.encoders.items()
            if role != "main" and isinstance(encoder, Transfer)
        }

    def allow_missing(self, roles: Collection[str]) -> None:
        """Let samples lack the fields of these roles; those that are not in use are left out."""
        for role, transfer in {"main": self.main, **self.complements}.items():
            if role not in roles:
                continue
            if role not in self.runs_layers_of:
                self.stand_ins[role] = make_stand_in(transfer.out_dim)
            elif isinstance(transfer.encoder, MainEncoder):
                self.stand_ins[role] = make_stand_in(transfer.encoder.layer_widths[0])

    def see(self, inputs: Mapping[str, Inputs]) -> dict[str, Features]:
        """What each complement in use sees of a batch, by role; a stand-in where it is missing."""
        return {role: self._see(role, inputs[role]) for role in self.complements}

    def _see(self, role: str, inputs: Inputs) -> Features:
        encoder = self.complements[role]
        rows, present = take_presence(inputs)
        if present is None:
            seen: Features = encoder(rows)
            return seen
        stand_in = self.stand_ins[role]
        if not rows:  # nobody in this batch has the field
            return fill_in(None, present, idle(stand_in, encoder))
        alone = len(next(iter(rows.values()))) == 1
        with resting_batch_norms(encoder) if alone else nullcontext():
            return fill_in(encoder(rows), present, stand_in)

    def run_main(
        self,
        inputs: Mapping[str, Inputs],
        prompts: Prompts | None = None,
        extra: ExtraTokens | None = None,
    ) -> Features:
        """What the main encoder sees of a batch, prompted or with further tokens at its input.

        Where its own field is missing, one learned token stands for all of the sample's: what the
        layers say of it then comes from the prompts and further tokens.
        """
        rows, present = take_presence(inputs["main"])
        edit = None if present is None else ReplaceTokens(present, self.stand_ins["main"])
        features: Features = self.main(rows, prompts, edit, extra)
        return features

    def enter(self, role: str, inputs: Inputs) -> TokenState:
        """What enters layer 0 of a role in :attr:`runs_layers_of`, for a fusion that runs its
        layers itself; one learned token stands for all of a sample's where the field is missing.
        """
        encoder = self.encoders[role].encoder
        assert isinstance(encoder, MainEncoder)
        rows, present = take_presence(inputs)
        state = encoder.embed(rows)
        if present is None:
            return state
        return ReplaceTokens(present, self.stand_ins[role])(0, state)

    def see_all(self, inputs: Mapping[str, Inputs]) -> dict[str, Features]:
        """What every encoder in use sees of a batch on its own, by role, the main encoder first."""
        return {"main": self.run_main(inputs), **self.see(inputs)}

    @property
    def layers_alone(self) -> int:
        """How many layers of the main encoder run before anything of the fusion enters them.

        What comes out of them is the same in every epoch if the encoder is frozen, so it can be
        computed once.
        """
        encoder = self.main.encoder
        if not self.main_alone or not isinstance(encoder, MainEncoder):
            return 0
        return len(encoder.layer_widths)

    @property
    def branches(self) -> Sequence[int] | None:
        """Widths of the parts of the feature that are predicted from apart; None if it is one."""
        return None

    @property
    @abstractmethod
    def out_dim(self) -> int:
        """C, the width of the fused feature."""

    @abstractmethod
    def forward(self, inputs: Mapping[str, Inputs]) -> FusionOutput:
        """Fuse a batch.

        Args:
            inputs: What each role's preprocessor collated, by role.
        """
