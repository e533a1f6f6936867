"""``fusionkit data``: its own subcommands, one module each."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from fusionkit.errors import ConfigError, suggest

COMMANDS = {
    "prepare": "index a known data set as it is distributed, and say what is missing",
    "doctor": "examine the data of a config before training",
    "cache": "compute what frozen encoders see of the data, once",
}

_HELP = f"""\
usage: fusionkit data COMMAND ...

What is done with data before training.

commands:
{chr(10).join(f"  {name:<12}{what}" for name, what in COMMANDS.items())}

options:
  -h, --help  show this help; `fusionkit data COMMAND --help` explains a command

examples:
  fusionkit data prepare food101 --root data/food101
  fusionkit data doctor --config configs/quickstart.yaml
  fusionkit data cache --config configs/quickstart.yaml
"""


def run(argv: Sequence[str]) -> int:
    """Run one of them and return its exit code."""
    command, *rest = argv or ["--help"]
    if command in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    if command not in COMMANDS:
        raise ConfigError(
            f"Unknown command 'data {command}'.{suggest(command, COMMANDS)} "
            f"Commands: {', '.join(COMMANDS)}. See `fusionkit data --help`."
        )
    module = importlib.import_module(f"fusionkit.cli.data_{command}")
    return int(module.run(rest))
