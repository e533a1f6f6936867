"""Fields that samples lack."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fusionkit.data.base import Sample
from fusionkit.errors import ConfigError, DataError

Flags = NDArray[np.bool_]

_HOPELESS = 100  # values that could not be read, and none that could: the folder has moved, say
_SHOWN = 3  # origins in a message


@runtime_checkable
class KnowsItself(Protocol):
    """Samples that need not be made one by one to answer these questions."""

    def lacks(self, field: str, empty: bool) -> Flags | None:
        """As the function :func:`lacks`."""
        ...

    def ids(self) -> list[str]:
        """(N), the ``id`` of every sample."""
        ...


@runtime_checkable
class KnowsTargets(Protocol):
    """Samples that need not be made one by one to know their targets."""

    @property
    def targets(self) -> Sequence[Any] | None:
        """(N,), or None where they are not known."""
        ...


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: None, NaN, an empty text, or a table of empty cells."""
    if isinstance(value, Mapping):
        return all(cell is None or _is_nan(cell) for cell in value.values())
    return value is None or _is_nan(value) or (isinstance(value, str) and not value)


def _is_nan(value: Any) -> bool:
    """What pandas has in an empty cell."""
    return isinstance(value, float) and math.isnan(value)


def lacks(samples: Sequence[Sample], field: str, empty: bool) -> Flags | None:
    """Which samples lack a field.

    Args:
        samples: One split of a data set.
        field: Name of the field.
        empty: Whether an empty text counts as well: it does where a role may lack its field.

    Returns:
        (N,) bool, True = missing; None where one would have to read the whole data set to know.
    """
    if isinstance(samples, KnowsItself):
        return samples.lacks(field, empty)
    if not isinstance(samples, list | tuple):
        return None
    values = (sample.fields.get(field) for sample in samples)
    found = [is_empty(value) if empty else value is None for value in values]
    return np.array(found, dtype=bool)


def count_missing(
    samples: Sequence[Sample], fields: Mapping[str, str], allow: Collection[str]
) -> dict[str, int]:
    """How many samples lack the field of each role that may lack it, where that is known.

    Args:
        samples: One split of a data set.
        fields: Field of each role in use.
        allow: Roles whose field a sample may lack.

    Raises:
        DataError: A sample lacks a field that it may not lack.
    """
    counts = {}
    for role, field in fields.items():
        missing = lacks(samples, field, empty=role in allow)
        if missing is None:
            continue
        if role in allow:
            counts[role] = int(missing.sum())
        elif missing.any():
            first, number = samples[int(missing.argmax())], int(missing.sum())
            raise lacking(first, role, field, allow, number)
    return counts


def lacking(
    sample: Sample, role: str, field: str, allow: Collection[str], count: int = 1
) -> DataError:
    """The error of a field that is missing and may not be, in ``count`` samples."""
    more = f" in {count:,} samples, this one first" if count > 1 else ""
    roles = ", ".join([*allow, role])
    return DataError(
        f"{sample.origin}: field {field!r} is missing{more}, and {role} reads it. Fill it in, "
        f"remove the rows, or let a learned stand-in take its place: missing.allow: [{roles}]."
    )


def ids_of(samples: Sequence[Sample]) -> list[str]:
    """The ``id`` of every sample."""
    if isinstance(samples, KnowsItself):
        return samples.ids()
    return [sample.id for sample in samples]


def targets_of(samples: Sequence[Sample]) -> Sequence[Any]:
    """(N,), the target of every sample.

    Raises:
        DataError: They are not known.
    """
    if isinstance(samples, KnowsTargets):
        targets = samples.targets
    else:
        targets = [sample.target for sample in samples]
    if targets is None or any(target is None for target in targets):
        raise DataError("The targets of these samples are not known; training needs them.")
    return targets


def is_unreadable(error: BaseException | None) -> bool:
    """Whether a value is to blame; a KeyError, say, is a fault of the preprocessor."""
    return isinstance(error, DataError | OSError)


def blank_of(modality: str, role: str = "main") -> Any:
    """A raw value that says nothing, for an encoder that has to have one.

    Args:
        modality: What the encoder reads.
        role: Its role, for the message.

    Raises:
        ConfigError: This modality has none.
    """
    blanks = {
        "image": Image.new("RGB", (32, 32)),
        "text": "",
        "audio": (np.zeros(16_000, dtype=np.float32), 16_000),  # a second of silence
        "video": [Image.new("RGB", (32, 32))],
    }
    if modality not in blanks:
        if role == "main":
            who, instead = "a main encoder", "make it the complement. As main, these can"
        else:
            who = f"a {role} whose layers run for every sample, as they do under this fusion,"
            instead = "take a fusion that reads its feature, such as late_concat. These can"
        raise ConfigError(
            f"missing.allow: {who} of modality {modality} cannot do without its field; "
            f"{instead}: {', '.join(blanks)}."
        )
    return blanks[modality]


class Unreadable:
    """What of one split could not be read, and was taken for missing."""

    def __init__(self) -> None:
        self.origins: dict[str, dict[str, None]] = {}  # by field; sets that keep their order
        self._read: set[str] = set()

    def add(self, found: Iterable[tuple[str, str]], read: Iterable[str]) -> None:
        """Take note of a batch.

        Args:
            found: Field and origin of what could not be read.
            read: Fields of which something could be read.
        """
        for field, origin in found:
            self.origins.setdefault(field, {})[origin] = None
        self._read.update(read)

    def merge(self, origins: Mapping[str, Iterable[str]]) -> None:
        """Take in what another process noted."""
        self.add([(field, origin) for field in origins for origin in origins[field]], ())

    def check(self, least: int = _HOPELESS) -> None:
        """Stop what would go on without a single value.

        Raises:
            DataError: Nothing of a field could be read, in a number of samples.
        """
        for field, origins in self.origins.items():
            if field not in self._read and len(origins) >= least:
                raise DataError(
                    f"Not one of the first {len(origins)} values of field {field!r} can be read "
                    f"({_some(origins)}). Correct where the files are; missing.unreadable is for "
                    f"the odd broken one."
                )

    def describe(self, split: str) -> list[str]:
        """A line for each field."""
        return [
            f"{split}: unreadable and taken for missing, field {field!r}: {len(origins):,} "
            f"({_some(origins)})"
            for field, origins in self.origins.items()
        ]


def _some(origins: Collection[str]) -> str:
    more = "; ..." if len(origins) > _SHOWN else ""
    return "; ".join(list(origins)[:_SHOWN]) + more
