"""``fusionkit predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusionkit.cli.parser import Parser
from fusionkit.errors import ConfigError

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def run(argv: Sequence[str]) -> int:
    """Write the predictions for a table of new samples."""
    parser = Parser(
        "predict",
        "Predictions of a trained model for a table of new samples, one row for each of its rows.",
        "--ckpt_path RUN|FILE --input TABLE --output FILE",
        "example:\n  fusionkit predict --ckpt_path runs/food101 --input new.csv --output out.csv",
    )
    parser.add_checkpoint()
    parser.add_argument(
        "--input",
        required=True,
        metavar="TABLE",
        help="CSV, TSV, JSONL or Parquet with the columns of the training table; no label needed",
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE", help=f"one of {', '.join(_SUFFIXES)}"
    )
    options = parser.parse_only(argv)
    if Path(options.output).suffix not in _SUFFIXES:
        raise ConfigError(
            f"--output {options.output}: predictions are written as {', '.join(_SUFFIXES)}; "
            f"give the file one of these endings."
        )

    from fusionkit.training.evaluate import predict

    print(predict(options.ckpt_path, options.input, options.output))
    return 0
