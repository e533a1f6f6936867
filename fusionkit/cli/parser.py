"""What the subcommands' parsers share: clean errors, `--config` and dotted overrides."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from fusionkit.config.schema import ConfigKeys
from fusionkit.errors import ConfigError, suggest

Overrides = list[tuple[str, str]]

_WIDTH = 100
_KEYS = tuple(ConfigKeys.__dataclass_fields__)


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises ConfigError and can read overrides.

    Args:
        command: Name of the subcommand.
        description: One paragraph.
        usage: What follows the command.
        epilog: Shown below the options, as it is.
    """

    def __init__(self, command: str, description: str, usage: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"fusionkit {command}",
            usage=f"fusionkit {command} {usage}",
            description=textwrap.fill(description, _WIDTH),
            epilog=epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. See `{self.prog} --help`.")

    def add_config(self, required: bool) -> None:
        """Add ``--config``."""
        self.add_argument(
            "--config",
            action="append",
            default=[],
            required=required,
            metavar="FILE",
            help="YAML file; given several times, later files are merged over earlier ones",
        )

    def add_checkpoint(self) -> None:
        """Add ``--ckpt_path`` for commands that need a trained model."""
        self.add_argument(
            "--ckpt_path", required=True, metavar="RUN|FILE", help="run folder, or a checkpoint"
        )

    def parse_only(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse options of a command that takes no overrides."""
        options, rest = self.parse_known_args(argv)
        if rest:
            raise ConfigError(self._unknown(rest[0], ()))
        return options

    def parse_with_overrides(
        self, argv: Sequence[str], keys: Sequence[str] | None = _KEYS
    ) -> tuple[argparse.Namespace, Overrides]:
        """Parse options; what is left over must be ``--key value`` or ``--key=value``.

        Args:
            argv: What follows the command.
            keys: Those that are known, by the part before their first dot; None for any.
        """
        options, rest = self.parse_known_args(argv)
        overrides: Overrides = []
        words = iter(rest)
        for word in words:
            key, equals, value = word.removeprefix("--").partition("=")
            known = keys is None or key.partition(".")[0] in keys
            if not (known and word.startswith("--")):
                raise ConfigError(self._unknown(word, keys or ()))
            if not equals:
                value = next(words, "--")
                if value.startswith("--"):
                    raise ConfigError(f"--{key} needs a value, as in --{key} VALUE; null for none.")
            overrides.append((key, value))
        return options, overrides

    def _unknown(self, word: str, keys: Sequence[str]) -> str:
        if not word.startswith("-"):
            hint = f" Did you mean '--config {word}'?" if word.endswith((".yaml", ".yml")) else ""
            return f"Unexpected argument {word!r}.{hint} See `{self.prog} --help`."
        options = [o for o in self._option_string_actions if o.startswith("--")]
        given = word.partition("=")[0]
        known = [*options, *(f"--{key}" for key in keys)]
        hint = suggest(given.partition(".")[0], known)
        return f"Unknown option {given!r}.{hint} See `{self.prog} --help`."


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=_WIDTH)
