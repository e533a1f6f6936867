"""``fusionkit list``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fusionkit.cli.parser import Parser
from fusionkit.cli.tables import print_table
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


def run(argv: Sequence[str]) -> int:
    """Print a table of what is installed."""
    parser = Parser(
        "list",
        "What is installed, with the distribution it comes from.",
        f"[{'|'.join(_KINDS)}] [--json]",
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=_KINDS,
        metavar="WHAT",
        help=f"{', '.join(_KINDS)}; left out, all of them",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_only(argv)
    kinds = _KINDS[options.what] if options.what else tuple(ROLES)
    found = [entry for kind in kinds for entry in entries(kind).values()]
    if options.json:
        print(json.dumps([as_json(entry) for entry in found], indent=2))
    else:
        _print_table(found, with_role=options.what in (None, "encoders"))
    return 0


def as_json(entry: Entry) -> dict[str, Any]:
    """One entry as ``--json`` prints it."""
    return {
        "name": entry.name,
        "kind": entry.kind,
        "role": ROLES[entry.kind],
        "summary": entry.summary,
        "path": entry.path,
        "distribution": entry.distribution,
        "version": entry.version,
    }


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
