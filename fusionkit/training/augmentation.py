"""How the images that an experiment trains on are augmented: settled once, for every role."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fusionkit.config.schema import Component, Experiment
from fusionkit.data.base import Dataset
from fusionkit.fusion.base import role_names
from fusionkit.registry import load

_KEY = "augment"  # the argument of encoders that can


def augmentation_of(experiment: Experiment, dataset: Dataset, role: str) -> Any:
    """How what a role reads is augmented in training.

    Returns:
        ``none``, ``crop``, ``randaugment`` or a list of transforms: what the config states, else
        what the data set recommends; ``none`` where the encoder takes no such argument.
    """
    stated = _stated(_encoders(experiment)[role])
    if _KEY not in stated:
        return "none"
    return dataset.augment if stated[_KEY] is None else stated[_KEY]


def with_augmentation(experiment: Experiment, dataset: Dataset) -> Experiment:
    """The experiment with the augmentation of each role stated, to be built.

    What is saved stays as it was written: over other data, another augmentation may be right.
    """
    encoders = {
        role: _settled(component, augmentation_of(experiment, dataset, role))
        for role, component in _encoders(experiment).items()
    }
    main, *complements = encoders.values()
    return replace(
        experiment,
        main=main,
        complements=tuple(
            replace(complement, encoder=encoder)
            for complement, encoder in zip(experiment.complements, complements, strict=True)
        ),
    )


def augmentation_text(experiment: Experiment, dataset: Dataset) -> str:
    """``main randaugment (what the data recommends), complement none``; empty without images."""
    said = []
    for role, component in _encoders(experiment).items():
        stated = _stated(component)
        if _KEY in stated:
            found = augmentation_of(experiment, dataset, role)
            if isinstance(found, list):
                found = ", ".join(i if isinstance(i, str) else i["name"] for i in found)
            why = " (as the data set recommends)" if stated[_KEY] is None else ""
            said.append(f"{role} {found}{why}")
    return "; ".join(said)


def _encoders(experiment: Experiment) -> dict[str, Component]:
    components = [experiment.main, *(c.encoder for c in experiment.complements)]
    return dict(zip(role_names(len(experiment.complements)), components, strict=True))


def _stated(component: Component) -> Mapping[str, Any]:
    """Arguments of the encoder that augments: it or the one it holds."""
    inner = _inner(component)
    return component.init if inner is None else inner[1]


def _settled(component: Component, augment: Any) -> Component:
    inner = _inner(component)
    if _KEY not in _stated(component):
        return component
    if inner is None:
        return replace(component, init={**component.init, _KEY: augment})
    argument, args = inner
    return replace(component, init={**component.init, argument: {**args, _KEY: augment}})


def _inner(component: Component) -> tuple[str, dict[str, Any]] | None:
    """The argument that is an encoder with images to augment, such as a video encoder's."""
    for argument, kind in getattr(load(component.kind, component.name), "nested", {}).items():
        stated = component.init.get(argument)
        args = {"name": stated} if isinstance(stated, str) else dict(stated or {})
        if "name" in args and _KEY in inspect.signature(load(kind, args["name"])).parameters:
            return argument, {_KEY: None, **args}
    return None
