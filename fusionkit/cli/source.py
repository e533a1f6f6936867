"""Reads a class's arguments and docstring from its source file, without importing it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import docstring_parser

from fusionkit.config.arguments import spell_type


@dataclass(frozen=True, slots=True)
class Argument:
    """One constructor argument.

    Attributes:
        name: As configs write it.
        type: As a sentence has it.
        default: Source text; None where there is no default.
        doc: One line.
    """

    name: str
    type: str
    default: str | None
    doc: str


@dataclass(frozen=True, slots=True)
class Description:
    """What a class's source says: its docstring's text and its constructor's arguments."""

    text: str
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """A definition and the module it stands in."""

    module: str
    node: ast.stmt


def describe(path: str) -> Description | None:
    """What the source of ``"module:Class"`` says; None if there is no source to read."""
    module, _, name = path.partition(":")
    found = _resolve(module, name)
    if found is None or not isinstance(found.node, ast.ClassDef):
        return None
    doc = docstring_parser.parse(ast.get_docstring(found.node) or "")
    return Description(doc.description or "", tuple(_arguments(found)))


def modality_of(path: str) -> str | None:
    """The modality that the class ``"module:Class"`` or its nearest base states, if any does."""
    module, _, name = path.partition(":")
    return _modality(_resolve(module, name))


def _modality(found: _Found | None) -> str | None:
    if found is None or not isinstance(found.node, ast.ClassDef):
        return None
    for statement in found.node.body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id="modality")], value=ast.Constant(value=str() as it))
                | ast.AnnAssign(
                    target=ast.Name(id="modality"), value=ast.Constant(value=str() as it)
                )
            ):
                return it
    above = (_modality(_resolve(found.module, ast.unparse(base))) for base in found.node.bases)
    return next(filter(None, above), None)


def _arguments(found: _Found) -> Iterator[Argument]:
    owner = _with_constructor(found)
    if not isinstance(found.node, ast.ClassDef):
        return
    if owner is None or not isinstance(owner.node, ast.ClassDef):
        return
    init = _method(owner.node, "__init__")
    nodes = (found.node, owner.node, init)
    texts = [ast.get_docstring(node) or "" for node in nodes if node]
    docs = {
        param.arg_name: " ".join((param.description or "").split())
        for text in texts
        for param in docstring_parser.parse(text).params
    }
    pairs = _parameters(init) if init else _fields(owner.node)
    for name, annotation, default in pairs:
        spelled = spell_type(ast.unparse(_expand(owner.module, annotation))) if annotation else "?"
        value = None if default is None else ast.unparse(_expand(owner.module, default))
        yield Argument(name, spelled, value, docs.get(name, ""))


_Parameter = tuple[str, ast.expr | None, ast.expr | None]


def _parameters(init: ast.FunctionDef) -> Iterator[_Parameter]:
    plain = [*init.args.posonlyargs, *init.args.args]
    missing: list[ast.expr | None] = [None] * (len(plain) - len(init.args.defaults))
    defaults = [*missing, *init.args.defaults, *init.args.kw_defaults]
    for argument, default in list(zip([*plain, *init.args.kwonlyargs], defaults, strict=True))[1:]:
        yield argument.arg, argument.annotation, default


def _fields(node: ast.ClassDef) -> Iterator[_Parameter]:
    """The fields of a dataclass."""
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                if not ast.unparse(annotation).startswith("ClassVar"):
                    yield name, annotation, value


def _with_constructor(found: _Found) -> _Found | None:
    """The class, or the nearest base, that says how it is constructed."""
    if not isinstance(found.node, ast.ClassDef):
        return None
    decorators = [ast.unparse(decorator) for decorator in found.node.decorator_list]
    if _method(found.node, "__init__") or any("dataclass" in text for text in decorators):
        return found
    for base in found.node.bases:
        above = _resolve(found.module, ast.unparse(base))
        owner = _with_constructor(above) if above else None
        if owner:
            return owner
    return None


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    found = (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == name)
    return next(found, None)


def _expand(module: str, node: ast.expr) -> ast.expr:
    """A name that stands for a choice or a number, by what it stands for."""
    if isinstance(node, ast.Name):
        found = _resolve(module, node.id)
        if found and isinstance(found.node, ast.Assign | ast.AnnAssign) and found.node.value:
            return found.node.value
    return node


def _resolve(module: str, name: str, depth: int = 0) -> _Found | None:
    """Where ``name`` is defined, followed through ``from x import name``."""
    tree = _parse(module)
    if tree is None or depth > 5:
        return None
    for node in tree.body:
        match node:
            case ast.ClassDef(name=defined) if defined == name:
                return _Found(module, node)
            case ast.Assign(targets=[ast.Name(id=defined)]) if defined == name:
                return _Found(module, node)
            case ast.AnnAssign(target=ast.Name(id=defined)) if defined == name:
                return _Found(module, node)
            case ast.ImportFrom():
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return _resolve(_absolute(module, node), alias.name, depth + 1)
    return None


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    file = _locate(module)
    up = node.level - (1 if file and file.name == "__init__.py" else 0)
    parents = module.split(".")
    package = parents[: len(parents) - up]
    return ".".join([*package, *([node.module] if node.module else [])])


@cache
def _parse(module: str) -> ast.Module | None:
    file = _locate(module)
    return ast.parse(file.read_text(encoding="utf-8")) if file else None


def _locate(module: str) -> Path | None:
    """The module's file, found from its top package so that nothing is imported."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not inner and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        path = Path(folder).joinpath(*inner)
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file() and inner:
                return file
    return None
