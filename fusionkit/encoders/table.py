"""Columns of numbers and categories."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fusionkit.encoders.base import ComplementEncoder, Features, Inputs, Modality
from fusionkit.encoders.ft_transformer import HEADS, FTTransformer
from fusionkit.errors import ConfigError, DataError, suggest

_WHOLE = re.compile(r"-?\d+\.0")


class TableEncoder(ComplementEncoder):
    """An FT-Transformer over the columns of a table (arXiv 2106.11959); its tokens are columns.

    Numbers are standardised by the training split. Categories need no vocabulary: they are
    hashed, so one that training has not seen is no error. An empty cell is learned like a value.
    There are no pretrained weights: the transfer ``frozen`` would leave it random, take
    ``fine_tune``.
    """

    modality: ClassVar[Modality] = "table"

    backbone: FTTransformer

    def __init__(
        self,
        numeric: list[str] | None = None,
        categorical: list[str] | None = None,
        dim: int = 192,  # the default FT-Transformer's, as are three layers
        layers: int = 3,
        buckets: int = 1024,  # of 200 categories, two share both rows in one table of 26
    ) -> None:
        """Build the net, with random weights.

        Args:
            numeric: Columns that hold numbers.
            categorical: Columns that hold categories.
            dim: C, width of a column's token, a multiple of 8.
            layers: Number of Transformer blocks.
            buckets: Rows that categories are hashed to.

        Raises:
            ConfigError: No columns, one of them twice in a list, or sizes that no net has.
        """
        super().__init__()
        self.numeric, self.categorical = list(numeric or ()), list(categorical or ())
        for name, columns in (("numeric", self.numeric), ("categorical", self.categorical)):
            if len(set(columns)) < len(columns):
                raise ConfigError(f"table: `{name}` is {columns}; name each column once.")
        if not self.numeric and not self.categorical:
            raise ConfigError(
                "table has no columns. Name those to read: {name: table, numeric: [age], "
                "categorical: [colour, size]}."
            )
        if dim < 1 or dim % HEADS or layers < 1 or buckets < 1:
            raise ConfigError(
                f"table: dim is a multiple of {HEADS}, layers and buckets are at least 1; given "
                f"dim {dim}, layers {layers}, buckets {buckets}."
            )
        self.buckets = buckets
        self.backbone = FTTransformer(
            len(self.numeric), len(self.categorical), buckets, dim, layers
        )

    @property
    def out_dim(self) -> int:
        return self.backbone.norm.normalized_shape[0]

    def encode(self, inputs: Inputs) -> Features:
        tokens = self.backbone(inputs["numbers"], inputs["empty"], inputs["categories"])
        return Features(tokens[:, 0], tokens[:, 1:])

    def preprocessor(self, train: bool) -> TablePreprocessor:
        return TablePreprocessor(self.numeric, self.categorical, self.buckets)

    def fit_statistics(self, values: Iterable[Any]) -> None:
        read = self.preprocessor(train=False)
        self.backbone.scale.fit(np.array([read.numbers(value)]) for value in values)


class TablePreprocessor:
    """A mapping of column to cell to numbers and rows of the table of categories.

    Args:
        numeric: Columns that hold numbers, as such or written out.
        categorical: Columns that hold categories.
        buckets: Rows that categories are hashed to; those of empty cells follow.
    """

    def __init__(self, numeric: Sequence[str], categorical: Sequence[str], buckets: int) -> None:
        self.numeric, self.categorical, self.buckets = numeric, categorical, buckets

    def __call__(self, raw: Mapping[str, Any]) -> dict[str, Tensor]:
        """One value to a row.

        Raises:
            DataError: It is no mapping, lacks a column, or a numeric column holds no number.
        """
        numbers = torch.tensor(self.numbers(raw), dtype=torch.float32)
        rows = [
            self._rows(column, _cell(raw, column), place)
            for place, column in enumerate(self.categorical)
        ]
        return {
            "numbers": numbers.nan_to_num(),
            "empty": numbers.isnan(),
            "categories": torch.tensor(rows, dtype=torch.long).view(-1, 2),
        }

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Rows to numbers (B, n), empty (B, n) bool, True = empty, and categories (B, m, 2)."""
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def numbers(self, raw: Mapping[str, Any]) -> list[float]:
        """The numeric columns, NaN where empty.

        Raises:
            DataError: As above.
        """
        return [_number(column, _cell(raw, column)) for column in self.numeric]

    def _rows(self, column: str, cell: Any, place: int) -> list[int]:
        if cell is None:
            return [self.buckets + place] * 2
        # Python's own hash of a text changes from process to process.
        digest = hashlib.blake2b(f"{column}={_spell(cell)}".encode(), digest_size=16).digest()
        halves = (digest[:8], digest[8:])
        return [int.from_bytes(half, "little") % self.buckets for half in halves]


def _cell(raw: Mapping[str, Any], column: str) -> Any:
    """One cell, None if it is empty: None, NaN or blank."""
    if not isinstance(raw, Mapping):
        raise DataError(
            f"A table is a mapping of column to cell, given {type(raw).__name__}. Make it a field "
            f"of modality table."
        )
    if column not in raw:
        raise ConfigError(
            f"There is no column {column!r}, which the encoder table reads."
            f"{suggest(column, raw)} Columns of this field: {', '.join(raw)}."
        )
    cell = raw[column]
    blank = isinstance(cell, str) and not cell.strip()
    return None if blank or (isinstance(cell, float) and math.isnan(cell)) else cell


def _number(column: str, cell: Any) -> float:
    if cell is None:
        return math.nan
    try:
        number = float(cell)
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number):
        raise DataError(
            f"Column {column!r} holds {cell!r}, which is no finite number. Leave the cell empty, "
            f"or list the column under `categorical`."
        )
    return number


def _spell(cell: Any) -> str:
    """A category as text, the same whether a CSV or a Parquet file holds it."""
    if isinstance(cell, bool | np.bool_):
        return "true" if cell else "false"
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    text = str(cell).strip()
    # What pandas writes into a CSV for truth values, and for whole numbers with gaps among them.
    if text.lower() in ("true", "false"):
        return text.lower()
    return text.removesuffix(".0") if _WHOLE.fullmatch(text) else text
