"""``fusionkit info``."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

from fusionkit.cli.keys import phrase, spell_value
from fusionkit.cli.list import as_json
from fusionkit.cli.parser import Parser
from fusionkit.cli.source import Argument, Description, describe
from fusionkit.cli.tables import print_table
from fusionkit.config.arguments import plain
from fusionkit.config.schema import GIVEN
from fusionkit.errors import UnknownNameError, suggest
from fusionkit.registry import GROUPS, Entry, Kind, entries

_ROLE: dict[Kind, str] = {
    "main_encoder": "an encoder, main or complement",
    "complement_encoder": "an encoder, complement only",
    "fusion": "a fusion",
    "transfer": "a transfer mode",
    "dataset": "a data set",
}
_KEY: dict[Kind, str] = {
    "main_encoder": "main",
    "complement_encoder": "complement",
    "fusion": "fusion",
    "transfer": "complement_transfer",
    "dataset": "data",
}


def run(argv: Sequence[str]) -> int:
    """Print what is known of one name."""
    parser = Parser(
        "info",
        "What an encoder, fusion, transfer or data set is and which arguments it takes. Read "
        "from its source: nothing is imported.",
        "NAME [--json]",
        "examples:\n  fusionkit info conditional_prompt\n  fusionkit info bert --json",
    )
    parser.add_argument("name", metavar="NAME", help="a name that `fusionkit list` shows")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_only(argv)
    found = [(entry, describe(entry.path)) for entry in _find(options.name)]
    if options.json:
        print(json.dumps([_as_json(*each) for each in found], indent=2))
    else:
        for number, each in enumerate(found):
            print("\n" * (number > 0), end="")
            _print(*each)
    return 0


def _find(name: str) -> list[Entry]:
    known = [entry for kind in GROUPS for entry in entries(kind).values()]
    found = [entry for entry in known if entry.name == name]
    if not found:
        names = sorted({entry.name for entry in known})
        raise UnknownNameError(
            f"Nothing is called {name!r}.{suggest(name, names)} Known: {', '.join(names)}."
        )
    return found


def _stated(entry: Entry, description: Description | None) -> list[Argument]:
    """The arguments that a config can state."""
    arguments = description.arguments if description else ()
    return [argument for argument in arguments if argument.name not in GIVEN[entry.kind]]


def _as_json(entry: Entry, description: Description | None) -> dict[str, Any]:
    arguments = [
        {"name": a.name, "type": a.type, "required": a.default is None, "default": a.default}
        | {"doc": a.doc}
        for a in _stated(entry, description)
    ]
    return {
        **as_json(entry),
        "description": description.text if description else None,
        "arguments": arguments if description else None,
    }


def _print(entry: Entry, description: Description | None) -> None:
    arguments = _stated(entry, description)
    print(f"{entry.name}: {_ROLE[entry.kind]}, from {entry.distribution} {entry.version}")
    print(f"  {entry.path}\n")
    text = description.text if description else entry.summary
    print(text.strip().replace("``", "`"))
    if description is None:
        print(f"\nIts source was not found, so its arguments are not known: {entry.path}.")
    elif arguments:
        print("\narguments:")
        print_table([_row(argument) for argument in arguments], width=100)
    else:
        print("\nIt takes no arguments.")
    print(f"\nin a config:\n{_example(entry, arguments)}")


def _row(argument: Argument) -> tuple[str, str, str]:
    value = "required" if argument.default is None else _value(argument)
    note = "" if value == "null" else f"({value if value == 'required' else f'default {value}'})"
    return f"  {argument.name}", argument.type, f"{phrase(argument.doc)} {note}".strip()


def _value(argument: Argument) -> str:
    """The default as YAML has it; as source where it is computed."""
    try:
        return spell_value(plain(ast.literal_eval(argument.default or "")))
    except (ValueError, SyntaxError):
        return argument.default or ""


def _example(entry: Entry, arguments: Sequence[Argument]) -> str:
    """A snippet to copy: what must be stated, or else the first argument."""
    shown = [argument for argument in arguments if argument.default is None] or arguments[:1]
    lines = [f"  {_KEY[entry.kind]}:", f"    name: {entry.name}"]
    for argument in shown:
        if argument.default is None:
            lines.append(f"    {argument.name}: ...  # {argument.type}")
        else:
            lines.append(f"    {argument.name}: {_value(argument)}")
    return "\n".join(lines)
