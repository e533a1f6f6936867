"""Rows of a table as samples that are made on access."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fusionkit.data.base import Sample
from fusionkit.data.cells import flag_cells, label_name, missing
from fusionkit.data.read import Source
from fusionkit.data.splits import Indices
from fusionkit.data.targets import Targets
from fusionkit.encoders.files import join
from fusionkit.errors import ConfigError, DataError

# Those of encoders.base, stated again: importing them from there would import torch for help.
Modality = Literal["image", "text", "audio", "video", "table", "vector", "other"]

_IN_FILES = ("image", "audio", "video")  # their cells are paths, URLs or the bytes of files


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """Where a field comes from.

    Args:
        column: Its column, or a template over columns: "images/{id}.jpg"; null for a column named
            like the field.
        modality: What the field is; image, audio and video columns hold paths, URLs or bytes; null
            for a field named after its modality.
        columns: Those of a field of modality table, instead of ``column``.
        present: Column that says whether a row has the field at all: 0, false, no or empty for no.
    """

    column: str | None = None
    modality: Modality | None = None
    columns: list[str] | None = None
    present: str | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """How a field is made: pieces of text, each followed by a column and its format."""

    field: str
    modality: str
    pieces: tuple[tuple[str, str | None, str], ...]
    present: str | None = None

    @classmethod
    def parse(cls, field: str, spec: str | FieldSpec | Mapping[str, Any]) -> Cell:
        """What a config says, checked.

        Raises:
            ConfigError: The modality is not said, the template is malformed, or columns are
                listed for something other than a table.
        """
        if isinstance(spec, str):
            spec = FieldSpec(spec)
        elif isinstance(spec, Mapping):  # a config's own mapping, not yet made a FieldSpec
            spec = FieldSpec(**spec)
        modality, column, several = spec.modality or field, spec.column or field, spec.columns
        if modality not in get_args(Modality):
            given = f"column: {column}" if several is None else f"columns: [{', '.join(several)}]"
            raise ConfigError(
                f"Field {field!r}: {modality!r} is no modality. Write {field}: "
                f"{{{given}, modality: ...}} of {', '.join(get_args(Modality))}."
            )
        if several is not None:
            _check_several(field, modality, spec.column, several)
            return cls(field, modality, tuple(("", name, "") for name in several), spec.present)
        if modality == "table":
            return cls(field, modality, (("", column, ""),), spec.present)
        try:
            parsed = list(string.Formatter().parse(column))
            pieces = tuple((text, name, form or "") for text, name, form, _ in parsed)
            if not any(name for _, name, _ in pieces):
                if "{" in column:
                    raise ValueError("no column between the braces")
                pieces = (("", column, ""),)
        except ValueError as error:
            raise ConfigError(
                f"Field {field!r}: {column!r} is no template: {error}. "
                f'Write a column, or columns in braces: "images/{{id}}.jpg".'
            ) from error
        return cls(field, modality, pieces, spec.present)

    @property
    def columns(self) -> list[str]:
        """Those it is made from."""
        return [column for _, column, _ in self.pieces if column]

    @property
    def needed(self) -> list[str]:
        """Those it is made from, and the one that says whether it is there."""
        return [*self.columns, *([self.present] if self.present else [])]

    def lacks(self, source: Source, empty: bool) -> NDArray[np.bool_]:
        """Rows for which :meth:`value` gives None, or with ``empty`` a value that says nothing.

        Returns:
            (rows of the source,) bool, True = missing.
        """
        columns = [source.table.column(name) for name in self.columns]
        if self.modality not in ("text", "table"):
            files = self.modality in _IN_FILES
            gone = np.any([missing(column, files) for column in columns], axis=0)
        elif not empty or any(text or form for text, _, form in self.pieces):
            gone = np.zeros(len(source), dtype=bool)
        elif self.modality == "text":
            gone = np.all([missing(column) for column in columns], axis=0)
        else:
            gone = np.all([missing(_stripped(column)) for column in columns], axis=0)
        if self.present:
            gone = gone | flag_cells(source.table.column(self.present), _says_no)
        return gone

    def value(self, source: Source, row: int) -> Any:
        """What a sample holds: a path, a text, a mapping of cells, or the cell as it is.

        None where the row lacks the field; an empty text and a table of empty cells are values.
        """
        if self.present and _says_no(source.cell(self.present, row)):
            return None
        if self.modality == "table":
            return {column: _or_none(source.cell(column, row)) for column in self.columns}
        cells = [source.cell(column, row) if column else None for _, column, _ in self.pieces]
        if self.modality != "text" and any(
            column and cell in (None, "", b"")
            for (_, column, _), cell in zip(self.pieces, cells, strict=True)
        ):
            return None
        value = cells[0]
        if len(self.pieces) > 1 or self.pieces[0][0] or self.pieces[0][2]:
            try:
                value = "".join(
                    text + format("" if cell is None else cell, form)
                    for (text, _, form), cell in zip(self.pieces, cells, strict=True)
                )
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{source.origin(row)}: field {self.field!r} cannot be made of {cells}: "
                    f"{error}. Correct the format in its column template."
                ) from error
        if self.modality == "text":
            return "" if value is None else str(value)
        if self.modality in _IN_FILES:
            return _located(value, source.root)
        if self.modality == "vector" and isinstance(value, str):
            if value.endswith(".npy"):
                return join(source.root, value)
            try:
                return _numbers(value)
            except ValueError as error:
                raise DataError(
                    f"{source.origin(row)}: field {self.field!r} is {_short(value)}, no list of "
                    f"numbers: {error}. Write 0.5 1 2, [0.5, 1, 2] or the path of a .npy file."
                ) from error
        return value


def _check_several(field: str, modality: str, column: str | None, several: list[str]) -> None:
    """Raise ConfigError unless these columns can make a table."""
    listed = f"Field {field!r}: columns is [{', '.join(several)}], "
    if column is not None:
        raise ConfigError(f"{listed}but column is {column!r} as well. Leave out one of them.")
    if modality != "table":
        raise ConfigError(
            f"{listed}but the modality is {modality}; only a table has several columns. "
            f"Set modality: table, or give one column."
        )
    if not several or len(set(several)) < len(several):
        raise ConfigError(f"{listed}which names none, or one twice. Name each column once.")


def _located(value: Any, root: str) -> Any:
    """What stands for a file, its path made absolute or a URL; None if it holds nothing."""
    if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
        if value["bytes"]:
            return value
        value = value["path"] or None
    return join(root, value) if isinstance(value, str) else value


def _stripped(column: Any) -> Any:
    """A column without the blanks around its texts."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return pc.utf8_trim_whitespace(column)
    return column


