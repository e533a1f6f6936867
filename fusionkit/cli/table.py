"""``fusionkit table``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusionkit.cli.parser import Parser
from fusionkit.errors import ConfigError

_SUFFIXES = {".md": "markdown", ".csv": "csv", ".tex": "latex"}
_EXAMPLES = """\
examples:
  fusionkit table runs/table2
  fusionkit table runs/table2 --rows prompts --columns data --metric accuracy f1_macro f1_micro
  fusionkit table runs/table2 --against 'all three'
  fusionkit table runs/fig7 --only data=SNLI-VE --columns shots --output fig7.tex"""


def run(argv: Sequence[str]) -> int:
    """Print or write the table of a sweep."""
    parser = Parser(
        "table",
        "Results of a sweep as a table: mean and standard deviation over seeds, the best in bold, "
        "and a mark where a paired t-test over seeds tells a row from the best. Rows of different "
        "data sets are not compared.",
        "FOLDER [--rows AXIS ...] [--columns AXIS] [--only AXIS=LABEL ...] [OPTIONS]",
        _EXAMPLES,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the sweep: OUTPUT/NAME")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[],
        metavar="AXIS",
        help="axes that name rows (all that are left)",
    )
    parser.add_argument(
        "--columns", metavar="AXIS", help="axis whose labels are columns (metrics are)"
    )
    parser.add_argument(
        "--metric", nargs="+", default=[], metavar="NAME", help="which metrics (all)"
    )
    parser.add_argument("--against", metavar="ROW", help="test rows against this one (the best)")
    parser.add_argument(
        "--format",
        choices=sorted(_SUFFIXES.values()),
        help="default: by the ending of FILE, else markdown",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write it there, not to the terminal"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="AXIS=LABEL", help="runs with these labels only"
    )
    options = parser.parse_only(argv)
    form = options.format
    if form is None and options.output is not None:
        form = _SUFFIXES.get(options.output.suffix)
        if form is None:
            raise ConfigError(
                f"--output: {options.output.name} says no format; end it in "
                f"{', '.join(_SUFFIXES)}, or give --format."
            )

    from fusionkit.sweep.results import collect, select
    from fusionkit.sweep.tables import make_table, save_table, write_table

    runs = select(collect(options.folder), options.only)
    table = make_table(runs, options.rows, options.columns, options.metric, options.against)
    if options.output is None:
        print(write_table(table, form or "markdown"), end="")
    else:
        save_table(table, form or "markdown", options.output)
    return 0
