"""An experiment written back as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fusionkit.config.arguments import plain
from fusionkit.config.schema import SECTIONS, ComplementConfig, Component, Experiment


def resolve(experiment: Experiment) -> dict[str, Any]:
    """The whole experiment as plain values, defaults included, written as a config file is."""
    first, *more = [_resolve_role(role) for role in experiment.complements] or [{}]
    resolved: dict[str, Any] = {
        "name": experiment.name,
        "output": experiment.output,
        "seed": experiment.seed,
        "main": _resolve_component(experiment.main),
        "main_transfer": _resolve_component(experiment.main_transfer),
        "main_field": experiment.main_field,
        "complement": first.get("encoder"),
    }
    if first:
        resolved["complement_transfer"] = first["transfer"]
        resolved["complement_field"] = first["field"]
    resolved |= {
        "more_complements": more,
        "fusion": _resolve_component(experiment.fusion),
        "data": _resolve_component(experiment.data),
        **{key: plain(asdict(getattr(experiment, key))) for key in SECTIONS},
    }
    baselines = {label: other.resolved for label, other in experiment.baselines.items()}
    if baselines:
        resolved["baselines"] = {
            label: {k: v for k, v in other.items() if k not in resolved or v != resolved[k]}
            for label, other in baselines.items()
        }
    return resolved


def _resolve_component(component: Component) -> dict[str, Any]:
    return {"name": component.name, **plain(component.init)}


def _resolve_role(role: ComplementConfig) -> dict[str, Any]:
    return {
        "encoder": _resolve_component(role.encoder),
        "transfer": _resolve_component(role.transfer),
        "field": role.field,
    }
