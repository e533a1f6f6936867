"""``fusionkit data cache``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from fusionkit.cli.keys import OVERRIDES
from fusionkit.cli.parser import Parser
from fusionkit.cli.tables import print_table


def run(argv: Sequence[str]) -> int:
    """Fill the cache of a config and print what is in it."""
    parser = Parser(
        "data cache",
        "Compute once what the frozen encoders of a config see of its data: the features of "
        "complements and, where prompts start at a later layer, the tokens that enter that layer "
        "of the main encoder. `fusionkit fit` with `cache: true` does the same before it trains; "
        "what is there already is not computed again, by whichever config. The config's section "
        "`cache` says which roles, and how; all of them if it says nothing.",
        "--config FILE [--dry-run] [--json] [--KEY VALUE ...]",
        "examples:\n"
        "  fusionkit data cache --config configs/quickstart.yaml --dry-run\n"
        "  fusionkit data cache --config configs/quickstart.yaml\n"
        "  fusionkit fit --config configs/quickstart.yaml --cache true\n\n"
        f"{OVERRIDES}\n\n`fusionkit fit --help` lists the keys.",
    )
    parser.add_config(required=True)
    parser.add_argument(
        "--dry-run", action="store_true", help="compute one batch, to tell the size; keep nothing"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options, overrides = parser.parse_with_overrides(argv)
    from fusionkit.config.validate import load_config

    experiment = load_config(options.config, overrides)
    if not experiment.cache.roles:
        experiment = replace(experiment, cache=replace(experiment.cache, roles="all"))

    from fusionkit.training.report import console
    from fusionkit.training.run import fill_cache

    done = fill_cache(experiment, options.dry_run, None if options.json else console())
    if options.json:
        print(json.dumps([filled.to_json() for filled in done], indent=2))
        return 0

    from rich.filesize import decimal

    size = "would take" if options.dry_run else "on disk"
    print_table(
        [
            (
                filled.plan.role,
                filled.plan.what,
                f"{filled.values:,}",
                f"{filled.found:,}",
                decimal(filled.bytes),
                str(filled.folder),
            )
            for filled in done
        ],
        ("role", "kept", "values", "found", size, "folder"),
    )
    return 0
