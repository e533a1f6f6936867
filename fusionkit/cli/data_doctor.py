"""``fusionkit data doctor``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fusionkit.cli.keys import OVERRIDES
from fusionkit.cli.parser import Parser
from fusionkit.cli.tables import print_table, terminal_width
from fusionkit.errors import ConfigError

if TYPE_CHECKING:
    from fusionkit.doctor.findings import Finding
    from fusionkit.doctor.report import Report

_WIDTH = 100
_INDENT = 9  # what the grade takes


def run(argv: Sequence[str]) -> int:
    """Examine the data, print what was found; 1 if training would fail."""
    parser = Parser(
        "data doctor",
        "Read the data of a config as training would, every row of every split, and say what is "
        "wrong with it: unreadable files, missing fields, labels, texts that are cut, odd images, "
        "duplicates, and what validation and test have in common with training. Exit code 1 if "
        "training would fail.",
        "--config FILE [--json] [--output FILE] [--KEY VALUE ...]",
        "examples:\n"
        "  fusionkit data doctor --config configs/quickstart.yaml\n"
        "  fusionkit data doctor --config configs/own_table.yaml --output findings.json\n\n"
        f"{OVERRIDES}\n\n`fusionkit fit --help` lists the keys; docs/doctor.md explains findings.",
    )
    parser.add_config(required=True)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--output", metavar="FILE", help="write the report as JSON")
    parser.add_argument(
        "--examples",
        type=int,
        default=3,
        metavar="N",
        help="rows to show for each error and warning; 3",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes; as many as loader.workers says"
    )
    options, overrides = parser.parse_with_overrides(argv)
    for name in ("examples", "workers"):
        if (getattr(options, name) or 0) < 0:
            raise ConfigError(f"--{name} is at least 0, given {getattr(options, name)}.")

    from fusionkit.config.validate import load_config

    experiment = load_config(options.config, overrides)

    from fusionkit.doctor.run import examine

    started = time.monotonic()
    with _progress() as watch:
        report = examine(experiment, options.workers, watch)
    content = json.dumps(report.to_json(), indent=2, ensure_ascii=False)
    if options.output:
        path = Path(options.output).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", encoding="utf-8")
    if options.json:
        print(content)
    else:
        _print(report, options.examples, time.monotonic() - started)
        if options.output:
            print(f"All rows of all findings are in {options.output}.")
    return int(report.fails)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bars: dict[str, object] = {}
    columns = (TextColumn("{task.description:5}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as progress:

        def watch(split: str, seen: int, total: int | None) -> None:
            if split not in bars:
                bars[split] = progress.add_task(split, total=total)
            progress.update(bars[split], completed=seen)  # type: ignore[arg-type]

        yield watch


def _print(report: Report, examples: int, seconds: float) -> None:
    splits = report.split_rows()
    if splits:
        regression = report.study.task == "regression"
        baseline = "error of the median" if regression else "largest class"
        print_table(splits, ("split", "rows", "labels", baseline), _WIDTH)
        print()
    fields = report.field_rows()
    if fields:
        header = ("field", "read by", "unreadable", "missing", "distinct", "what it holds")
        print_table(fields, header, _WIDTH, wrapped=("read by", "what it holds"))
        print()
    for finding in report.findings:
        print_table([(f"{finding.grade:7}", _text(finding, examples))], (), _WIDTH)
    print(("\n" if report.findings else "") + f"{report.verdict} ({seconds:.0f} s)")


def _text(finding: Finding, examples: int) -> str:
    lines = [f"{finding.title}."]
    examples = min(examples, 1) if finding.grade == "note" else examples
    width = min(terminal_width(), _WIDTH) - _INDENT
    lines += [_fit(f"- {place.describe()}", width) for place in finding.places[:examples]]
    if 0 < examples < len(finding.places):
        lines.append(f"- and {len(finding.places) - examples:,} more")
    return "\n".join([*lines, finding.advice] if finding.advice else lines)


def _fit(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 3]}..."
