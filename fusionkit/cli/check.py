"""``fusionkit check``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fusionkit.cli.keys import OVERRIDES
from fusionkit.cli.parser import Parser
from fusionkit.cli.tables import print_table


def run(argv: Sequence[str]) -> int:
    """Build what the config describes, without weights, and report."""
    parser = Parser(
        "check",
        "Build everything a config names without loading weights or training, and "
        "report what would be trained, how many parameters that is, and what a step costs.",
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
    if not isinstance(data, str):
        data = ", ".join(f"{k} (a stream)" if v is None else f"{v} {k}" for k, v in data.items())
    rows = [("fields", fields), ("outputs", str(report.outputs)), ("learning rates", rates)]
    if report.augmentation:
        rows.insert(1, ("augmentation", report.augmentation))
    rows.append(("samples", data))
    if report.cache:
        rows.append(("computed once", "; ".join(report.cache)))
    rows += _cost_rows(report.cost)
    rows.append(("fast paths", "; ".join(report.fast_paths)))
    print_table(rows, width=100)
    return 0


def _cost_rows(cost: Any) -> list[tuple[str, str]]:
    """What a step costs, or one row that says why nobody knows."""
    if isinstance(cost, str):
        return [("cost of a step", cost)]
    flops = f"{_si(cost.forward_flops)} forward, {_si(cost.backward_flops)} backward"
    memory = (
        f"at least {_bytes(cost.memory)}: weights {_bytes(cost.weights)}, AdamW "
        f"{_bytes(cost.optimizer)}, forward and backward pass {_bytes(cost.passes)}"
    )
    batch = "; ".join(
        f"{role} " + ", ".join(f"{name} {' x '.join(map(str, s))}" for name, s in shapes.items())
        for role, shapes in cost.shapes.items()
    )
    return [("FLOPs per sample", flops), ("memory of a step", memory), ("with a batch of", batch)]


def _si(number: float) -> str:
    """``9.43 G``."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:,.0f}"


def _bytes(number: int) -> str:
    """``1.2 GiB``."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
