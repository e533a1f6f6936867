"""Samples from a table: CSV, TSV, JSONL, Parquet, Arrow, or an object in memory."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from fusionkit.data import memory
from fusionkit.data.base import Dataset, Sample, Split, Task
from fusionkit.data.cells import label_name
from fusionkit.data.labels import Labels
from fusionkit.data.places import may_be_table, saved_splits
from fusionkit.data.read import Source, read_source
from fusionkit.data.rows import Cell, FieldSpec, Rows
from fusionkit.data.splits import (
    SPLIT_NAMES,
    Indices,
    grouped_split,
    groups_of,
    stated_parts,
    stratified_split,
)
from fusionkit.data.targets import Read
from fusionkit.errors import ConfigError, DataError

_HELD_OUT = 0.1  # of the training rows, where there is no validation split
_NONE: Indices = np.empty(0, dtype=np.int64)


class Table(Dataset):
    """Samples from a table file, or from one per split.

    A file is CSV, TSV, JSONL (these may end in .gz), Parquet or Arrow, at a path or at a URL that
    fsspec knows. In the place of a file stands a glob, a folder of files of one format, or what
    Hugging Face's save_to_disk wrote. What is large is not held in memory, but mapped.

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
        files: One file, glob or folder, or one per split: {train: ..., val: ..., test: ...}.
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
        split_group: Column of what such a division keeps together: rows of one patient, product or
            sentence come into one split. An empty cell belongs to no other row.
        root: Folder or URL that paths in cells are relative to; null for the folder of the file.
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
        split_group: str | None = None,
        root: str | None = None,
    ) -> None:
        self.task: Task = task
        self._given = fields
        self._cells = tuple(Cell.parse(field, spec) for field, spec in fields.items())
        self.fields = {cell.field: cell.modality for cell in self._cells}
        self._files: dict[str, Any] = {"all": files} if isinstance(files, str) else dict(files)
        self._label = label
        self._declared = None if classes is None else [label_name(name) or "" for name in classes]
        self._drop = other_labels == "drop"
        self._separator = separator
        self._id = id
        self._split_column = split
        self._shares, self._seed, self._group = split_shares, split_seed, split_group
        self._root = root
        self._forget()
        self._check()

    def _forget(self) -> None:
        self._looked = False  # whether a folder holds splits
        self._read: dict[tuple[str, bool], Source] = {}
        self._divided: dict[str, Mapping[Split, Indices]] = {}
        self._learned: dict[str, Indices] = {}  # rows that classes are taken from
        self._classes: list[str] | None = None

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
                self._group is not None and {"train", "val"} <= splits,
                "`split_group` is for rows that are divided here, but `files` has train and val; "
                "leave out one.",
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
            if isinstance(file, str) and not memory.was_in_memory(file):
                may_be_table(file)

    @property
    def classes(self) -> Sequence[str] | None:
        if self.task == "regression":
            return None
        if isinstance(self._label, list):
            return self._label
        if self._declared is not None:
            return self._declared
        if self._classes is None:
            source, read = self._labels_to_learn()
            found = read.found()
            numbers = all(name.removeprefix("-").isdecimal() for name in found)
            stated = source.class_names.get(str(self._label))
            self._classes = stated or (sorted(found, key=int) if numbers else sorted(found))
        return self._classes

    def split(self, name: Split) -> Sequence[Sample]:
        if name == "predict":
            sources = tuple(self._source(key, labelled=False) for key in self._entries())
            every = [np.arange(len(source)) for source in sources]
            return Rows.of(sources, every, self._cells, self._id, targets=None)
        key = self._key(name)
        if key is None:
            return []
        source = self._source(key, labelled=True)
        read = self._labels().read(source, self._parts(key).get(name, _NONE))
        if name == "train" and not len(read.rows):
            raise DataError(self._no_training_rows(source))
        targets = self._labels().targets(source, read, self.classes)
        return Rows.of((source,), [read.rows], self._cells, self._id, targets)

    def over(self, data: Any) -> Table:
        """The same table with its rows from memory instead of ``files``.

        Paths in cells are then relative to ``root``, or to the current folder.

        Args:
            data: A pandas DataFrame, a pyarrow Table or whatever else hands out Arrow tables, or a
                Dataset of Hugging Face's datasets; or a mapping of train, val and test to them,
                such as a DatasetDict.

        Raises:
            DataError: It is none of these.
            ConfigError: A mapping was given, and there is a split column as well.
        """
        table = copy.copy(self)
        table._files = memory.by_split(data)
        table._forget()
        table._check()
        return table

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
        entries = self._entries()
        if "all" in entries:
            return "all"
        key = "train" if name == "val" and "val" not in entries else name
        if key not in entries and name == "train":
            raise DataError("`files` names no training file. Add train: to it.")
        return key if key in entries else None

    def _entries(self) -> dict[str, Any]:
        """File or object by split; a folder that holds splits is looked up when it is read."""
        given = self._files.get("all")
        if not self._looked and isinstance(given, str):
            folders = saved_splits(given)
            if folders is not None:
                self._files = memory.by_split(folders)
                self._check()
        self._looked = True
        return self._files

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
                if self._group is not None and key in ("all", "train"):
                    needed.setdefault(self._group, "`split_group`")
            given = self._entries()[key]
            if isinstance(given, str) and memory.was_in_memory(given):
                raise memory.gone(given)
            root = None if self._root is None else os.path.expanduser(self._root)
            self._read[key, labelled] = (
                read_source(given, root, needed)
                if isinstance(given, str)
                else memory.to_source(given, key, root or "", needed)
            )
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
        rows: Indices = np.arange(len(source))
        parts: dict[Split, Indices]
        if key != "all":
            parts = {SPLIT_NAMES[key]: rows}
        elif self._split_column is not None:
            parts = stated_parts(source, self._split_column)
        else:
            self._learned[key] = rows
            train, val, test = self._divide(source, rows, self._shares)
            parts = {"train": train, "val": val, "test": test}
        self._learned.setdefault(key, parts.get("train", _NONE))
        if "train" in parts and "val" not in {*parts, *self._entries()}:
            shares = (1 - _HELD_OUT, _HELD_OUT)
            parts["train"], parts["val"] = self._divide(source, parts["train"], shares)
        elif self._split_column is not None and self._group is not None:
            raise DataError(
                f"{source.name}: column {self._split_column!r} says what is train and what is val, "
                f"so nothing is left for `split_group` to keep together. Leave out one of them."
            )
        self._divided[key] = parts
        return parts

    def _divide(self, source: Source, rows: Indices, shares: Sequence[float]) -> list[Indices]:
        read = self._labels().read(source, rows)
        if self._group is None:
            parts = stratified_split(read.strata(), shares, self._seed)
        else:
            groups = groups_of(source, self._group)[read.rows]
            parts = grouped_split(read.strata(), groups, shares, self._seed)
            if any(share and not len(part) for share, part in zip(shares, parts, strict=True)):
                raise DataError(
                    f"{source.name}: with the rows of each {self._group!r} kept together (it has "
                    f"{len(np.unique(groups)):,}) and every label in train, nothing is left for "
                    f"the other splits. Choose another `split_group`, or state the splits."
                )
        return [read.rows[part] for part in parts]

    def _no_training_rows(self, source: Source) -> str:
        if self._split_column is None:
            return (
                f"{source.name}: no training row has one of the declared `classes`. Correct them."
            )
        values = sorted({str(value) for value in source.encoded(self._split_column)[1]})
        return (
            f"{source.name}: the split train is empty. Column {self._split_column!r} has "
            f"{', '.join(values)}. Mark the rows to train on as train"
            + (", and check that they have one of `classes`." if self._drop else ".")
        )

    def _labels_to_learn(self) -> tuple[Source, Read]:
        """Labels of the training rows and of those that were divided from them here.

        With several labels per row, a seeded division may leave a rare one out of training.
        """
        key = self._key("train")
        assert key is not None
        self._parts(key)
        source, rows = self._source(key, labelled=True), self._learned[key]
        if not len(rows):
            raise DataError(self._no_training_rows(source))
        return source, self._labels().read(source, rows)


def table_like(dataset: Dataset, data: Any) -> Table:
    """A table to predict on, with the fields of the training data.

    Args:
        dataset: That of training; where it is no table, columns are named after its fields.
        data: A file as in ``files``, or what :meth:`Table.over` takes.

    Raises:
        DataError: It is neither.
    """
    file = data if isinstance(data, str) else memory.describe(data)
    if isinstance(dataset, Table):
        table = dataset.with_files(file)
    else:
        specs = {name: FieldSpec(name, kind) for name, kind in dataset.fields.items()}  # type: ignore[arg-type]
        table = Table(file, {**specs})
    return table if isinstance(data, str) else table.over(data)
