"""Samples from a table file: CSV, TSV, JSONL or Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from fusionkit.data.base import Dataset, Sample, Split, Task
from fusionkit.data.labels import Label, Labels
from fusionkit.data.read import Source, check_suffix, label_name, read_columns
from fusionkit.data.rows import Cell, FieldSpec, Rows
from fusionkit.data.splits import Indices, strata, stratified_split
from fusionkit.errors import ConfigError, DataError

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
_HELD_OUT = 0.1  # of the training rows, where there is no validation split
_NONE: Indices = np.empty(0, dtype=np.int64)


class Table(Dataset):
    """Samples from a CSV, TSV, JSONL or Parquet file, or from one file per split.

    Rows are counted from 1, header and blank lines left out: the number that messages and
    ``Sample.origin`` give. An empty text is a text, and a field of modality table may have empty
    cells; an empty cell of any other modality is a missing field. ``missing.allow`` says which
    encoders can do without theirs; for those, an empty text and a table of empty cells is
    missing as well.

    Where the file is neither one per split nor has a ``split`` column, rows are divided by
    ``split_shares``: seeded, and stratified by class, by rarest class (multi-label) or by
    quantile (regression). The same rows in the same order are divided the same on any machine.
    Where train and test are given without val, a tenth of train, drawn in the same way, is val.

    Args:
        files: One file, or one per split: {train: ..., val: ..., test: ...}.
        fields: Column by field. image: photo says that column photo holds images. A field that
            is not named after its modality takes {column: ..., modality: ...}. A column may be a
            template over columns: "images/{id}.jpg". A table takes several: {columns: [age, sex]}.
            ``present`` names a column that says whether a row has the field: 0, false, no, empty.
        label: Column of the label; several columns of 0 and 1 for multi_label; null for a table
            to predict on.
        task: single_label, multi_label (a list column, or text with a separator) or regression.
        classes: Class names in order; null for those of the training split, sorted.
        other_labels: What to do with labels that are not in classes: error, or drop the row (in
            multi_label only the label).
        separator: Between the labels of one cell.
        id: Column that names the row in messages and predictions; null for its number.
        split: Column that says train, val (or valid, validation, dev) or test.
        split_shares: Shares of train, val and test where nothing states the split.
        split_seed: Seed of every division that is made here.
        root: Folder that paths in cells are relative to; null for the folder of the file.
    """

    def __init__(
        self,
        files: str | dict[str, str],
        fields: dict[str, str | FieldSpec],
        label: str | list[str] | None = None,
        task: Task = "single_label",
        classes: list[str | int | bool] | None = None,
        other_labels: Literal["error", "drop"] = "error",
        separator: str = "|",
        id: str | None = None,
        split: str | None = None,
        split_shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        root: str | None = None,
    ) -> None:
        self.task: Task = task
        self._given = fields
        self._cells = tuple(Cell.parse(field, spec) for field, spec in fields.items())
        self.fields = {cell.field: cell.modality for cell in self._cells}
        self._files = {"all": files} if isinstance(files, str) else dict(files)
        self._label = label
        self._declared = None if classes is None else [label_name(name) or "" for name in classes]
        self._drop = other_labels == "drop"
        self._separator = separator
        self._id = id
        self._split_column = split
        self._shares, self._seed, self._root = split_shares, split_seed, root
        self._read: dict[tuple[str, bool], Source] = {}
        self._divided: dict[str, Mapping[Split, Indices]] = {}
        self._learned: dict[str, Indices] = {}  # rows that classes are taken from
        self._classes: list[str] | None = None
        self._check()

    def _check(self) -> None:
        """Raise ConfigError for arguments that contradict each other."""
        several, names = isinstance(self._label, list), self._declared
        one_file, shares = "all" in self._files, self._shares
        splits = set(self._files)
        wrong = [
            (not self._cells, "`fields` is empty; name at least one."),
            (
                not one_file and (not splits or bool(splits - {"train", "val", "test"})),
                f"`files` has the keys {sorted(splits)}; give one file, or train, val and test.",
            ),
            (
                not one_file and self._split_column is not None,
                "`split` is for a single file, but `files` has one per split; leave out one.",
            ),
            (
                several and self.task != "multi_label",
                f"`label` lists columns, but task is {self.task}; set task: multi_label.",
            ),
            (
                several and names is not None,
                "`label` lists columns, which are the classes; leave out `classes`.",
            ),
            (
                names is not None and self.task == "regression",
                "`classes` does not go with task: regression; leave it out.",
            ),
            (
                names is not None and len(set(names)) < len(names),
                f"`classes` names one twice: {names}.",
            ),
            (
                self._drop and names is None,
                "`other_labels: drop` needs `classes`, the labels to keep.",
            ),
            (
                min(shares) < 0 or shares[0] == 0 or abs(sum(shares) - 1) > 1e-6,
                f"`split_shares` is {list(shares)}; give shares of train (not 0), val and test "
                "that sum to 1.",
            ),
        ]
        for found, message in wrong:
            if found:
                raise ConfigError(f"Table: {message}")
        for file in self._files.values():
            check_suffix(file)

    @property
    def classes(self) -> Sequence[str] | None:
        if self.task == "regression":
            return None
        if isinstance(self._label, list):
            return self._label
        if self._declared is not None:
            return self._declared
        if self._classes is None:
            found: set[str] = set()
            for label in self._labels_to_learn():
                found.update(label if isinstance(label, tuple) else [str(label)])
            numbers = all(name.removeprefix("-").isdecimal() for name in found)
            self._classes = sorted(found, key=int) if numbers else sorted(found)
        return self._classes

    def split(self, name: Split) -> Sequence[Sample]:
        if name == "predict":
            sources = tuple(self._source(key, labelled=False) for key in self._files)
            every = [np.arange(len(source.table)) for source in sources]
            return Rows.of(sources, every, self._cells, self._id, targets=None)
        key = self._key(name)
        if key is None:
            return []
        source = self._source(key, labelled=True)
        rows, labels = self._labels().read(source, self._parts(key).get(name, _NONE))
        if name == "train" and not len(rows):
            raise DataError(self._no_training_rows(source))
        targets = self._labels().targets(source, rows, labels, self.classes)
        return Rows.of((source,), [rows], self._cells, self._id, targets)

    def with_files(
        self, files: str | dict[str, str], classes: Sequence[str] | None = None
    ) -> Table:
        """The same fields, task, label and root over other files, to predict or to test on.

        Args:
            files: As in the constructor. ``split("predict")`` gives every row and needs no label;
                ``{"test": file}`` makes a labelled file the test split.
            classes: Those the model was trained with; None for those declared here.
        """
        several = isinstance(self._label, list)
        names = self._declared if classes is None else list(classes)
        return Table(
            files=files,
            fields=self._given,
            label=self._label,
            task=self.task,
            classes=None if several or names is None else [*names],
            other_labels="drop" if self._drop else "error",
            separator=self._separator,
            id=self._id,
            root=self._root,
        )

    def _key(self, name: Split) -> str | None:
        """The file that holds a split, None if there is none."""
        if "all" in self._files:
            return "all"
        key = "train" if name == "val" and "val" not in self._files else name
        if key not in self._files and name == "train":
            raise DataError("`files` names no training file. Add train: to it.")
        return key if key in self._files else None

    def _source(self, key: str, labelled: bool) -> Source:
        """The columns that are needed of a file; read once."""
        if (key, labelled) not in self._read:
            needed = {
                column: f"field {cell.field!r}" for cell in self._cells for column in cell.needed
            }
            if self._id is not None:
                needed.setdefault(self._id, "`id`")
            if labelled:
                for column in self._labels().columns:
                    needed.setdefault(column, "`label`")
                if self._split_column is not None:
                    needed.setdefault(self._split_column, "`split`")
            path = Path(self._files[key]).expanduser()
            root = path.parent if self._root is None else Path(self._root).expanduser()
            self._read[key, labelled] = Source(path.name, root, read_columns(path, needed))
        return self._read[key, labelled]

    def _labels(self) -> Labels:
        if self._label is None:
            raise DataError(
                "`label` is not set, but training and testing need it. Name the label column."
            )
        return Labels(self._label, self.task, self._separator, self._declared, self._drop)

    def _parts(self, key: str) -> Mapping[Split, Indices]:
        """Rows of each split in one file; rows of other labels may still be among them."""
        if key in self._divided:
            return self._divided[key]
        source = self._source(key, labelled=True)
        rows: Indices = np.arange(len(source.table))
        parts: dict[Split, Indices]
        if key != "all":
            parts = {_SPLIT_NAMES[key]: rows}
        elif self._split_column is not None:
            parts = self._stated_parts(source, self._split_column)
        else:
            self._learned[key] = rows
            train, val, test = self._divide(source, rows, self._shares)
            parts = {"train": train, "val": val, "test": test}
        self._learned.setdefault(key, parts.get("train", _NONE))
        if "train" in parts and "val" not in {*parts, *self._files}:
            shares = (1 - _HELD_OUT, _HELD_OUT)
            parts["train"], parts["val"] = self._divide(source, parts["train"], shares)
        self._divided[key] = parts
        return parts

    def _divide(self, source: Source, rows: Indices, shares: Sequence[float]) -> list[Indices]:
        rows, labels = self._labels().read(source, rows)
        parts = stratified_split(strata(labels, self.task), shares, self._seed)
        return [rows[part] for part in parts]

    def _stated_parts(self, source: Source, column: str) -> dict[Split, Indices]:
        found: dict[Split, list[int]] = {}
        for row, cell in enumerate(source.table.column(column).to_pylist()):
            name = _SPLIT_NAMES.get((label_name(cell) or "").lower())
            if name is None:
                raise DataError(
                    f"{source.origin(row)}: split column {column!r} is {cell!r}. Write one of "
                    f"{', '.join(_SPLIT_NAMES)}, or remove the row."
                )
            found.setdefault(name, []).append(row)
        return {name: np.asarray(rows) for name, rows in found.items()}

    def _no_training_rows(self, source: Source) -> str:
        if self._split_column is None:
            return (
                f"{source.name}: no training row has one of the declared `classes`. Correct them."
            )
        column = source.table.column(self._split_column)
        values = sorted({str(value) for value in column.to_pylist()})
        return (
            f"{source.name}: the split train is empty. Column {self._split_column!r} has "
            f"{', '.join(values)}. Mark the rows to train on as train"
            + (", and check that they have one of `classes`." if self._drop else ".")
        )

    def _labels_to_learn(self) -> list[Label]:
        """Labels of the training rows and of those that were divided from them here.

        With several labels per row, a seeded division may leave a rare one out of training.
        """
        key = self._key("train")
        assert key is not None
        self._parts(key)
        source, rows = self._source(key, labelled=True), self._learned[key]
        if not len(rows):
            raise DataError(self._no_training_rows(source))
        return self._labels().read(source, rows)[1]
