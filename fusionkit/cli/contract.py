"""``fusionkit contract``."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fusionkit import registry
from fusionkit.cli.keys import spell_value
from fusionkit.cli.parser import Overrides, Parser
from fusionkit.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from fusionkit.testing import Case, Result

_INDENT = 13  # of reasons, below the titles
_STYLES = {"passed": "green", "failed": "bold red", "skipped": "dim"}


def run(argv: Sequence[str]) -> int:
    """Run the contract on one encoder and print what came of each check."""
    parser = Parser(
        "contract",
        "Check that an encoder keeps what the rest of fusionkit relies on, and print what is "
        "broken and why. Without arguments, the encoder's own contract case is taken if its "
        "distribution has one. Exit code 1 if a check failed.",
        "NAME [--json] [--ARGUMENT VALUE ...]",
        "examples:\n"
        "  fusionkit contract bert --model fusionkit/claims-transformer\n"
        "  fusionkit contract timm_vit --weights random --options '{img_size: 32, depth: 2}'\n\n"
        "The arguments are the encoder's own, as a config states them; `fusionkit info NAME` "
        "lists them.\nThe checks are in docs/contract.md; all but one compute in float64, so "
        "build a small encoder.",
    )
    parser.add_argument("name", metavar="NAME", help="an encoder that `fusionkit list` shows")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options, overrides = parser.parse_with_overrides(argv, keys=None)
    entry = registry.find("complement_encoder", options.name)
    case, described = _case(entry, _arguments(overrides))
    if not options.json:
        print(f"{entry.name} of {entry.distribution} {entry.version}: {described}\n")
    results = _run(case, shown=not options.json)
    broken = any(result.status == "failed" for result in results)
    if options.json:
        found = {"name": entry.name, "distribution": entry.distribution, "version": entry.version}
        made = [asdict(result) for result in results]
        print(json.dumps({**found, "case": described, "passed": not broken, "results": made}))
    return int(broken)


def _arguments(overrides: Overrides) -> dict[str, Any]:
    from fusionkit.config.merge import parse_override

    arguments: dict[str, Any] = {}
    for key, text in overrides:
        _merge(arguments, parse_override(key, text))
    return arguments


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for name, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def _case(entry: registry.Entry, arguments: Mapping[str, Any]) -> tuple[Case, str]:
    """The case, and what it is made of."""
    cls = registry.load(entry.kind, entry.name)
    own = None if arguments else registry.load_case(entry)
    if own is not None:
        return own(), "its own case"
    from fusionkit.config.arguments import check_arguments
    from fusionkit.testing.samples import made_up_case

    checked, wrong = check_arguments(cls, entry.name, arguments)
    if wrong:
        told = [f"--{name}: {text}" if name else text for name, text in wrong]
        how = f"Arguments are options: fusionkit contract {entry.name} --ARGUMENT VALUE."
        raise ConfigError("\n  ".join([f"{entry.name} cannot be built:", *told, how]))
    stated = ", ".join(f"{name}: {spell_value(value)}" for name, value in arguments.items())
    try:
        return made_up_case(cls, checked), stated or "its default arguments"
    except ValueError as error:
        raise ConfigError(
            f"{entry.name}: {error} Let its distribution bring a case: an entry point "
            f"{entry.name!r} in the group {registry.CASES_GROUP!r}; docs/own_encoder.md shows one."
        ) from error


def _run(case: Case, shown: bool) -> list[Result]:
    """All results; in a terminal, with the check that is running below them."""
    from rich.console import Console

    from fusionkit.testing import CHECKS, format_results, run_contract
    from fusionkit.testing.case import NO_LAYERS

    # A spinner must not get into JSON that is piped on.
    console = Console(highlight=False, stderr=not shown)
    waiting = [f"{check.number} of {len(CHECKS)}: {check.title}" for check in CHECKS]
    start = time.monotonic()
    with console.status(waiting.pop(0)) as status:

        def report(result: Result) -> None:
            if shown and result.message != NO_LAYERS:
                _print(console, result)
            if waiting:
                status.update(waiting.pop(0))

        results = run_contract(case, report)
    if shown:
        counts = format_results(results).splitlines()[-1]
        print(f"\n{counts} in {time.monotonic() - start:.0f} s")
        if any(result.message == NO_LAYERS for result in results):
            print("What is not shown is for encoders with layers: a complement skips it.")
        if len(results) == 1:
            print("Give arguments that build a small encoder, such as --weights random.")
        elif any(result.status == "failed" for result in results):
            print("docs/contract.md says what each check is good for.")
    return results


def _print(console: Console, result: Result) -> None:
    from rich.text import Text

    style = _STYLES[result.status]
    shown = result.status.upper() if result.status == "failed" else result.status
    line = Text(f"{result.number:2}  ").append(f"{shown:7}", style).append(f"  {result.title}")
    margin = " " * _INDENT
    reason = textwrap.wrap(result.message, max(console.width, 60) - _INDENT)
    console.print(line, *(Text(margin + text, style) for text in reason), sep="\n", soft_wrap=True)
