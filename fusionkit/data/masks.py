"""Masks: files that say which samples are to lack which fields, so that a test can be repeated."""

from __future__ import annotations

import csv
import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from fusionkit.data.base import Sample, Split
from fusionkit.data.missing import Flags, ids_of, lacks, targets_of
from fusionkit.data.read import read_columns
from fusionkit.errors import ConfigError, DataError, suggest

SPLITS: tuple[Split, ...] = ("train", "val", "test")

_ROW = ("split", "row", "id")  # columns of a mask beside its fields
_REMEDY = "A mask belongs to the data it was made for; make another with `fusionkit mask`."


@dataclass(frozen=True, slots=True)
class Masked(Sequence[Sample]):
    """Samples without the fields that a mask takes from them.

    Attributes:
        samples: As the data set gives them.
        absent: (N,) bool by field, True = taken away.
        mask: Name of the mask's file.
    """

    samples: Sequence[Sample]
    absent: Mapping[str, Flags]
    mask: str

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        sample = self.samples[index]
        taken = {field: None for field, absent in self.absent.items() if absent[index]}
        if not taken:
            return sample
        origin = f"{sample.origin} (masked by {self.mask})"
        return replace(sample, fields={**sample.fields, **taken}, origin=origin)

    def lacks(self, field: str, empty: bool) -> Flags | None:
        own = lacks(self.samples, field, empty)
        taken = self.absent.get(field)
        if own is None or taken is None:
            return own
        flags: Flags = own | taken
        return flags

    def ids(self) -> list[str]:
        return ids_of(self.samples)

    @property
    def targets(self) -> Sequence[Any] | None:
        return targets_of(self.samples)


