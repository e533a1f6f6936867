"""Config files, `base:` and command-line overrides, merged into one mapping.

Mappings merge, scalars and lists replace. The swap rule: where a component stands (``main``,
``fusion``, ...), a different ``name`` replaces the whole node, the same or no name merges; a
bare string is a name, null removes the component.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from fusionkit.config.schema import COMPONENTS, SHORT, ConfigKeys
from fusionkit.config.systems import SYSTEMS
from fusionkit.errors import ConfigError, suggest

Key = tuple[str, ...]

COMMAND_LINE = "command line"

VARIANTS = ("baselines", "systems")  # keys that hold configs to merge over this one, by label


class Merged:
    """One config in the making, and where each value was stated.

    Attributes:
        values: The merged mapping; every component node is None or a mapping.
        sources: File or ``"command line"`` by key path, latest last; defaults have none.
        last: The source merged last; named for what is missing.
    """

    def __init__(self) -> None:
        defaults = {field.name: field.default for field in fields(ConfigKeys)}
        self.values: dict[str, Any] = {
            key: {"name": defaults[key]} for key in COMPONENTS if defaults[key] is not None
        }
        self.sources: dict[Key, str] = {}
        self.last = ""

    def add(self, overlay: Mapping[str, Any], source: str) -> None:
        """Merge ``overlay`` over what is there; its ``system`` stands for what that sets."""
        self.last = source
        if overlay.get("system") is not None:
            name = overlay["system"]
            preset = _system(name, source)
            self.values = self._merge(self.values, preset, (), f"{source} (system {name})".strip())
        rest = {key: value for key, value in overlay.items() if key != "system"}
        self.values = self._merge(self.values, rest, (), source)

    def variant(self, label: str, overlay: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values of a baseline or of a compared system: its overlay over all that is there."""
        own = Merged()
        own.values = {
            key: copy.deepcopy(value)
            for key, value in self.values.items()
            if key not in (*VARIANTS, "sweep")
        }
        own.add({"name": label, **overlay}, "")
        return own.values

    def source(self, key: Key, prefix: Key = ()) -> str:
        """Where ``key`` or the nearest key around it was stated.

        Args:
            key: Path of the key within its config.
            prefix: ``("baselines", label)`` or ``("systems", label)`` for what is merged over the
                main config; what it inherits counts too.
        """
        for end in range(len(key), 0, -1):
            for near in (prefix + key[:end], key[:end]):
                for known, source in reversed(self.sources.items()):  # the latest first
                    if known[: len(near)] == near:
                        return source
        return self.last

    def stated(self, key: Key, prefix: Key = ()) -> bool:
        """Whether ``key`` or something below it was stated, so that it is no default."""
        return any(
            known[: len(near)] == near for known in self.sources for near in (key, prefix + key)
        )

    def _merge(self, old: Any, new: Any, key: Key, source: str) -> Any:
        if _is_component(key) and isinstance(new, str):
            new = {"name": new}
        if isinstance(new, bool | str) and len(local := _local(key)) == 1 and local[0] in SHORT:
            new = SHORT[local[0]].get(new, new)
        if _is_inside_encoder(key) and isinstance(old, str) and isinstance(new, Mapping):
            old = {"name": old}
        elif _is_inside_encoder(key) and isinstance(new, str) and _has_name(old):
            new = {"name": new}
        if isinstance(old, list) and _is_indexed(key, new):
            new = self._items(old, new, key, source)
        if isinstance(new, Mapping):
            named = _is_component(key) or _is_inside_encoder(key)
            if not isinstance(old, Mapping) or (named and _is_swap(old, new)):
                self._forget(key)
                old = {}
            merged = dict(old)
            for name, value in new.items():
                merged[name] = self._merge(old.get(name), value, (*key, str(name)), source)
            if not new:
                self._note(key, source)
            return merged
        if isinstance(old, Mapping | list):
            self._forget(key)
        if isinstance(new, list) and key[-1:] == ("more_complements",):
            return [self._merge(None, x, (*key, str(i)), source) for i, x in enumerate(new)]
        self._note(key, source)
        return copy.deepcopy(new)

    def _items(self, old: list[Any], new: Mapping[Any, Any], key: Key, source: str) -> list[Any]:
        """``more_complements.0.encoder``: one item of the list is merged, the others stay."""
        items = list(old)
        for name, value in new.items():
            index = int(name)
            if index >= len(items):
                raise ConfigError(
                    f"{source}: {'.'.join(key)}.{name}: there are {len(items)}, counted from 0."
                )
            items[index] = self._merge(items[index], value, (*key, str(index)), source)
        return items

    def _note(self, key: Key, source: str) -> None:
        self.sources.pop(key, None)  # so that the order is that of stating
        self.sources[key] = source

    def _forget(self, key: Key) -> None:
        for known in [k for k in self.sources if k[: len(key)] == key]:
            del self.sources[known]


