"""``fusionkit sweep``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusionkit.cli.keys import OVERRIDES
from fusionkit.cli.parser import Parser
from fusionkit.errors import ConfigError

if TYPE_CHECKING:
    from fusionkit.sweep.grid import Grid

_EXAMPLES = """\
examples:
  fusionkit sweep --config configs/experiments/table2.yaml --dry-run
  fusionkit sweep --config configs/experiments/table2.yaml --shard 2/8
  fusionkit sweep --config configs/experiments/table2.yaml --config configs/quickstart.yaml \\
    --sweep.data null --name digits    # Table 2 on other data: the axis of data sets is taken out
  fusionkit table runs/digits
  fusionkit plot runs/digits --x prompts --y accuracy --output digits.png

In a config, `sweep:` names the axes of a grid. A dotted key has a list of values; a name of your
own has configs that are merged over this one, by label. Every point is trained with each of seeds.
  sweep:
    fusion.experts: [2, 4, 8, 16]
    prompts:
      all: {}
      static only: {fusion: {dynamic: false, mapped: false}}
  seeds: [0, 1, 2]"""


def run(argv: Sequence[str]) -> int:
    """Make the runs of a sweep; 1 if one of them failed."""
    parser = Parser(
        "sweep",
        "Train a grid of configs with several seeds. What is finished under the same config is not "
        "repeated, what was interrupted goes on, and a run that fails stops no other. Results go "
        "to OUTPUT/NAME: results.parquet, results.csv, epochs.parquet; `fusionkit table` and "
        "`fusionkit plot` set them out.",
        "--config FILE [--jobs N] [--shard I/N] [--dry-run] [--KEY VALUE ...]",
        f"{_EXAMPLES}\n\n{OVERRIDES}\n\n`fusionkit fit --help` lists the keys.",
    )
    parser.add_config(required=True)
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="runs at a time, which share the cores; without it, one for each core as far as "
        "memory allows, or one where there is a GPU",
    )
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N", help="the I-th of N shares, for job arrays"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="build every point without weights; train nothing"
    )
    options, overrides = parser.parse_with_overrides(argv)
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs is {options.jobs}; it must be at least 1.")
    shard = _shard(options.shard)

    from fusionkit.sweep.grid import read_grid

    grid = read_grid(options.config, overrides)
    if options.dry_run:
        return _dry_run(grid)

    from fusionkit.sweep.run import run_sweep

    made, failed = run_sweep(grid, shard, options.jobs)
    total = len(grid.points) * len(grid.seeds)
    share = "" if shard[1] == 1 else f" in share {options.shard} of"
    print(f"{made} runs made now,{share} {total} in all. Results: {grid.folder}/results.parquet")
    for line in failed:
        print(f"failed: {line}")
    print(f"fusionkit table {grid.folder}")
    return int(bool(failed))


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    number, of = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= of:
        raise ConfigError(f"--shard is I/N with 1 <= I <= N, such as 2/8; given {text!r}.")
    return number, of


def _dry_run(grid: Grid) -> int:
    from fusionkit.sweep.run import count
    from fusionkit.training.report import console, plain_table

    found = count(grid)
    table = plain_table(f"{grid.name}: {len(grid.points)} points, {len(grid.seeds)} seeds each")
    for axis in found[0].point.labels:
        table.add_column(axis, overflow="fold")
    for title in ("trained", "of all"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in found:
        if each.trained is None or not each.total:
            table.add_row(*each.point.labels.values(), "error", "")
        else:
            share = f"{100 * each.trained / each.total:.2f} %"
            table.add_row(*each.point.labels.values(), f"{each.trained:,}", share)
    out = console()
    out.print(table)
    wrong = [each for each in found if each.error]
    for each in wrong:
        out.print(f"{each.point.name}: {each.error}", soft_wrap=True, markup=False)
    return int(bool(wrong))
