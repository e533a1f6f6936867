"""How long samples are, in tokens, and how much of their batches is padding."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from fusionkit.data.base import Sample
from fusionkit.data.missing import is_unreadable
from fusionkit.data.values import RoleInput, is_missing, read_value
from fusionkit.encoders.base import KnowsLength
from fusionkit.errors import ConfigError, DataError

Lengths = NDArray[np.int64]  # (N, R), tokens of each sample in each role that has a length

_MANY = 20_000  # samples, from which on a progress bar is worth its line


def lengths_of(
    samples: Sequence[Sample], roles: Sequence[RoleInput], chosen: Sequence[int] | None = None
) -> Lengths | None:
    """Tokens of each sample in each role that has a length; 0 where its field is missing.

    Args:
        samples: One split of a data set; they are made one by one.
        roles: What each encoder reads.
        chosen: Numbers of the samples to measure; None for all.

    Returns:
        (N, R); None if no role has a length.

    Raises:
        DataError: A value cannot be read; names the sample.
    """
    measured = [
        role
        for role in roles
        if isinstance(role.preprocessor, KnowsLength)
        and (role.stored is None or role.stored.padded)
    ]
    if not measured:
        return None
    numbers: Sequence[int] = range(len(samples)) if chosen is None else chosen
    first_process = os.environ.get("LOCAL_RANK", "0") == "0"
    shown = len(numbers) >= _MANY and sys.stderr.isatty() and first_process
    console = Console(stderr=True)
    steps = track(numbers, "Measuring lengths", console=console, transient=True, disable=not shown)
    made = (samples[number] for number in steps)
    rows = [[_length(sample, role) for role in measured] for sample in made]
    return np.array(rows, dtype=np.int64).reshape(len(numbers), len(measured))


def _length(sample: Sample, role: RoleInput) -> int:
    assert isinstance(role.preprocessor, KnowsLength)
    measure = role.preprocessor.length
    if is_missing(sample, role):
        return 0 if role.blank is None else measure(role.blank)
    try:
        return int(read_value(sample, role, measure))
    except DataError as error:
        if not (role.unreadable and is_unreadable(error.__cause__)):
            raise
        return 0


def is_quick(samples: Sequence[Sample], roles: Sequence[RoleInput]) -> bool:
    """Whether lengths may be measured without being asked for: not where each costs a request."""
    values = samples[0].fields if len(samples) else {}
    read = [values.get(role.field) for role in roles]
    return not any(isinstance(value, str) and re.match(r"\w+://", value) for value in read)


def check_lengths(
    samples: Sequence[Sample],
    roles: Sequence[RoleInput],
    lengths: Lengths | None,
    most: int | None,
) -> None:
    """Check what buckets and budgets need.

    Args:
        samples: One split of a data set.
        roles: What each encoder reads.
        lengths: (N, R), or None if no role has a length.
        most: Tokens of a batch; None if there is no budget.

    Raises:
        ConfigError: No role has a length.
        DataError: A sample alone is more than a batch may be.
    """
    if lengths is None:
        key = "bucket_by_length" if most is None else "tokens_per_batch"
        read = ", ".join(
            f"{role.role} ({role.field}{'' if role.stored is None else ', from the cache'})"
            for role in roles
        )
        raise ConfigError(
            f"loader.{key}: nothing that the encoders read has a length: {read}. Leave it out. "
            f"Texts, sounds and sequences have one, unless a cache holds one vector of each; an "
            f"encoder of your own needs a preprocessor with a method length."
        )
    total = lengths.sum(axis=1)
    if most is not None and len(total) and total.max() > most:
        longest = int(total.argmax())
        raise DataError(
            f"{samples[longest].origin} has {total[longest]:,} tokens, more than "
            f"loader.tokens_per_batch: {most:,}. Raise it, or let the encoder cut what it reads "
            f"(max_length, max_seconds)."
        )


def padded_tokens(lengths: Lengths) -> int:
    """Positions of a batch, padding included: each role is padded to its longest.

    Args:
        lengths: (B, R), of the samples of the batch.
    """
    return len(lengths) * int(lengths.max(axis=0).sum()) if len(lengths) else 0


def padding_share(batches: Iterable[NDArray[np.int64]], lengths: Lengths) -> float:
    """Share of the positions of all batches that is padding, 0 to 1.

    Args:
        batches: Numbers of the samples of each, below N.
        lengths: (N, R).
    """
    real = padded = 0
    for batch in batches:
        real += int(lengths[batch].sum())
        padded += padded_tokens(lengths[batch])
    return 1 - real / padded if padded else 0.0
