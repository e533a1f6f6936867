"""What ``fusionkit validate`` and ``fusionkit test`` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fusionkit.cli.keys import OVERRIDES
from fusionkit.cli.parser import Parser
from fusionkit.cli.tables import print_table


def evaluate_split(argv: Sequence[str], stage: Literal["validate", "test"]) -> int:
    """Metrics of a trained model on the split of ``stage``."""
    split = "validation" if stage == "validate" else "test"
    parser = Parser(
        stage,
        f"Metrics of a trained model on the {split} split. The config it was trained with is "
        "in its checkpoint; --config and overrides change it, for another data set say.",
        "--ckpt_path RUN|FILE [--config FILE ...] [--KEY VALUE ...]",
        f"examples:\n  fusionkit {stage} --ckpt_path runs/quickstart\n"
        f"  fusionkit {stage} --ckpt_path runs/quickstart --loader.batch_size 8\n\n{OVERRIDES}\n\n"
        "`fusionkit fit --help` lists the keys.",
    )
    parser.add_checkpoint()
    parser.add_config(required=False)
    options, overrides = parser.parse_with_overrides(argv)

    from fusionkit.training.evaluate import evaluate

    metrics = evaluate(options.ckpt_path, stage, options.config, overrides)
    print_table([(name, f"{value:.4f}") for name, value in metrics.items()])
    return 0
