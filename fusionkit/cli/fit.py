"""``fusionkit fit``."""

from __future__ import annotations

from collections.abc import Sequence

from fusionkit.cli.keys import OVERRIDES, describe_keys
from fusionkit.cli.parser import Parser

_EXAMPLES = """\
examples:
  fusionkit fit --config configs/quickstart.yaml
  fusionkit fit --config configs/quickstart.yaml --fusion.experts 4 --trainer.max_epochs 3
  fusionkit fit --config configs/quickstart.yaml --ckpt_path last
"""


def run(argv: Sequence[str]) -> int:
    """Train, then test, what the config describes."""
    parser = Parser(
        "fit",
        "Train what a config describes and test it. Results go to OUTPUT/NAME.",
        "--config FILE [--config FILE ...] [--ckpt_path last|PATH] [--KEY VALUE ...]",
    )
    parser.add_config(required=True)
    parser.add_argument(
        "--ckpt_path",
        metavar="last|PATH",
        help="continue an interrupted run: its last state, or that checkpoint",
    )
    if {"-h", "--help"} & set(argv):
        parser.epilog = f"{_EXAMPLES}\n{OVERRIDES}\n\n{describe_keys()}"
    options, overrides = parser.parse_with_overrides(argv)

    from fusionkit.config.validate import load_config

    experiment = load_config(options.config, overrides)

    from fusionkit.training.run import fit

    fit(experiment, ckpt_path=options.ckpt_path)
    return 0
