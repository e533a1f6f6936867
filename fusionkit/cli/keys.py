"""The help on config keys, written from the docstrings of the schema."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

import yaml

from fusionkit.config.schema import COMPONENTS, SECTIONS, ConfigKeys

_REQUIRED = ("main", "data")
_WIDTH = 100
_COLUMN = 34

OVERRIDES = """\
Any key of a config can be set on the command line, its value written as YAML:
  --fusion.experts 4      set one argument; --fusion.experts=4 is the same
  --complement bow        another name replaces the component with all its arguments
  --complement null       remove it"""


def describe_keys() -> str:
    """One line for each key, with its default."""
    lines = ["keys of a config, with their defaults (components are marked *):"]
    lines += _lines(ConfigKeys, "", skip=SECTIONS)
    for name, cls in SECTIONS.items():
        lines += ["", f"{name}: {_summary(cls)}", *_lines(cls, f"{name}.")]
    lines += [
        "",
        "* A component is a name or a mapping {name: NAME, argument: value, ...}. `fusionkit list`",
        "  shows the names, `fusionkit info NAME` the arguments.",
    ]
    return "\n".join(lines)


def _summary(cls: type[Any]) -> str:
    return (cls.__doc__ or "").partition("\n")[0].rstrip(".")


def _lines(cls: type[Any], prefix: str, skip: Any = ()) -> Iterator[str]:
    import docstring_parser  # late: only help needs it

    docs = {
        p.arg_name: p.description or "" for p in docstring_parser.parse(cls.__doc__ or "").params
    }
    for field in fields(cls):
        if field.name not in skip:
            star = "*" if not prefix and field.name in COMPONENTS else ""
            head = f"  {prefix}{field.name}{star}"
            text = phrase(docs[field.name]) + _default(field)
            yield textwrap.fill(
                text,
                _WIDTH,
                initial_indent=head.ljust(_COLUMN),
                subsequent_indent=" " * _COLUMN,
            )


def _default(field: Field[Any]) -> str:
    if field.name in _REQUIRED:
        return " (required)"
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return "" if value in (None, [], {}) else f" ({spell_value(value)})"


def phrase(text: str) -> str:
    """A docstring's sentence as one line without its full stop."""
    line = " ".join(text.split()).replace("``", "`").replace("None ", "null ")
    return line if line.endswith("...") else line.removesuffix(".")


def spell_value(value: Any) -> str:
    """A default as YAML has it."""
    if isinstance(value, str) and value:
        return value
    dumped = yaml.safe_dump(value, default_flow_style=True)
    return dumped.removesuffix("...\n").strip()
