"""What encoders read of a sample, value by value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from fusionkit.data.base import Sample
from fusionkit.data.missing import is_empty, is_unreadable
from fusionkit.encoders.base import Preprocessor
from fusionkit.encoders.files import file_name, is_file
from fusionkit.errors import (
    ConfigError,
    DataError,
    FusionkitError,
    MissingExtraError,
    WeightsError,
)

_SHOWN = 200  # characters of a value in a message


class Stored(Protocol):
    """What was computed before of the values of one split: what a cache hands out.

    Attributes:
        padded: Whether samples differ in their number of tokens.
    """

    @property
    def padded(self) -> bool: ...

    def __getitem__(self, index: int) -> Any:
        """What stands for the value of sample ``index``; None if it could not be read."""
        ...

    def collate(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """Rows to inputs that stand for raw ones."""
        ...


@dataclass(frozen=True, slots=True)
class RoleInput:
    """What an encoder reads.

    Attributes:
        role: main, complement, complement_2, ...
        field: Name of the field.
        preprocessor: The encoder's own.
        may_lack: Whether a sample may lack the field.
        blank: Raw value that is collated in the place of a missing one; None leaves the row out.
        unreadable: Whether a value that cannot be read counts as missing.
        dropout: Probability that the field is dropped in training.
        stored: What stands for the values of a split, if they were seen before.
    """

    role: str
    field: str
    preprocessor: Preprocessor
    may_lack: bool = False
    blank: Any = None
    unreadable: bool = False
    dropout: float = 0.0
    stored: Stored | None = None


def is_missing(sample: Sample, role: RoleInput) -> bool:
    """Whether a sample lacks the field of a role."""
    value = sample.fields.get(role.field)
    return is_empty(value) if role.may_lack else value is None


def read_value(sample: Sample, role: RoleInput, function: Callable[[Any], Any]) -> Any:
    """What a function of the preprocessor makes of a sample's field.

    Raises:
        DataError: The value cannot be read; names the sample.
    """
    value = sample.fields[role.field]
    try:
        return function(value)
    except (ConfigError, MissingExtraError, WeightsError):
        raise  # not the row's fault
    except Exception as error:
        bare = isinstance(value, bytes | Mapping) and is_file(value)
        shown = file_name(value) if bare else repr(value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        reason = error if isinstance(error, FusionkitError) else f"{type(error).__name__}: {error}"
        remedy = "Repair what it holds or remove the row."
        if is_unreadable(error):
            remedy = (
                f"Repair what it holds, remove the row, or take it for missing: missing.allow: "
                f"[{role.role}], missing.unreadable: true."
            )
        raise DataError(
            f"{sample.origin}: field {role.field!r} ({shown}) cannot be read: {reason} {remedy}"
        ) from error