def _says_no(cell: Any) -> bool:
    return (label_name(cell) or "").lower() in ("", "0", "false", "no")


def _or_none(cell: Any) -> Any:
    return None if isinstance(cell, str) and not cell.strip() else cell


def _numbers(text: str) -> Any:
    """``0.5 1 2`` (commas will do) or a JSON list, of lists for a sequence of vectors."""
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [float(word) for word in text.replace(",", " ").split()]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


@dataclass(frozen=True, slots=True)
class Rows(Sequence[Sample]):
    """Samples made on access, cheap to pickle.

    Attributes:
        sources: The tables.
        places: (N, 2), number of the source and row in it.
        cells: How each field is made.
        id: Column that names the row, None for its number.
        targets: (N), None where they are not known.
    """

    sources: tuple[Source, ...]
    places: Indices
    cells: tuple[Cell, ...]
    id: str | None
    targets: Targets | None

    @classmethod
    def of(
        cls,
        sources: Sequence[Source],
        rows: Sequence[Indices],
        cells: Sequence[Cell],
        id: str | None,
        targets: Targets | None,
    ) -> Rows:
        """Some rows of each source."""
        places = [
            np.stack([np.full_like(chosen, number), chosen], axis=1)
            for number, chosen in enumerate(rows)
        ]
        return cls(tuple(sources), np.concatenate(places), tuple(cells), id, targets)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number, row = (int(place) for place in self.places[index])
        source = self.sources[number]
        name = None if self.id is None else label_name(source.cell(self.id, row))
        return Sample(
            id=name or str(row + 1),
            fields={cell.field: cell.value(source, row) for cell in self.cells},
            target=None if self.targets is None else self.targets[index],
            origin=source.origin(row),
        )

    def lacks(self, field: str, empty: bool) -> NDArray[np.bool_]:
        """As :func:`fusionkit.data.missing.lacks`."""
        cell = next(cell for cell in self.cells if cell.field == field)
        flags = np.empty(len(self), dtype=bool)
        for number, source in enumerate(self.sources):
            here = self.places[:, 0] == number
            flags[here] = cell.lacks(source, empty)[self.places[here, 1]]
        return flags

    def ids(self) -> list[str]:
        """The ``id`` of every sample."""
        columns = [
            [None] * len(source)
            if self.id is None
            else [label_name(value) for value in source.table.column(self.id).to_pylist()]
            for source in self.sources
        ]
        return [columns[number][row] or str(row + 1) for number, row in self.places.tolist()]
