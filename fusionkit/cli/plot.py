"""``fusionkit plot``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusionkit.cli.parser import Parser

_EXAMPLES = """\
examples:
  fusionkit plot runs/fig4 --x prompts --y accuracy --hue grown --only data=SNLI-VE
  fusionkit plot runs/fig6 --x epoch --y val/routing_entropy --hue routing --only data=SNLI-VE
  fusionkit plot runs/digits --x prompts --y accuracy --output digits.svg"""


def run(argv: Sequence[str]) -> int:
    """Draw a figure of a sweep."""
    parser = Parser(
        "plot",
        "Results of a sweep as a figure: means with their standard deviation, and a dot for each "
        "seed. Over an axis of the sweep, or over training with --x epoch.",
        "FOLDER --x AXIS --y METRIC [--hue AXIS] [--only AXIS=LABEL ...] [OPTIONS]",
        _EXAMPLES,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the sweep: OUTPUT/NAME")
    parser.add_argument("--x", required=True, metavar="AXIS", help="an axis, or epoch")
    parser.add_argument("--y", required=True, metavar="METRIC", help="a metric")
    parser.add_argument("--hue", metavar="AXIS", help="an axis that has a line for each label")
    parser.add_argument("--title", metavar="TEXT", help="above the figure")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=".png, .svg or .pdf (FOLDER/Y_by_X.png)"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="AXIS=LABEL", help="runs with these labels only"
    )
    options = parser.parse_only(argv)

    from fusionkit.sweep.plots import plot
    from fusionkit.sweep.results import collect, select

    name = f"{options.y}_by_{options.x}.png".replace("/", "_")
    path = options.output or options.folder / name
    runs = select(collect(options.folder), options.only)
    plot(runs, options.x, options.y, options.hue, path, options.title)
    print(f"Written to {path}")
    return 0
