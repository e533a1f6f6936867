"""What is kept of the data while it is walked through: hashes and measures, not values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusionkit.data.base import Task
from fusionkit.doctor.findings import Place
from fusionkit.encoders.base import Preprocessor

UNLABELLED = "all"  # the rows of a data set whose splits cannot be made


@dataclass(frozen=True, slots=True)
class Reader:
    """An encoder that reads a field.

    Attributes:
        who: Role and name: ``main 'bert'``; of a baseline, with its label.
        role: Its role.
        preprocessor: Its own; None where it cannot be had.
        may_lack: Whether a sample may lack the field.
        lenient: Whether a value that cannot be read counts as missing.
    """

    who: str
    role: str
    preprocessor: Preprocessor | None
    may_lack: bool = False
    lenient: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a value cannot be read, by whom, and whether training stops at it."""

    who: str
    reason: str
    fatal: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of one value.

    Attributes:
        shown: A path, or the beginning of a text.
        absent: Whether there is none.
        empty: Whether there is none, or one that says nothing.
        faults: Why it cannot be read.
        digest: Hash of its content; empty where there is none.
        near: What is compared to find nearly equal ones; empty where nothing is.
        facts: Measures, as the field's modality has them; None where there are none.
    """

    shown: str = ""
    absent: bool = False
    empty: bool = False
    faults: tuple[Fault, ...] = ()
    digest: bytes = b""
    near: bytes = b""
    facts: Any = None


@dataclass(frozen=True, slots=True)
class Row:
    """What is kept of one sample; ``broken`` says why it could not be made."""

    id: str
    origin: str
    target: Any
    seen: dict[str, Seen]
    broken: str = ""


@dataclass(slots=True)
class Column:
    """One field of one split."""

    shown: list[str] = field(default_factory=list)
    absent: list[bool] = field(default_factory=list)
    empty: list[bool] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    facts: list[Any] = field(default_factory=list)
    faults: dict[int, tuple[Fault, ...]] = field(default_factory=dict)

    def add(self, seen: Seen) -> None:
        """Take in the value of the next row."""
        if seen.faults:
            self.faults[len(self.shown)] = seen.faults
        self.shown.append(seen.shown)
        self.absent.append(seen.absent)
        self.empty.append(seen.empty)
        self.digests.append(seen.digest)
        self.facts.append(seen.facts)

    @property
    def measured(self) -> list[Any]:
        """The facts of the values that have some."""
        return [facts for facts in self.facts if facts is not None]


@dataclass(slots=True)
class FieldStudy:
    """One field in all splits.

    Attributes:
        modality: Its modality.
        readers: The encoders that read it.
        columns: By split.
        near: What is compared, by digest.
        groups: Number of the group of nearly equal values, by digest; only of those in one.
    """

    modality: str
    readers: list[Reader]
    columns: dict[str, Column] = field(default_factory=dict)
    near: dict[bytes, bytes] = field(default_factory=dict)
    groups: dict[bytes, int] = field(default_factory=dict)

    @property
    def may_lack(self) -> bool:
        """Whether every encoder that reads it can do without."""
        return all(reader.may_lack for reader in self.readers)

    def missing(self, split: str) -> list[bool]:
        """Which rows lack it: a text that is empty lacks it where it may be lacking."""
        column = self.columns[split]
        return column.empty if self.may_lack else column.absent

    def measured(self) -> list[Any]:
        """The facts of all splits."""
        return [facts for column in self.columns.values() for facts in column.measured]


@dataclass(slots=True)
class SplitStudy:
    """The rows of one split."""

    ids: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class Study:
    """All that was seen.

    Attributes:
        task: What is predicted.
        classes: Their names; None in regression, or where labels cannot be read.
        fields: Those that encoders read, by name.
        splits: Those that could be made; :data:`UNLABELLED` where training could not.
        unlabelled: Those whose labels cannot be used.
    """

    task: Task
    classes: Sequence[str] | None
    fields: dict[str, FieldStudy]
    splits: dict[str, SplitStudy] = field(default_factory=dict)
    unlabelled: set[str] = field(default_factory=set)

    def start(self, split: str) -> None:
        """Make room for the rows of a split."""
        self.splits[split] = SplitStudy()
        for study in self.fields.values():
            study.columns[split] = Column()

    def add(self, split: str, row: Row) -> None:
        """Take in the next row of a split."""
        rows = self.splits[split]
        if row.broken:
            rows.broken[len(rows)] = row.broken
        rows.ids.append(row.id)
        rows.origins.append(row.origin)
        rows.targets.append(row.target)
        for name, study in self.fields.items():
            seen = row.seen.get(name, Seen(absent=True, empty=True))
            study.columns[split].add(seen)
            if seen.near:
                study.near.setdefault(seen.digest, seen.near)

    def place(self, split: str, index: int, field: str | None = None, detail: str = "") -> Place:
        """Where a row stands."""
        rows = self.splits[split]
        shown = "" if field is None else self.fields[field].columns[split].shown[index]
        return Place(split, index, rows.ids[index], rows.origins[index], shown, detail)

    def places(self, field: str) -> Iterator[tuple[str, int]]:
        """Every row, as (split, index)."""
        for split, column in self.fields[field].columns.items():
            for index in range(len(column.shown)):
                yield split, index
