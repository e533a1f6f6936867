"""``fusionkit list``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fusionkit.cli.keys import spell_value
from fusionkit.cli.parser import Parser
from fusionkit.cli.tables import print_table, terminal_width
from fusionkit.config.systems import SYSTEMS
from fusionkit.registry import Entry, Kind, entries

_KINDS: dict[str, tuple[Kind, ...]] = {
    "encoders": ("main_encoder", "complement_encoder"),
    "fusions": ("fusion",),
    "transfers": ("transfer",),
    "datasets": ("dataset",),
}
ROLES: dict[Kind, str] = {
    "main_encoder": "main or complement",
    "complement_encoder": "complement only",
    "fusion": "fusion",
    "transfer": "transfer",
    "dataset": "data",
}
_MODALITIES = ("image", "text", "audio", "video", "table", "vector", "other")
_NARROWEST = 26  # columns that a summary needs to be read


def run(argv: Sequence[str]) -> int:
    """Print a table of what is installed."""
    parser = Parser(
        "list",
        "What is installed, with the distribution it comes from.",
        f"[{'|'.join(_KINDS)}|systems] [--json]",
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=(*_KINDS, "systems"),
        metavar="WHAT",
        help=f"{', '.join(_KINDS)}, systems; left out, all of them",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_only(argv)
    if options.what == "systems":
        _list_systems(options.json)
        return 0
    kinds = _KINDS[options.what] if options.what else tuple(ROLES)
    found = [entry for kind in kinds for entry in entries(kind).values()]
    if options.json:
        print(json.dumps([as_json(entry) for entry in found], indent=2))
    elif options.what == "encoders":
        _print_encoders(found)
    else:
        _print_table(found, with_role=options.what is None)
    return 0


def _list_systems(as_data: bool) -> None:
    if as_data:
        systems = [
            {"name": name, "summary": system.summary, "config": system.overlay}
            for name, system in SYSTEMS.items()
        ]
        print(json.dumps(systems, indent=2))
        return
    rows = [(name, system.summary, *_parts(system.overlay)) for name, system in SYSTEMS.items()]
    print_table(
        rows, ["name", "what it is", "main", "complement", "fusion"], wrapped=["what it is"]
    )
    print("\n`system: NAME` in a config stands for these; keys beside it hold over it.")


def _parts(overlay: Mapping[str, Any]) -> list[str]:
    """Transfer modes and fusion of a system, arguments in brackets."""
    cells = []
    for key in ("main_transfer", "complement_transfer", "fusion"):
        node = overlay.get(key, "")
        if isinstance(node, Mapping):
            arguments = {name: value for name, value in node.items() if name != "name"}
            shown = ", ".join(f"{name}: {spell_value(value)}" for name, value in arguments.items())
            node = f"{node['name']} ({shown})"
        cells.append(node)
    return cells


def as_json(entry: Entry) -> dict[str, Any]:
    """One entry as ``--json`` prints it."""
    modality = {"modality": _modality(entry)} if entry.kind.endswith("encoder") else {}
    return {
        "name": entry.name,
        "kind": entry.kind,
        "role": ROLES[entry.kind],
        **modality,
        "summary": entry.summary,
        "path": entry.path,
        "distribution": entry.distribution,
        "version": entry.version,
    }


def _modality(entry: Entry) -> str | None:
    """What an encoder reads: built-ins say so in their summary, of others the source is read."""
    prefix = entry.summary.partition(":")[0]
    stated = prefix if prefix in _MODALITIES else None
    if entry.distribution == "fusionkit":
        return stated
    from fusionkit.cli.source import modality_of

    return modality_of(entry.path) or stated


def _print_encoders(found: Sequence[Entry]) -> None:
    """Those that can be main first, by modality; the summaries only where there is room."""
    read = {entry: _modality(entry) or "" for entry in found}
    found = sorted(found, key=lambda entry: (entry.kind != "main_encoder", read[entry]))
    columns = {
        "name": [entry.name for entry in found],
        "role": ["either" if e.kind == "main_encoder" else "complement" for e in found],
        "modality": [read[entry] for entry in found],
        "what it is": [e.summary.removeprefix(f"{read[e]}:").strip() for e in found],
        "source": [entry.distribution for entry in found],
        "version": [entry.version for entry in found],
    }
    taken = [2 + max(map(len, [title, *cells])) for title, cells in columns.items()]
    more = ""
    if terminal_width() - sum(taken) + taken[3] < _NARROWEST:
        del columns["what it is"]
        more = ",\na wider terminal all of them"
    print_table(list(zip(*columns.values(), strict=True)), list(columns), wrapped=["what it is"])
    print(f"\neither: main encoder or complement. `fusionkit info NAME` describes one{more}.")


def _print_table(found: Sequence[Entry], with_role: bool) -> None:
    columns = {
        "name": [entry.name for entry in found],
        "role": [ROLES[entry.kind] for entry in found],
        "what it is": [entry.summary for entry in found],
        "from": [f"{entry.distribution} {entry.version}" for entry in found],
    }
    if not with_role:
        del columns["role"]
    print_table(list(zip(*columns.values(), strict=True)), list(columns))
