"""``fusionkit compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusionkit.cli.keys import OVERRIDES
from fusionkit.cli.parser import Overrides, Parser
from fusionkit.config.systems import SYSTEMS
from fusionkit.errors import ConfigError, suggest

if TYPE_CHECKING:
    from fusionkit.compare.results import Comparison
    from fusionkit.config.schema import Experiment

_EXAMPLES = """\
examples:
  fusionkit compare --config configs/quickstart.yaml
  fusionkit compare --config configs/quickstart.yaml --systems '[late_concat, conditional_prompt]'
  fusionkit compare --config configs/quickstart.yaml --only pmf gated --fit --seeds '[0, 1, 2]'

`fusionkit list systems` describes them. In a config, `systems:` is a list of their names, or a
mapping of labels to configs that are merged over this one:
  systems:
    conditional_prompt: {}
    four experts: {system: conditional_prompt, fusion: {experts: 4}}"""


def run(argv: Sequence[str]) -> int:
    """Measure, and train if asked, the systems of a config; print tables."""
    parser = Parser(
        "compare",
        "Set systems side by side on the encoders of a config: trained parameters, FLOPs, peak "
        "memory and time of a training step on this machine. With --fit, train and test each with "
        "each of the config's seeds as well. Without `systems` in the config, all are taken that "
        "fusionkit knows. Results go to OUTPUT/NAME: compare.json, compare.csv, compare.md.",
        "--config FILE [--fit [--jobs N]] [--only LABEL ...] [--KEY VALUE ...]",
        f"{_EXAMPLES}\n\n{OVERRIDES}\n\n`fusionkit fit --help` lists the keys.",
    )
    parser.add_config(required=True)
    parser.add_argument(
        "--fit",
        action="store_true",
        help="train each; what is finished is not repeated, what was interrupted goes on",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time, which share the cores; 1"
    )
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="these of the systems")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="timed steps; as many as take three seconds"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options, overrides = parser.parse_with_overrides(argv)
    for option in ("jobs", "steps"):
        given = getattr(options, option)
        if given is not None and given < 1:
            raise ConfigError(f"--{option} is {given}; it must be at least 1.")
    if options.jobs and not options.fit:
        raise ConfigError("--jobs is about training; add --fit. Measuring is done one by one.")
    experiment, systems = load_systems(options.config, overrides, options.only)

    from fusionkit.compare.run import fit_systems, measure_systems

    comparison = measure_systems(experiment, systems, options.steps)
    if not options.json:
        _print_costs(comparison)
    refused = all(row.refused for row in comparison.rows)
    if options.fit and not refused:
        fit_systems(experiment, systems, comparison, options.jobs or 1)
        if not options.json:
            _print_results(comparison)
    if options.json:
        print(json.dumps(comparison.to_json(), indent=2))
    else:
        print(f"Written to {comparison.folder}: compare.json, compare.csv, compare.md")
    if refused:
        raise ConfigError(
            "Every system refuses these encoders, for the reasons above; change the encoders, or "
            "name other systems."
        )
    return int(comparison.failed)


def load_systems(
    files: Sequence[str], overrides: Overrides, only: Sequence[str] | None = None
) -> tuple[Experiment, dict[str, Experiment | ConfigError]]:
    """The experiment of a config, and its systems by label.

    A system that is only named is fusionkit's: if its config is not valid with these encoders, the
    error is its refusal. In a system that the user has written it is an error like any other.

    Args:
        files: Config files.
        overrides: From the command line.
        only: Labels of the systems to take; None for all.

    Raises:
        ConfigError: The config is not valid, or has no system of a name in ``only``.
    """
    from fusionkit.config.merge import read_config
    from fusionkit.config.validate import load_config

    stated = read_config(files, overrides).values.get("systems") or list(SYSTEMS)
    if not (isinstance(stated, list) and all(name in SYSTEMS for name in stated)):
        experiment = load_config(files, overrides)
        chosen = _chosen(list(experiment.systems), only)
        return experiment, {label: experiment.systems[label] for label in chosen}
    names = _chosen(stated, only)
    try:
        experiment = _with_systems(files, overrides, names)
    except ConfigError:
        experiment = _with_systems(files, overrides, [])  # raises what no system is to blame for
    else:
        return experiment, dict(experiment.systems)
    systems: dict[str, Experiment | ConfigError] = {}
    for name in names:
        try:
            systems |= _with_systems(files, overrides, [name]).systems
        except ConfigError as error:
            systems[name] = error
    return experiment, systems


def _with_systems(files: Sequence[str], overrides: Overrides, names: Sequence[str]) -> Experiment:
    from fusionkit.config.validate import load_config

    return load_config(files, [*overrides, ("systems", f"[{', '.join(names)}]")])


def _chosen(labels: Sequence[str], only: Sequence[str] | None) -> list[str]:
    for label in only or ():
        if label not in labels:
            raise ConfigError(
                f"--only: no system {label!r} in this comparison.{suggest(label, labels)} "
                f"It has: {', '.join(labels)}."
            )
    return [label for label in labels if only is None or label in only]


def _print_costs(comparison: Comparison) -> None:
    from fusionkit.compare.tables import cost_notes, cost_table, setting
    from fusionkit.training.report import console

    out = console()
    out.print(setting(comparison), soft_wrap=True)
    out.print()
    out.print(cost_table(comparison))
    for note in cost_notes(comparison):
        out.print(note, markup=False)


def _print_results(comparison: Comparison) -> None:
    from fusionkit.compare.tables import results_table, run_notes
    from fusionkit.training.report import console

    out = console()
    if comparison.metrics:
        out.print(results_table(comparison))
    else:
        out.print("Nothing was trained to the end.")
    for note in run_notes(comparison):
        out.print(note, markup=False)
