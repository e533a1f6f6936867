"""``fusionkit contributions``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusionkit.cli.parser import Parser

if TYPE_CHECKING:
    from fusionkit.analysis.contributions import Contributions

_EXAMPLES = """\
examples:
  fusionkit fit --config configs/quickstart.yaml --missing.allow '[main, complement]' \\
    --missing.dropout 0.3 --baselines null --name both
  fusionkit contributions --ckpt_path runs/both --output contributions.csv"""


def run(argv: Sequence[str]) -> int:
    """Say which modality mattered, over all and sample by sample."""
    parser = Parser(
        "contributions",
        "Which modality mattered: each is left out in turn, with every combination of the others, "
        "and the learned stand-in takes its place. Prints how good predictions are with each "
        "combination, and the exact Shapley value of each role: its part in the probability of the "
        "true class, or in the error of a number. The model has to be trained with missing.allow.",
        "--ckpt_path RUN|FILE [--split test] [--output FILE.csv]",
        _EXAMPLES,
    )
    parser.add_checkpoint()
    parser.add_argument("--split", choices=["test", "val"], default="test", help="of the data")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a CSV with a row per sample")
    options = parser.parse_only(argv)

    from rich.progress import Progress

    from fusionkit.analysis.contributions import contributions, save
    from fusionkit.training.predictor import load
    from fusionkit.training.report import console

    predictor = load(options.ckpt_path)
    out = console()
    with Progress(console=out, transient=True, disable=not out.is_terminal) as progress:
        bar = progress.add_task("leaving out", total=None)
        found = contributions(
            predictor,
            options.split,
            lambda done, of: progress.update(bar, completed=done, total=of),
        )
    _print(found, predictor.description.task)
    if options.output is not None:
        save(found, options.output)
        out.print(f"Each sample: {options.output}", soft_wrap=True)
    return 0


def _print(found: Contributions, task: str) -> None:
    import numpy as np

    from fusionkit.training.report import console, plain_table

    out = console()
    numbers = task == "regression"
    score = {"single_label": "accuracy %", "multi_label": "all labels right %"}.get(task, "mae")
    table = plain_table("Shown to the model")
    table.add_column("roles")
    table.add_column(score, justify="right")
    for subset, value in found.scores.items():
        name = " and ".join(role for role in found.roles if role in subset) or "nothing"
        table.add_row(name, f"{value:.4g}" if numbers else f"{100 * value:.1f}")
    out.print(table)
    count = len(found.samples)
    table = plain_table("Mean Shapley value" + ("" if numbers else ", percentage points"))
    table.add_column("role")
    table.add_column("value", justify="right")
    table.add_column("standard error", justify="right")
    size = 1 if numbers else 100
    columns = {
        **dict(zip(found.roles, found.shapley.T, strict=True)),
        "interaction": found.interaction,
    }
    for name, values in columns.items():
        error = np.std(values, ddof=1) / np.sqrt(count) if count > 1 else 0.0
        table.add_row(name, f"{size * values.mean():.3g}", f"{size * error:.2g}")
    out.print(table)