def _system(name: Any, source: str) -> Mapping[str, Any]:
    if isinstance(name, str) and name in SYSTEMS:
        return SYSTEMS[name].overlay
    raise ConfigError(
        f"{source}: system: unknown system {name!r}.{suggest(str(name), SYSTEMS)} "
        f"Known: {', '.join(SYSTEMS)}. `fusionkit list systems` describes them."
    )


def _local(key: Key) -> Key:
    return key[2:] if key[:1] and key[0] in VARIANTS else key


def _is_component(key: Key) -> bool:
    local = _local(key)
    if len(local) == 1:
        return local[0] in COMPONENTS
    return len(local) == 3 and local[0] == "more_complements" and local[2] in _ITEM_COMPONENTS


_ITEM_COMPONENTS = ("encoder", "transfer")


def _is_inside_encoder(key: Key) -> bool:
    """Whether it is an argument of an encoder; `video` takes another encoder as one."""
    return _is_component(key[:-1]) and key[-2] in ("main", "complement", "encoder")


def _has_name(node: Any) -> bool:
    return isinstance(node, Mapping) and "name" in node


def _is_indexed(key: Key, new: Any) -> bool:
    return (
        _local(key) == ("more_complements",)
        and isinstance(new, Mapping)
        and all(str(name).isdigit() for name in new)
    )


def _is_swap(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    before, after = old.get("name"), new.get("name")
    return before is not None and after is not None and before != after


def read_config(
    files: Sequence[str | Path],
    overrides: Sequence[tuple[str, str]] = (),
    start: tuple[Mapping[str, Any], str] | None = None,
) -> Merged:
    """Read and merge config files, then apply overrides.

    Args:
        files: Later files are merged over earlier ones; each over its own ``base``.
        overrides: Dotted key and value, the value written as YAML.
        start: A config to merge all of that over, and how messages call it.

    Raises:
        ConfigError: A file is missing or is not a YAML mapping, bases form a circle, or an
            override's value is not YAML.
    """
    merged = Merged()
    if start:
        merged.add(*start)
    bases: set[Path] = set()
    for file in files:
        for path, content in _with_bases(Path(file), (), bases):
            merged.add(content, str(path))
    # A system is a start: whatever else is given, before it or behind it, holds over it.
    for key, text in sorted(overrides, key=lambda override: override[0] != "system"):
        merged.add(parse_override(key, text), COMMAND_LINE)
    return merged


def _with_bases(
    path: Path, chain: tuple[Path, ...], seen: set[Path]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file's bases, each once however often it is named, then the file."""
    path = Path(os.path.normpath(path))
    if path in chain:
        circle = " -> ".join(str(p) for p in (*chain[chain.index(path) :], path))
        raise ConfigError(f"{path}: base: configs name each other in a circle: {circle}.")
    content = _read_file(path, chain[-1] if chain else None)
    bases = content.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: base: give a path or a list of paths, given {bases!r}.")
    for base in bases:
        real = (path.parent / base).resolve()
        if real not in seen:
            yield from _with_bases(path.parent / base, (*chain, path), seen)
            seen.add(real)
    yield path, content


def _read_file(path: Path, named_by: Path | None) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(_not_found(path, named_by)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a config: {error}.") from None
    try:
        content = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: a config is a mapping of keys to values, given a {type(content).__name__}."
        )
    return content


def _not_found(path: Path, named_by: Path | None) -> str:
    asked = f" (base of {named_by})" if named_by else ""
    message = f"The config file {path}{asked} does not exist."
    if not path.parent.is_dir():
        return f"{message} Nor does the folder {path.parent}."
    names = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml"))
    return message + suggest(path.name, names) + _listing(path.parent, names)


def _listing(folder: Path, names: list[str]) -> str:
    if not names:
        return f" There is no YAML file in {folder}."
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f" YAML files in {folder}: {', '.join(names[:8])}{more}."


def parse_override(key: str, text: str) -> dict[str, Any]:
    """A dotted key and a value written as YAML, as nested mappings.

    Behind ``sweep.`` stands the whole name of an axis, which may have dots.

    Raises:
        ConfigError: The value is not YAML.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise ConfigError(
            f"{COMMAND_LINE}: {key}: the value {text!r} is not valid YAML; quote it twice, "
            f"as in --{key} '\"...\"'."
        ) from None
    for part in reversed(key.split(".", 1 if key.startswith("sweep.") else -1)):
        value = {part: value}
    return dict(value)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and reads 1e-3 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 asks for a dot in numbers with an exponent, and people write lr: 4e-4.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
