"""Tables and vectors: empty and constant columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fusionkit.data.missing import is_empty
from fusionkit.doctor.digests import digest_value
from fusionkit.doctor.findings import Finding, percent, some
from fusionkit.doctor.study import Reader, Study
from fusionkit.doctor.values import Value
from fusionkit.encoders.files import is_file, open_file

_MANY = 0.5  # share of empty cells from which on a column is worth a word


class Cells(Value):
    """A mapping of column to cell."""

    def shown(self) -> str:
        return ""

    def facts(self, readers: Sequence[Reader]) -> dict[str, bytes]:
        """Hash of each cell by column, empty for an empty one."""
        return {
            str(column): b"" if _blank(cell) else digest_value(cell)[:8]
            for column, cell in self.raw.items()
        }


class VectorFacts(NamedTuple):
    """Rows and columns, and whether all of it is 0."""

    rows: int
    width: int
    blank: bool


class Numbers(Value):
    """A vector, or a sequence of them."""

    def facts(self, readers: Sequence[Reader]) -> VectorFacts:
        array: Any = self.raw
        if is_file(self.raw):
            with open_file(self.raw) as file:
                array = np.load(file, allow_pickle=False)
        array = np.atleast_2d(np.asarray(array))
        return VectorFacts(len(array), array.shape[-1], not array.any())


def _blank(cell: Any) -> bool:
    return is_empty(cell) or (isinstance(cell, str) and not cell.strip())


def describe_table(facts: Sequence[dict[str, bytes]]) -> str:
    """Columns in a line."""
    columns = list(dict.fromkeys(column for row in facts for column in row))
    return f"columns {some(columns)}" if columns else ""


def describe_vectors(facts: Sequence[VectorFacts]) -> str:
    """Shapes in a line."""
    if not facts:
        return ""
    widths = sorted({f.width for f in facts})
    rows = [f.rows for f in facts]
    length = "" if max(rows) == 1 else f", sequences of {min(rows):,} to {max(rows):,}"
    return f"{some(map(str, widths))} numbers{length}"


def findings(study: Study, name: str) -> Iterator[Finding]:
    """What is the matter with the columns of a field."""
    facts: list[dict[str, bytes]] = study.fields[name].measured()
    for column in dict.fromkeys(column for row in facts for column in row):
        cells = [row.get(column, b"") for row in facts]
        filled = [cell for cell in cells if cell]
        if not filled or (len(set(filled)) == 1 and len(filled) == len(cells) > 1):
            what = "is empty in every row" if not filled else "holds the same in every row"
            yield Finding(
                "warning",
                "constant",
                f"Field {name!r}: column {column!r} {what}",
                "It says nothing; leave it out.",
                name,
            )
        elif len(filled) <= (1 - _MANY) * len(cells):
            yield Finding(
                "note",
                "missing",
                f"Field {name!r}: column {column!r} is empty in "
                f"{percent(len(cells) - len(filled), len(cells))} of the rows",
                "",
                name,
            )
