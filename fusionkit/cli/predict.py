"""``fusionkit predict``."""

from __future__ import annotations

from collections.abc import Sequence

from fusionkit.cli.keys import OVERRIDES
from fusionkit.cli.parser import Parser


def run(argv: Sequence[str]) -> int:
    """Write the predictions for a table of new samples."""
    parser = Parser(
        "predict",
        "Predictions of a trained model for a table of new samples, one row for each of its rows. "
        "--config and overrides change the config it was trained with: where weights are now, say.",
        "--ckpt_path RUN|FILE --input TABLE --output FILE [--config FILE] [...]",
        "example:\n  fusionkit predict --ckpt_path runs/quickstart --input new_claims.csv \\\n"
        f"      --output predictions.csv\n\n{OVERRIDES}\n\n`fusionkit fit --help` lists the keys.",
    )
    parser.add_checkpoint()
    parser.add_argument(
        "--input",
        required=True,
        metavar="TABLE",
        help="a table with the columns of the training table: CSV, TSV, JSONL, Parquet or Arrow, a "
        "glob or folder of such files, or a URL; no label needed",
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="a file of the same formats, by its ending"
    )
    parser.add_config(required=False)
    options, overrides = parser.parse_with_overrides(argv)

    from fusionkit.training.evaluate import predict

    print(predict(options.ckpt_path, options.input, options.output, options.config, overrides))
    return 0