@dataclass(frozen=True, slots=True)
class Mask:
    """A protocol of what is missing, as a file: which fields of which samples are there.

    A CSV with the columns ``split``, ``row`` (counted from 1 within the split), ``id`` and one for
    each field: 1 = present, 0 = missing. It says something of every row of the splits it names.

    Attributes:
        name: Of the file.
        ids: Of every row, by split.
        present: (N,) bool by split and field.
    """

    name: str
    ids: Mapping[str, Sequence[str]]
    present: Mapping[str, Mapping[str, Flags]]

    def apply(self, split: str, samples: Sequence[Sample]) -> Sequence[Sample]:
        """The samples of a split as this mask leaves them; another split is left as it is.

        Raises:
            DataError: The mask was made for other samples.
        """
        if split not in self.ids:
            return samples
        theirs, ours = self.ids[split], ids_of(samples)
        if len(theirs) != len(ours):
            raise DataError(
                f"{self.name} has {len(theirs):,} rows of {split}, the data has {len(ours):,}. "
                f"{_REMEDY}"
            )
        for row, (there, here) in enumerate(zip(theirs, ours, strict=True), start=1):
            if there != here:
                raise DataError(
                    f"{self.name}: row {row} of {split} has the id {there!r}, in the data "
                    f"({samples[row - 1].origin}) it has {here!r}. {_REMEDY}"
                )
        return Masked(samples, {f: ~flags for f, flags in self.present[split].items()}, self.name)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            ConfigError: A field is called like one of the other columns.
        """
        fields = list(next(iter(self.present.values()), {}))
        if taken := set(fields) & set(_ROW):
            raise ConfigError(
                f"A mask has columns {', '.join(_ROW)} of its own; rename the field "
                f"{', '.join(sorted(taken))}."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".unfinished")
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*_ROW, *fields])
            for split, ids in self.ids.items():
                columns = [self.present[split][field].astype(int) for field in fields]
                for number, (id, *flags) in enumerate(zip(ids, *columns, strict=True), start=1):
                    writer.writerow([split, number, id, *flags])
        os.replace(unfinished, path)


def read_mask(file: str, fields: Collection[str]) -> Mask:
    """Read a mask.

    Args:
        file: CSV; see :class:`Mask`.
        fields: Those of the data set.

    Raises:
        DataError: The file is missing or malformed, or names a field that the data does not have.
    """
    path = Path(file).expanduser()
    if path.suffix.lower() != ".csv":
        raise DataError(f"missing.mask: {file!r} is no CSV; make one with `fusionkit mask`.")
    if not path.is_file():
        raise DataError(
            f"missing.mask: {path.absolute()} does not exist. Make it with `fusionkit mask`, or "
            f"set missing.mask: null."
        )
    table = read_columns(path)
    names = table.column_names
    if absent := [name for name in _ROW if name not in names]:
        raise DataError(f"{path.name} has no column {absent[0]!r}; a mask has {', '.join(_ROW)}.")
    masked = [name for name in names if name not in _ROW]
    for name in masked:
        if name not in fields:
            raise DataError(
                f"{path.name}: the data has no field {name!r}.{suggest(name, fields)} "
                f"Fields: {', '.join(fields)}."
            )
    columns = {name: table.column(name).to_pylist() for name in names}
    places: dict[str, list[int]] = {}
    for place, split in enumerate(columns["split"]):
        places.setdefault(split, []).append(place)
        if columns["row"][place] != str(len(places[split])) or split not in SPLITS:
            raise DataError(
                f"{path.name}, row {place + 1}: this is row {columns['row'][place]!r} of "
                f"{split!r}. The splits are {', '.join(SPLITS)}, each with its rows in order, "
                f"counted from 1."
            )
    return Mask(
        path.name,
        {split: [columns["id"][place] for place in rows] for split, rows in places.items()},
        {
            split: {name: _flags(path.name, name, columns[name], rows) for name in masked}
            for split, rows in places.items()
        },
    )


def _flags(file: str, column: str, cells: Sequence[str], places: Sequence[int]) -> Flags:
    for place in places:
        if cells[place] not in ("0", "1"):
            raise DataError(
                f"{file}, row {place + 1}: {column!r} is {cells[place]!r}. Write 1 for present, "
                f"0 for missing."
            )
    return np.array([cells[place] == "1" for place in places])


def draw_mask(
    present: Mapping[str, Flags], fields: Sequence[str], rate: float, seed: Sequence[int]
) -> dict[str, Flags]:
    """Take a share of some fields away at random, leaving every sample at least one field.

    The share is exact, to the sample, and counts what is missing already. Where there is another
    field to fall back on, the samples that lack a field at one rate are among those that lack it
    at a higher one.

    Args:
        present: (N,) bool by field, what there is of every field that is read.
        fields: Those to take from.
        rate: Share of the samples that are to lack each of them.
        seed: Of the draw.

    Returns:
        (N,) bool by field of ``fields``: what is left.

    Raises:
        ConfigError: At this rate some sample would be left with nothing.
    """
    if set(fields) >= set(present) and rate > 1 - 1 / len(present):
        raise ConfigError(
            f"Without {rate:.0%} of each of {', '.join(fields)}, some samples would have nothing "
            f"left; take at most {1 - 1 / len(present):.0%}, or from fewer fields."
        )
    left = {field: flags.copy() for field, flags in present.items()}
    for field in fields:
        # RandomState: numpy promises never to change its stream.
        rng = np.random.RandomState([*seed, zlib.crc32(field.encode())])
        order = rng.permutation(len(left[field]))
        there = order[left[field][order]]
        left[field][there[: max(0, round(rate * len(order)) - (len(order) - len(there)))]] = False
    _spare_the_last(left, present, fields, np.random.RandomState([*seed, len(fields)]))
    return {field: left[field] for field in fields}


def _spare_the_last(
    left: dict[str, Flags],
    present: Mapping[str, Flags],
    fields: Sequence[str],
    rng: np.random.RandomState,
) -> None:
    """Give samples that have nothing left a field back, and take it from one that has several."""
    number = np.sum(list(left.values()), axis=0)
    rich = rng.permutation(np.flatnonzero(number > 1)).tolist()
    for bare in np.flatnonzero(number == 0).tolist():
        lost = [fields[i] for i in rng.permutation(len(fields)) if present[fields[i]][bare]]
        pairs = ((p, f) for p in reversed(range(len(rich))) for f in lost if left[f][rich[p]])
        place, field = next(pairs, (None, lost[0] if lost else None))
        if field is None:  # the data itself has nothing here
            continue
        left[field][bare] = True
        if place is None:  # nobody can spare this field: its share stays below the rate
            continue
        left[field][rich[place]] = False
        number[rich[place]] -= 1
        if number[rich[place]] < 2:
            rich.pop(place)
