"""The command line: one module per subcommand, imported when it is asked for."""

from __future__ import annotations

import importlib
import os
import sys

from fusionkit.errors import ConfigError, FusionkitError, suggest

COMMANDS = {
    "fit": "train a model on a data set and test it",
    "validate": "metrics of a trained model on the validation split",
    "test": "metrics of a trained model on the test split",
    "predict": "predictions of a trained model for a table of new samples",
    "report": "a run as a page: curves, experts, routing, samples",
    "contributions": "which modality mattered: exact Shapley values over what is shown",
    "compare": "systems side by side: parameters, FLOPs, memory, time; trained, if asked",
    "sweep": "train a grid of configs with several seeds",
    "table": "results of a sweep as a table: Markdown, CSV, LaTeX",
    "plot": "results of a sweep as a figure",
    "data": "prepare known data sets, examine data before training, cache frozen features",
    "mask": "a file that says which fields are missing, for tests of robustness",
    "check": "build everything a config names, without loading weights or training",
    "list": "encoders, fusions, transfers and data sets that are installed",
    "info": "what one of them is and which arguments it takes",
    "new-plugin": "write a distribution with an encoder of your own",
    "contract": "check that an encoder keeps what the rest of fusionkit relies on",
}

_HELP = f"""\
usage: fusionkit COMMAND ...

Parameter-efficient fusion of pretrained encoders by conditional prompts.

commands:
{chr(10).join(f"  {name:<15}{what}" for name, what in COMMANDS.items())}

options:
  -h, --help  show this help; `fusionkit COMMAND --help` explains a command
  --version   show the version

examples:
  fusionkit list encoders
  fusionkit info conditional_prompt
  fusionkit check --config configs/quickstart.yaml
  fusionkit fit --config configs/quickstart.yaml --fusion.experts 4 --trainer.max_epochs 3
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 if all is well, 1 if a contract is broken, a compared system failed or training on the data
    would fail, 2 after an error, 130 after Ctrl-C.

    Args:
        argv: Arguments after the program's name; None for those of this process.
    """
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except FusionkitError as error:
        if os.environ.get("FUSIONKIT_TRACEBACK") == "1":
            raise
        print(f"fusionkit: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fusionkit: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `fusionkit list encoders | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(argv: list[str]) -> int:
    command, *rest = argv or ["--help"]
    if command in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    if command == "--version":
        from fusionkit import __version__

        print(f"fusionkit {__version__}")
        return 0
    if command not in COMMANDS:
        what = "option" if command.startswith("-") else "command"
        raise ConfigError(
            f"Unknown {what} {command!r}.{suggest(command, COMMANDS)} "
            f"Commands: {', '.join(COMMANDS)}."
        )
    module = importlib.import_module(f"fusionkit.cli.{command.replace('-', '_')}")
    try:
        return int(module.run(rest))
    except SystemExit as stop:  # argparse, after it has printed help
        return int(stop.code or 0)
