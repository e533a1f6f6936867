"""Draw the mask of a robustness test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusionkit.config.schema import Experiment
from fusionkit.data.base import Sample, Samples, Stream
from fusionkit.data.masks import SPLITS, Mask, draw_mask
from fusionkit.data.missing import Flags, ids_of, is_empty, lacks
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.training.assemble import dry_build


@dataclass(frozen=True, slots=True)
class Achieved:
    """How many of a split's samples lack a field under a mask."""

    split: str
    field: str
    missing: int
    total: int


def make_mask(
    experiment: Experiment,
    output: str,
    rate: float,
    fields: Sequence[str] = (),
    splits: Sequence[str] = (),
    seed: int = 0,
) -> list[Achieved]:
    """Write a mask for the data of an experiment.

    Args:
        experiment: What reads the data; a mask that it names itself is left aside.
        output: CSV to write; see :class:`~fusionkit.data.masks.Mask`.
        rate: Share of the samples that are to lack each field, what they lack already included.
        fields: Which fields; all that the roles of ``missing.allow`` read if none is named, or
            all that are read.
        splits: Which splits; all if none is named.
        seed: Of the draw.

    Raises:
        ConfigError: A field or split that there is not, or a rate that leaves samples nothing.
        DataError: The data cannot be read, or a split is empty.
    """
    if not 0 <= rate <= 1:
        raise ConfigError(f"--rate is a share from 0 to 1, given {rate:g}.")
    if Path(output).suffix.lower() != ".csv":
        raise ConfigError(f"--output is a CSV, given {output!r}.")
    model, dataset, by_role = dry_build(experiment)
    read = list(dict.fromkeys(by_role[role] for role in model.fusion.encoders))
    allowed = [by_role[role] for role in model.fusion.stand_ins]
    chosen = list(dict.fromkeys(fields or allowed or read))
    _check_known("fields", chosen, read)
    _check_known("splits", splits, SPLITS)
    ids: dict[str, list[str]] = {}
    present: dict[str, dict[str, Flags]] = {}
    for number, split in enumerate(SPLITS):
        samples: Samples = dataset.split(split) if split in (splits or SPLITS) else []
        if isinstance(samples, Stream):
            raise ConfigError(
                f"A mask numbers the samples of a split, and {experiment.data.name} reads them as "
                f"a stream, which has no numbers. Write shards that lack the fields."
            )
        if not samples and split in splits:
            raise DataError(f"The {split} split is empty; leave it out of --splits.")
        if samples:
            there = {name: _there(samples, name, name in {*allowed, *chosen}) for name in read}
            ids[split] = ids_of(samples)
            present[split] = draw_mask(there, chosen, rate, (seed, number))
    path = Path(output).expanduser()
    Mask(path.name, ids, present).write(path)
    return [
        Achieved(split, field, int((~flags).sum()), len(flags))
        for split, columns in present.items()
        for field, flags in columns.items()
    ]


def _there(samples: Sequence[Sample], field: str, empty: bool) -> Flags:
    found = lacks(samples, field, empty)
    if found is None:  # a data set that has to be read to know
        values = (sample.fields.get(field) for sample in samples)
        found = np.array([is_empty(value) if empty else value is None for value in values])
    return ~found


def _check_known(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(
                f"--{option}: {name!r} is none of them.{suggest(name, known)} "
                f"These {option} are read: {', '.join(known)}."
            )
