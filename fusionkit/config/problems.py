"""Collects what is wrong with a config, so that it is all reported at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from fusionkit import registry
from fusionkit.config.arguments import Problem, check_arguments
from fusionkit.config.merge import Key, Merged
from fusionkit.config.systems import SYSTEMS
from fusionkit.errors import ConfigError, FusionkitError
from fusionkit.registry import Kind


class Problems:
    """What is wrong, each once and with where it was stated.

    What baselines share with the main config is looked up and checked once.
    """

    def __init__(self, merged: Merged) -> None:
        self._merged = merged
        self._found: dict[tuple[Key, str], str] = {}
        self.find = cache(_find)
        self._checked: dict[tuple[type[Any], str], tuple[dict[str, Any], list[Problem]]] = {}

    def check(
        self, cls: type[Any], owner: str, stated: Mapping[str, Any], given: Collection[str]
    ) -> tuple[dict[str, Any], list[Problem]]:
        """As :func:`check_arguments`."""
        same = (cls, repr(stated))
        if same not in self._checked:
            self._checked[same] = check_arguments(cls, owner, stated, given)
        return self._checked[same]

    def add(self, key: Key, text: str, prefix: Key = ()) -> None:
        """Note a problem; one that a baseline merely inherits is not repeated."""
        if (key, text) in self._found:
            return
        source = self._merged.source(key, prefix)
        where = f"{source}: {'.'.join(prefix + key)}" if source else ".".join(prefix + key)
        self._found[key, text] = f"{where}: {text}"

    def stop_if_any(self) -> None:
        """Raise a ConfigError that lists all problems, if there are any."""
        messages = list(self._found.values())
        if len(messages) == 1:
            raise ConfigError(messages[0])
        if messages:
            numbered = [f"\n  {i}. {message}" for i, message in enumerate(messages, 1)]
            raise ConfigError(f"The config has {len(messages)} problems:{''.join(numbered)}")

    def is_default(self, key: Key, prefix: Key) -> bool:
        """Whether nobody stated ``key``."""
        return not self._merged.stated(key, prefix)


def _find(kind: Kind, name: str) -> str | None:
    """What is wrong with a name, if anything."""
    try:
        registry.find(kind, name)
    except FusionkitError as error:
        system = kind == "fusion" and name in SYSTEMS
        return f"{error} {name!r} is a system: write `system: {name}`." if system else str(error)
    return None
