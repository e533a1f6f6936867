"""``fusionkit check``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fusionkit.cli.keys import OVERRIDES
from fusionkit.cli.parser import Parser
from fusionkit.cli.tables import print_table


def run(argv: Sequence[str]) -> int:
    """Build what the config describes, without weights, and report."""
    parser = Parser(
        "check",
        "Build everything a config names without loading weights or training, and "
        "report what would be trained and how many parameters that is.",
        "--config FILE [--config FILE ...] [--json] [--KEY VALUE ...]",
        f"example:\n  fusionkit check --config configs/quickstart.yaml --fusion.experts 4\n\n"
        f"{OVERRIDES}\n\n`fusionkit fit --help` lists the keys.",
    )
    parser.add_config(required=True)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options, overrides = parser.parse_with_overrides(argv)

    from fusionkit.config.validate import load_config

    experiment = load_config(options.config, overrides)

    from fusionkit.training.check import check

    report = check(experiment)
    if options.json:
        print(json.dumps(report.to_json(), indent=2))
        return 0

    from fusionkit.training.report import console, parameter_table

    console().print(parameter_table(report.counts))
    fields = ", ".join(f"{role} reads {field}" for role, field in report.fields.items())
    rates = ", ".join(f"{group} {rate:g}" for group, rate in report.learning_rates.items())
    data = report.data
    samples = data if isinstance(data, str) else ", ".join(f"{v} {k}" for k, v in data.items())
    rows = [("fields", fields), ("outputs", str(report.outputs)), ("learning rates", rates)]
    rows.append(("samples", samples))
    if report.cache:
        rows.append(("computed once", "; ".join(report.cache)))
    print_table(rows, width=100)
    return 0
