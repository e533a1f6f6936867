"""``fusionkit mask``."""

from __future__ import annotations

from collections.abc import Sequence

from fusionkit.cli.keys import OVERRIDES
from fusionkit.cli.parser import Parser
from fusionkit.cli.tables import print_table


def run(argv: Sequence[str]) -> int:
    """Write a mask and print the shares that it takes away."""
    parser = Parser(
        "mask",
        "Draw which fields of which samples are to be missing, and write it down: a CSV that "
        "missing.mask takes, so that a test of robustness can be repeated. Every sample keeps a "
        "field that is read; what is missing in the data itself counts towards the rate.",
        "--config FILE --rate SHARE --output FILE [--KEY VALUE ...]",
        "examples:\n"
        "  fusionkit mask --config configs/quickstart.yaml --rate 0.3 --fields image \\\n"
        "      --splits test --output mask.csv\n"
        "  fusionkit test --ckpt_path runs/quickstart --missing.mask mask.csv\n\n"
        f"{OVERRIDES}\n\n`fusionkit fit --help` lists the keys.",
    )
    parser.add_config(required=True)
    parser.add_argument(
        "--rate", type=float, required=True, help="share of the samples that lack each field"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="CSV to write")
    parser.add_argument(
        "--fields",
        type=_names,
        default=(),
        metavar="NAME,...",
        help="which fields; those of missing.allow if not given, or all that are read",
    )
    parser.add_argument(
        "--splits", type=_names, default=(), metavar="NAME,...", help="of train, val and test; all"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw; 0")
    options, overrides = parser.parse_with_overrides(argv)

    from fusionkit.config.validate import load_config

    experiment = load_config(options.config, overrides)

    from fusionkit.training.masking import make_mask

    achieved = make_mask(
        experiment, options.output, options.rate, options.fields, options.splits, options.seed
    )
    rows = [
        (a.split, a.field, f"{a.missing:,}", f"{a.total:,}", f"{a.missing / a.total:.1%}")
        for a in achieved
    ]
    print_table(rows, ("split", "field", "missing", "of", "rate"))
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
