"""``fusionkit report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusionkit.cli.parser import Parser
from fusionkit.errors import ConfigError

FILE = "report.html"
_EXAMPLES = """\
examples:
  fusionkit report runs/quickstart
  fusionkit report runs/quickstart/001 runs/quickstart/000 --output compared.html"""


def run(argv: Sequence[str]) -> int:
    """Write the page of a run."""
    parser = Parser(
        "report",
        "Write a run as a page that opens in any browser and needs no network: results, learning "
        "curves, importance of every prompt expert over training, routing entropy, what each "
        "expert serves, and a browser of samples. With a second run, both side by side.",
        "RUN [OTHER] [--output FILE] [--samples N]",
        _EXAMPLES,
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="its folder, or the one around it for its newest run"
    )
    parser.add_argument(
        "other", type=Path, nargs="?", metavar="OTHER", help="a run to compare it with"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"the page; RUN/{FILE}")
    parser.add_argument(
        "--samples", type=int, default=400, metavar="N", help="samples in the browser (400)"
    )
    options = parser.parse_only(argv)
    if options.samples < 1:
        raise ConfigError(f"--samples is {options.samples}; it must be at least 1.")

    from fusionkit.analysis.page import write_page
    from fusionkit.analysis.report import report
    from fusionkit.training.checkpoint import find_file

    folder = find_file(options.run).parent
    other = None if options.other is None else find_file(options.other).parent
    path = options.output or folder / FILE
    write_page(report(folder, other, options.samples), path)
    print(f"Written to {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser.")
    return 0
