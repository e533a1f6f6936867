"""What can be computed once, and what cannot and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fusionkit.config.schema import Component, Experiment
from fusionkit.encoders.base import ComplementEncoder
from fusionkit.errors import ConfigError
from fusionkit.fusion.model import FusionModel


@dataclass(frozen=True, slots=True)
class Plan:
    """What is computed once of a role.

    Attributes:
        role: main, complement, ...
        layer: The layer of the main encoder whose input is kept; None where features are.
        tokens: Whether features are kept with their tokens.
    """

    role: str
    layer: int | None
    tokens: bool

    @property
    def what(self) -> str:
        """For people."""
        if self.layer is not None:
            return f"tokens that enter layer {self.layer}"
        return "features with their tokens" if self.tokens else "features"


def make_plans(experiment: Experiment, model: FusionModel) -> tuple[list[Plan], list[str]]:
    """What the config's ``cache`` asks for, and why some of it is left out.

    Args:
        experiment: The config.
        model: What it builds, with or without weights.

    Raises:
        ConfigError: What an encoder sees changes while others are trained. Under ``auto`` that is
            among the reasons instead.
    """
    asked, fusion = experiment.cache.roles, model.fusion
    if not isinstance(asked, str):
        return [_plan(experiment, model, role) for role in asked if role in fusion.encoders], []
    roles = list(fusion.complements)
    if fusion.layers_alone > 0:
        roles.append("main")
    plans, reasons = [], []
    for role in roles:
        try:
            plans.append(_plan(experiment, model, role))
        except ConfigError as error:
            if asked != "auto":
                raise
            reasons.append(str(error))
    if not roles:
        reasons.append(
            f"cache: nothing can be computed once: no complement is read, and "
            f"{experiment.fusion.name!r} enters the main encoder at its first layer."
        )
    return plans, reasons


def component_of(experiment: Experiment, role: str) -> tuple[Component, str]:
    """The encoder of a role, and the name of its transfer mode."""
    if role == "main":
        return experiment.main, experiment.main_transfer.name
    number = int(role.removeprefix("complement").removeprefix("_") or 1)
    complement = experiment.complements[number - 1]
    return complement.encoder, complement.transfer.name


def augmented(role: str, encoder: ComplementEncoder) -> ConfigError:
    """The error of an encoder that is shown something else in every epoch."""
    how = getattr(encoder, "augment", None)
    how = f" ({how})" if isinstance(how, str) else ""
    return ConfigError(
        f"cache: {role} ({type(encoder).__name__}) is augmented in training{how}, so it sees "
        f"something else in every epoch. Set augment: none for it, or leave {role} out of "
        f"cache.roles."
    )


def _plan(experiment: Experiment, model: FusionModel, role: str) -> Plan:
    fusion = model.fusion
    _, transfer = component_of(experiment, role)
    leave = f"or leave {role} out of cache.roles"
    if transfer != "frozen":
        raise ConfigError(
            f"cache: {role} is trained ({role}_transfer: {transfer}), so what it sees changes with "
            f"every step. Set {role}_transfer: frozen, {leave}."
        )
    encoder: Any = fusion.encoders[role].encoder
    for part in encoder.modules():  # a video encoder holds another
        if getattr(part, "augment", None) not in (None, "none"):
            raise augmented(role, part)
    if role != "main":
        if role in fusion.runs_layers_of:
            raise ConfigError(
                f"cache: the fusion {experiment.fusion.name!r} runs the layers of {role} itself, "
                f"anew in every step. Take another fusion, {leave}."
            )
        return Plan(role, None, fusion.reads_tokens)
    first, count = fusion.layers_alone, len(encoder.layer_widths)
    if first == 0:
        raise ConfigError(
            f"cache: the fusion {experiment.fusion.name!r} enters the main encoder at its first "
            f"layer, so nothing stays the same. Prompt later layers only, as with fusion.layers: "
            f"[{min(count - 1, max(1, count * 2 // 3))}, {count}], {leave}."
        )
    if role in fusion.stand_ins:
        raise ConfigError(
            "cache: main may lack its field (missing.allow), and the learned stand-in that takes "
            f"its place enters the first layer. Let it always be there, {leave}."
        )
    return Plan(role, None, fusion.reads_tokens) if first == count else Plan(role, first, False)
