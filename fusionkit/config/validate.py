"""A merged config becomes an :class:`~fusionkit.config.schema.Experiment`.

Names are resolved first, from metadata alone, so that a typo is answered before torch is
imported; then each component's class is imported and its arguments are checked. All problems of
a step are reported at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fusionkit import registry
from fusionkit.config.merge import VARIANTS, Key, Merged, read_config
from fusionkit.config.problems import Problems
from fusionkit.config.resolve import resolve
from fusionkit.config.schema import (
    COMPONENTS,
    GIVEN,
    SECTIONS,
    ComplementConfig,
    Component,
    ConfigKeys,
    Experiment,
)
from fusionkit.config.systems import SYSTEMS
from fusionkit.errors import ConfigError, FusionkitError, suggest
from fusionkit.registry import Kind

_KEYS = [key.name for key in fields(ConfigKeys)]
_SCALARS = ("name", "output", "seed", "seeds", "main_field", "complement_field")
_REQUIRED = ("main", "main_transfer", "fusion", "data")
_ITEM_KEYS = ("encoder", "transfer", "field")
_ITEM = f"{{{', '.join(_ITEM_KEYS)}}}"


def load_config(
    files: Sequence[str | Path],
    overrides: Sequence[tuple[str, str]] = (),
    start: tuple[Mapping[str, Any], str] | None = None,
    overlays: Sequence[tuple[Mapping[str, Any], str]] = (),
) -> Experiment:
    """Read, merge and validate config files and overrides.

    Args:
        files: Later ones are merged over earlier ones; the last one's stem is the default name.
        overrides: Dotted key and value, the value written as YAML.
        start: A config to merge all of that over, such as a checkpoint's, and how messages call
            it.
        overlays: Configs merged over all of that, and how messages call them.

    Raises:
        ConfigError: Lists every problem with file, key, what was given and what to do.
    """
    merged = read_config(files, overrides, start)
    for overlay in overlays:
        merged.add(*overlay)
    return _build(merged, Path(files[-1]).stem if files else "run")


def experiment_from_mapping(
    mapping: Mapping[str, Any],
    source: str = "checkpoint",
    overrides: Mapping[str, Any] | None = None,
) -> Experiment:
    """The experiment of a mapping such as :attr:`Experiment.resolved`.

    Args:
        mapping: Written as a config file is.
        source: How error messages call it.
        overrides: Merged over it, written in the same way.

    Raises:
        ConfigError: As for :func:`load_config`.
    """
    merged = Merged()
    merged.add(mapping, source)
    if overrides:
        merged.add(overrides, "overrides")
    return _build(merged, "run")


def _build(merged: Merged, name: str) -> Experiment:
    if merged.values.get("name") is None:
        merged.values["name"] = name
    problems = Problems(merged)
    main = _Draft(merged.values, problems, ())
    others = {section: _variants(merged, problems, section) for section in VARIANTS}
    problems.stop_if_any()
    for draft in (main, *(draft for drafts in others.values() for draft in drafts.values())):
        draft.load()
    problems.stop_if_any()
    return main.experiment(
        **{
            section: {label: draft.experiment() for label, draft in drafts.items()}
            for section, drafts in others.items()
        }
    )


def _variants(merged: Merged, problems: Problems, section: str) -> dict[str, _Draft]:
    """The drafts of ``baselines`` or ``systems``."""
    overlays = merged.values.get(section) or {}
    if section == "systems" and isinstance(overlays, list):
        overlays = {str(name): {"system": name} for name in overlays}
    if not isinstance(overlays, Mapping):
        problems.add((section,), f"expected a mapping of labels to configs, given {overlays!r}.")
        return {}
    drafts = {}
    for label, overlay in overlays.items():
        key = (section, str(label))
        if overlay is None:  # removed
            continue
        if not isinstance(overlay, Mapping):
            problems.add(key, f"expected a config to merge over this one, given {overlay!r}.")
            continue
        inner = [name for name in (*VARIANTS, "seeds", "sweep") if name in overlay]
        if inner:
            problems.add((*key, inner[0]), f"one of the {section} cannot have {inner[0]} itself.")
            continue
        if section == "systems" and label in SYSTEMS:
            overlay = {"system": label, **overlay}
        try:
            values = merged.variant(str(label), overlay)
        except ConfigError as error:  # an unknown system
            problems.add(key, str(error).removeprefix(": "))
        else:
            drafts[str(label)] = _Draft(values, problems, key)
    return drafts


def _known(kind: Kind) -> str:
    try:
        known = set(registry.entries(kind))
        if kind == "complement_encoder":  # main encoders can be complements as well
            known |= set(registry.entries("main_encoder"))
        return f"Known: {', '.join(sorted(known))}."
    except FusionkitError as error:
        return str(error)


@dataclass(frozen=True, slots=True)
class _Node:
    """A component whose name is known and whose arguments are not checked yet."""

    kind: Kind
    name: str
    args: Mapping[str, Any]
    key: Key


@dataclass(frozen=True, slots=True)
class _Role:
    """A complement on its way."""

    encoder: _Node
    transfer: _Node
    field: str | None


class _Draft:
    """One config on its way to an experiment; names are resolved on construction."""

    def __init__(self, values: Mapping[str, Any], problems: Problems, prefix: Key) -> None:
        self._values = values
        self._problems = problems
        self._prefix = prefix
        for key in map(str, values):
            if key not in _KEYS:
                self._problem(
                    (key,), f"unknown key.{suggest(key, _KEYS)} The keys are {', '.join(_KEYS)}."
                )
        self._keys = self._scalars()
        self._sections = {key: self._section(key) for key in SECTIONS}
        found = {key: self._node((key,), COMPONENTS[key], values.get(key)) for key in _REQUIRED}
        self._nodes = {key: node for key, node in found.items() if node}
        roles = [self._first_complement(), *self._more_complements()]
        self._roles = [role for role in roles if role]
        if not prefix:  # a baseline may leave out encoders that it inherits the permission for
            self._check_roles(len(roles) - (values.get("complement") is None))

    def load(self) -> None:
        """Import every class and check its arguments."""
        self._parts: dict[str, Any] = {
            key: self._component(node) for key, node in self._nodes.items()
        }
        self._complements = [
            ComplementConfig(
                self._component(role.encoder), self._component(role.transfer), role.field
            )
            for role in self._roles
        ]
        for role in self._roles:
            self._check_layers(role)

    def experiment(
        self,
        baselines: Mapping[str, Experiment] | None = None,
        systems: Mapping[str, Experiment] | None = None,
    ) -> Experiment:
        """What was checked; call it only when there were no problems."""
        made = Experiment(
            name=self._keys.name,
            output=self._keys.output,
            seed=self._keys.seed,
            main_field=self._keys.main_field,
            complements=tuple(self._complements),
            baselines=baselines or {},
            systems=systems or {},
            seeds=tuple(self._keys.seeds) or (self._keys.seed,),
            resolved={},
            **self._parts,
            **self._sections,
        )
        return replace(made, resolved=resolve(made))

    def _problem(self, key: Key, text: str) -> None:
        self._problems.add(key, text, self._prefix)

    def _scalars(self) -> Any:
        stated = {key: self._values[key] for key in _SCALARS if key in self._values}
        return self._made((), ConfigKeys, "the config", stated, set(_KEYS) - set(_SCALARS))

    def _section(self, key: str) -> Any:
        stated = self._values.get(key, {})
        if isinstance(stated, Mapping):
            return self._made((key,), SECTIONS[key], key, stated)
        self._problem((key,), f"expected a mapping of its keys, given {stated!r}.")
        return None

    def _made(
        self,
        key: Key,
        cls: type[Any],
        owner: str,
        stated: Mapping[str, Any],
        given: Collection[str] = (),
    ) -> Any:
        values = self._checked(key, cls, owner, stated, given)
        try:
            return None if values is None else cls(**values)
        except ConfigError as error:
            self._problem(key or ("seed",), str(error))
            return None

    def _checked(
        self,
        key: Key,
        cls: type[Any],
        owner: str,
        stated: Mapping[str, Any],
        given: Collection[str],
    ) -> dict[str, Any] | None:
        values, wrong = self._problems.check(cls, owner, stated, given)
        for name, text in wrong:
            self._problem((*key, name) if name else key, text)
        return None if wrong else values

    def _node(self, key: Key, kind: Kind, stated: Any) -> _Node | None:
        """The component at ``key`` if its name is known; else its problem is noted."""
        wrong: str | None
        if not isinstance(stated, Mapping) or not isinstance(stated.get("name"), str):
            given = "" if stated is None else f", given {stated!r}"
            wrong = f"give a name, or a mapping with `name`{given}. {_known(kind)}"
        else:
            wrong = self._problems.find(kind, stated["name"])
        if wrong:
            self._problem(key, wrong)
            return None
        return _Node(kind, stated["name"], {k: v for k, v in stated.items() if k != "name"}, key)

    def _first_complement(self) -> _Role | None:
        values = self._values
        if values.get("complement") is None:
            return None
        encoder = self._node(("complement",), "complement_encoder", values["complement"])
        transfer = self._node(("complement_transfer",), "transfer", values["complement_transfer"])
        field = values.get("complement_field")
        return _Role(encoder, transfer, field) if encoder and transfer else None

    def _more_complements(self) -> list[_Role | None]:
        items = self._values.get("more_complements") or []
        if isinstance(items, list):
            return [self._item(("more_complements", str(i)), item) for i, item in enumerate(items)]
        self._problem(("more_complements",), f"expected a list of {_ITEM}, given {items!r}.")
        return []

    def _item(self, key: Key, item: Any) -> _Role | None:
        if not isinstance(item, Mapping):
            self._problem(key, f"expected {_ITEM}, given {item!r}.")
            return None
        for name in map(str, item):
            if name not in _ITEM_KEYS:
                self._problem(
                    (*key, name), f"unknown key.{suggest(name, _ITEM_KEYS)} Keys: {_ITEM}."
                )
        field = item.get("field")
        if not isinstance(field, str | None):
            self._problem((*key, "field"), f"expected str or null, given {field!r}.")
        encoder = self._node((*key, "encoder"), "complement_encoder", item.get("encoder"))
        stated = item.get("transfer") or {}
        if isinstance(stated, Mapping):
            stated = {"name": ConfigKeys().complement_transfer, **stated}
        transfer = self._node((*key, "transfer"), "transfer", stated)
        return _Role(encoder, transfer, field) if encoder and transfer else None

    def _component(self, node: _Node) -> Component:
        values = None
        try:
            cls = registry.load(node.kind, node.name)
        except FusionkitError as error:
            self._problem(node.key, str(error))
        else:
            values = self._checked(node.key, cls, node.name, node.args, GIVEN[node.kind])
            for argument, kind in getattr(cls, "nested", {}).items():
                self._check_nested((*node.key, argument), kind, node.args.get(argument))
        return Component(node.kind, node.name, values or {})

    def _check_nested(self, key: Key, kind: Kind, stated: Any) -> None:
        """An argument that is a component itself is checked as one; its class builds it."""
        if stated is not None:
            inner = self._node(key, kind, {"name": stated} if isinstance(stated, str) else stated)
            if inner:
                self._component(inner)

    def _check_roles(self, complements: int) -> None:
        """Roles that sections name are those that the config has."""
        later = [f"complement_{number}" for number in range(2, complements + 1)]
        known = ["main", *(["complement"] if complements else []), *later]
        missing, cache = self._sections["missing"], self._sections["cache"]
        allowed = missing.allow if missing else ()
        cached = cache.roles if cache and not isinstance(cache.roles, str) else ()
        for key, roles in ((("missing", "allow"), allowed), (("cache", "roles"), cached)):
            for role in roles:
                if role not in known:
                    hint = suggest(role, known)
                    text = f"this config has no {role}.{hint} It has: {', '.join(known)}."
                    self._problem(key, text)

    def _check_layers(self, role: _Role) -> None:
        """A transfer that prompts layers needs an encoder that has some."""
        try:
            transfer = registry.load("transfer", role.transfer.name)
            encoder = registry.load("complement_encoder", role.encoder.name)
        except FusionkitError:  # noted when the component was loaded
            return
        from fusionkit.encoders.base import MainEncoder  # imports torch

        if getattr(transfer, "needs_layers", False) and not issubclass(encoder, MainEncoder):
            key = role.transfer.key
            default = " (the default)" if self._problems.is_default(key, self._prefix) else ""
            self._problem(
                key,
                f"{role.transfer.name!r}{default} needs layers to prompt; "
                f"{role.encoder.name!r} has none. Use a mode that needs none, such as "
                f"frozen, lora or fine_tune.",
            )
