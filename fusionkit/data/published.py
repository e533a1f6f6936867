"""Published data sets in their official layout."""

from __future__ import annotations

import json
import shlex
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet

from fusionkit.data.base import Dataset, Sample, Split, Task
from fusionkit.data.prepare import FOLDER, NOTES, VERSION, Prepared, Track, silent
from fusionkit.data.rows import FieldSpec
from fusionkit.data.table import Table
from fusionkit.errors import ConfigError, DataError

MoreFields = Mapping[str, str | FieldSpec]


class Published(Dataset):
    """A published data set, read from the index that :meth:`prepare` makes of the official files.

    The official files are read and checked once, not in every run; the index stands beside them,
    in the folder ``fusionkit``.

    Attributes:
        name: What configs call it.
        labels: Class names in index order.
    """

    name: ClassVar[str]
    labels: ClassVar[tuple[str, ...]]

    task: Task = "single_label"

    def __init__(
        self,
        root: str,
        files: str | Mapping[str, str],
        fields: Mapping[str, str | FieldSpec],
        more_fields: MoreFields | None,
        split: str | None = None,
    ) -> None:
        """Set up the table; opens nothing.

        Args:
            root: Folder of the official files.
            files: Path in the index, without suffix; or one for each split.
            fields: As of :class:`~fusionkit.data.table.Table`.
            more_fields: Further ones.
            split: Column that says train or test, for a single file.

        Raises:
            ConfigError: A further field has the name of one that is there already.
        """
        for field in more_fields or {}:
            if field in fields:
                raise ConfigError(
                    f"{self.name} has a field {field!r} already. Give yours another name, and its "
                    f"modality: {{column: ..., modality: ...}}."
                )
        self._root = Path(root).expanduser()
        paths = {"all": files} if isinstance(files, str) else files
        self._files = {key: self._root / FOLDER / f"{path}.parquet" for key, path in paths.items()}
        given = {key: str(path) for key, path in self._files.items()}
        self._table = Table(
            files=given.get("all", given),
            fields={**fields, **(more_fields or {})},
            label="label",
            task=self.task,
            classes=[*self.labels],
            id="id",
            split=split,
            root=str(self._root),
        )
        self.fields = self._table.fields

    @property
    def classes(self) -> Sequence[str]:
        return self.labels

    def split(self, name: Split) -> Sequence[Sample]:
        self._check_prepared()
        path = self._files.get(name)
        if path is not None and not pyarrow.parquet.read_metadata(path).num_rows:
            return ()
        return self._table.split(name)

    @classmethod
    @abstractmethod
    def prepare(cls, root: Path, keep_incomplete: bool = False, track: Track = silent) -> Prepared:
        """Read the official files, check every row and write the index.

        Args:
            root: Folder of the official files.
            keep_incomplete: Whether rows without a readable image (clip) are kept, without it, for
                ``missing.allow``; by default they are dropped.
            track: Shows progress.

        Raises:
            DataError: A part of the official layout is missing, or no training row is left. The
                message says what, where it comes from and where it belongs.
        """

    def _check_prepared(self) -> None:
        """Raise DataError unless the index is there, whole and of this data set."""
        command = f"fusionkit data prepare {self.name} --root {shlex.quote(str(self._root))}"
        notes = self._root / FOLDER / NOTES
        try:
            found = json.loads(notes.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DataError(
                f"{self._root} is not prepared: there is no {notes}. Run: {command}"
            ) from None
        if found.get("data_set") != self.name:
            raise DataError(
                f"{self._root} holds {found.get('data_set')}, not {self.name}. Correct data.root."
            )
        if found.get("version") != VERSION:
            raise DataError(
                f"{self._root} was prepared by another version of fusionkit. Run: {command}"
            )
        for path in self._files.values():
            if not path.is_file():
                raise DataError(self._absent(path, command))

    def _absent(self, path: Path, command: str) -> str:
        """What to say of an index that lacks one of its files."""
        return f"The index lacks {path}. Run: {command}"
