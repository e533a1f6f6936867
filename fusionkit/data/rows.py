"""Rows of a table as samples that are made on access."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

import numpy as np

from fusionkit.data.base import Sample
from fusionkit.data.read import Source, label_name, missing
from fusionkit.data.splits import Indices
from fusionkit.errors import ConfigError, DataError

# Those of encoders.base, stated again: importing them from there would import torch for help.
Modality = Literal["image", "text", "audio", "video", "table", "vector", "other"]

_IN_FILES = ("image", "audio", "video")  # their cells are paths


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """Where a field comes from.

    Args:
        column: Its column, or a template over columns: "images/{id}.jpg".
        modality: What the field is; image, audio and video columns hold paths.
    """

    column: str
    modality: Modality


@dataclass(frozen=True, slots=True)
class Cell:
    """How a field is made: pieces of text, each followed by a column and its format."""

    field: str
    modality: str
    pieces: tuple[tuple[str, str | None, str], ...]

    @classmethod
    def parse(cls, field: str, spec: str | FieldSpec | Mapping[str, Any]) -> Cell:
        """What a config says, checked.

        Raises:
            ConfigError: The modality is not said, or the template is malformed.
        """
        if isinstance(spec, str):
            spec = FieldSpec(spec, field)  # type: ignore[arg-type]  # checked below
        elif isinstance(spec, Mapping):  # a config's own mapping, not yet made a FieldSpec
            spec = FieldSpec(spec.get("column", field), spec.get("modality", field))
        if spec.modality not in get_args(Modality):
            raise ConfigError(
                f"Field {field!r}: {spec.modality!r} is no modality. Write {field}: "
                f"{{column: {spec.column}, modality: ...}} of {', '.join(get_args(Modality))}."
            )
        try:
            parsed = list(string.Formatter().parse(spec.column))
            pieces = tuple((text, column, form or "") for text, column, form, _ in parsed)
            if not any(column for _, column, _ in pieces):
                if "{" in spec.column:
                    raise ValueError("no column between the braces")
                pieces = (("", spec.column, ""),)
        except ValueError as error:
            raise ConfigError(
                f"Field {field!r}: {spec.column!r} is no template: {error}. "
                f'Write a column, or columns in braces: "images/{{id}}.jpg".'
            ) from error
        return cls(field, spec.modality, pieces)

    @property
    def columns(self) -> list[str]:
        """Those it is made from."""
        return [column for _, column, _ in self.pieces if column]

    def check(self, source: Source, rows: Indices) -> None:
        """Raise DataError if a cell of these rows is empty, unless the field is text."""
        for column in self.columns if self.modality != "text" else ():
            empty = rows[missing(source.table.column(column))[rows]]
            if len(empty):
                raise DataError(
                    f"{source.origin(int(empty[0]))}: field {self.field!r} is empty in "
                    f"{len(empty)} rows, this one first (column {column!r}). "
                    f"Fill it in or remove the rows."
                )

    def value(self, source: Source, row: int) -> Any:
        """What a sample holds: a path, a text, or the cell as it is."""
        cells = [source.cell(column, row) if column else None for _, column, _ in self.pieces]
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
        if self.modality in _IN_FILES and isinstance(value, str):
            return str(source.root / value)
        return value


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
    targets: Sequence[Any] | None

    @classmethod
    def of(
        cls,
        sources: Sequence[Source],
        rows: Sequence[Indices],
        cells: Sequence[Cell],
        id: str | None,
        targets: Sequence[Any] | None,
    ) -> Rows:
        """Some rows of each source.

        Raises:
            DataError: A cell is empty that holds something other than text.
        """
        for source, chosen in zip(sources, rows, strict=True):
            for cell in cells:
                cell.check(source, chosen)
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
