"""Checks the arguments that a config states for one class, with jsonargparse.

Only plain values pass: a config names components by their registered names, never by import
path, so whatever would make jsonargparse import something is refused.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import enum
import inspect
import pathlib
import re
import types
import typing
from argparse import ArgumentError
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fusionkit.errors import suggest

_PLAIN = (str, int, float, bool, type(None), pathlib.Path, enum.Enum)
_CONTAINERS = (list, tuple, set, frozenset, dict, Iterable)

Problem = tuple[str | None, str]  # the argument, or None for the class as a whole; what is wrong


def check_arguments(
    cls: type[Any], owner: str, args: Mapping[str, Any], given: Collection[str] = ()
) -> tuple[dict[str, Any], list[Problem]]:
    """Validate and coerce ``args`` against the signature of ``cls``.

    Args:
        cls: Any class whose ``__init__`` has annotated arguments; nothing is instantiated.
        owner: How error messages call it.
        args: What the config states. Not modified.
        given: Arguments that a config cannot state.

    Returns:
        All arguments, defaults filled in, and the problems found. With problems, the arguments
        are incomplete.
    """
    parameters = {
        name: parameter
        for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]
        if name not in given
    }
    hints = _hints(cls)
    problems: list[Problem] = [
        (name, f"{owner} has no argument {name!r}.{suggest(name, parameters)} {_takes(parameters)}")
        for name in map(str, args)
        if name not in parameters
    ]
    left_out = set(given)
    for name, parameter in parameters.items():
        hint = hints.get(name, parameter.annotation)
        if name not in args:
            if parameter.default is parameter.empty:
                problems.append((name, f"{owner} needs it and has no default: {_spell(hint)}."))
                left_out.add(name)
        elif refusal := _refuse(args[name], hint):
            problems.append((name, refusal))
            left_out.add(name)
    stated = {n: copy.deepcopy(v) for n, v in args.items() if n in parameters and n not in left_out}
    values, wrong = _parse(cls, stated, left_out, hints)
    return values, problems + wrong


def _parse(
    cls: type[Any], stated: dict[str, Any], left_out: set[str], hints: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Problem]]:
    from jsonargparse import ArgumentParser  # 0.16 s

    problems: list[Problem] = []
    while True:  # each turn leaves out the argument that was wrong, so that all are reported
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls, skip=set(left_out), instantiate=False)
        try:
            # parse_object converts nested values in place, hence the copy
            parsed = parser.parse_object(copy.deepcopy(stated))
            return vars(parser.instantiate(parsed)), problems  # nested dataclasses
        except ArgumentError as error:
            wrong = re.match(r'Parser key "([^".]+)', str(error))
            name = wrong.group(1) if wrong else None
            if name is None or name not in stated:
                return {}, [*problems, (None, " ".join(str(error).split()))]
            expected = _expected(hints.get(name), stated.pop(name))
            problems.append((name, expected + _detail(str(error))))
            left_out.add(name)


def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__)
    except (NameError, AttributeError, TypeError):  # names imported for type checkers only
        return {}


def _takes(parameters: Collection[str]) -> str:
    return f"It takes: {', '.join(parameters)}." if parameters else "It takes no arguments."


def _expected(hint: Any, value: Any) -> str:
    close = ""
    if isinstance(value, str):
        close = suggest(value, [str(choice) for choice in _choices(hint)])
    return f"expected {_spell(hint)}, given {value!r}.{close}"


def _detail(error: str) -> str:
    """What jsonargparse found wrong inside a nested dataclass."""
    found = re.search(
        r"given class_path '(?:\w+\.)*(\w+)':\n(.+?)\n(?:    - |  Given)", error, re.S
    )
    if not found:
        return ""
    text = " ".join(found.group(2).split()).replace("typing.", "")
    return f" {found.group(1)}: {text.replace('Parser key ', '').rstrip('.')}."


def _refuse(value: Any, hint: Any) -> str | None:
    """Why this value may not even be shown to jsonargparse, or None."""
    if _has_class_path(value):
        return "class paths are not allowed in configs; give plain values and registered names."
    if not _is_plain(hint):
        return f"a config cannot state a value of type {_spell(hint)}."
    if value is None and not _admits_none(hint):  # jsonargparse lets it pass
        return _expected(hint, value).replace("None", "null")
    return None


def _has_class_path(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "class_path" in value or any(map(_has_class_path, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_class_path, value))


def _is_plain(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any or isinstance(hint, str) or origin is typing.Literal:
        return True
    if typing.is_typeddict(hint) or dataclasses.is_dataclass(hint):
        return all(map(_is_plain, typing.get_type_hints(hint).values()))
    if origin is typing.Annotated:
        return _is_plain(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType) or _is_subclass(origin, _CONTAINERS):
        return all(_is_plain(part) for part in typing.get_args(hint) if part is not Ellipsis)
    return _is_subclass(hint, _PLAIN) or _is_subclass(hint, _CONTAINERS)


def _is_subclass(found: Any, of: tuple[type, ...]) -> bool:
    return inspect.isclass(found) and issubclass(found, of)


def _admits_none(hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_admits_none(part) for part in typing.get_args(hint))
    return hint in (Any, None, type(None)) or None in _choices(hint) or isinstance(hint, str)


def _choices(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return sum((_choices(part) for part in typing.get_args(hint)), ())
    return ()


def _spell(hint: Any) -> str:
    if isinstance(hint, str):
        return spell_type(hint)
    return spell_type(
        re.sub(r"\b(?:typing|collections\.abc)\.", "", inspect.formatannotation(hint))
    )


def spell_type(annotation: str) -> str:
    """An annotation as a sentence has it: ``int | None`` is "int or null"."""
    try:
        return _spell_node(ast.parse(annotation, mode="eval").body)
    except SyntaxError:
        return annotation


def _spell_node(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=None) | ast.Name(id="NoneType"):
            return "null"
        case ast.Constant(value=str() as quoted):
            return spell_type(quoted)
        case ast.Attribute(attr=name):
            return name
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return f"{_spell_node(left)} or {_spell_node(right)}"
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return f"{_spell_node(inner)} or null"
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
            return " or ".join(map(_spell_node, parts))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple(elts=parts)):
            return " or ".join(map(ast.unparse, parts))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            return ast.unparse(inner)
        case ast.Subscript(value=container, slice=ast.Tuple(elts=parts)):
            return f"{_spell_node(container)}[{', '.join(map(_spell_node, parts))}]"
        case ast.Subscript(value=container, slice=inner):
            return f"{_spell_node(container)}[{_spell_node(inner)}]"
        case _:
            return ast.unparse(node)


def plain(value: Any) -> Any:
    """The value as YAML has it: dataclasses are mappings, paths strings, tuples and sets lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.name
    return str(value) if isinstance(value, pathlib.PurePath) else value
