"""Every error that fusionkit raises on purpose.

    FusionkitError
    ├── ConfigError        a config or the command line asks for something that cannot be built
    │   └── UnknownNameError   no encoder, fusion, transfer or data set goes by that name
    ├── PluginError        an installed plug-in is broken, or two claim one name
    ├── MissingExtraError  an optional library is not installed
    ├── EncoderError       an encoder was given inputs or prompts that do not fit it
    ├── WeightsError       pretrained weights were not found or do not fit
    ├── DataError          a table, a row or a file cannot be used
    │   └── RowsError          so it is with several rows; `errors` says it of each
    └── CheckpointError    a checkpoint is missing, damaged or belongs to something else

Each message says what happened, what was given, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FusionkitError(Exception):
    """Base of all errors below; the command line prints it without a traceback."""


class ConfigError(FusionkitError):
    """A config or the command line asks for something that cannot be built."""


class UnknownNameError(ConfigError):
    """No encoder, fusion, transfer or data set goes by that name."""


class PluginError(FusionkitError):
    """An installed plug-in is broken, or two distributions claim one name."""


class MissingExtraError(FusionkitError):
    """An optional library is not installed."""


class EncoderError(FusionkitError):
    """An encoder was given inputs or prompts that do not fit it."""


class WeightsError(FusionkitError):
    """Pretrained weights were not found or do not fit the model."""


class DataError(FusionkitError):
    """A table, a row or a file cannot be used."""


class RowsError(DataError):
    """Rows of a table cannot be used.

    Args:
        errors: A message for each of them; that of the first is the error's own.
    """

    def __init__(self, errors: Sequence[str]) -> None:
        more = len(errors) - 1
        rows = "another row" if more == 1 else f"{more:,} other rows"
        super().__init__(
            errors[0]
            + (f" The same goes for {rows}; `fusionkit data doctor` lists them." if more else "")
        )
        self.errors = tuple(errors)

    def __reduce__(self) -> tuple[type[RowsError], tuple[tuple[str, ...]]]:
        return RowsError, (self.errors,)


class CheckpointError(FusionkitError):
    """A checkpoint is missing, damaged or belongs to another model."""


def suggest(given: str, known: Iterable[str]) -> str:
    """``" Did you mean 'a' or 'b'?"`` for the close matches of ``given``, or an empty string."""
    close = difflib.get_close_matches(given, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
