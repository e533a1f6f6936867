"""What an examination says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Grade = Literal["error", "warning", "note"]
GRADES: tuple[Grade, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Place:
    """A row that a finding is about.

    Attributes:
        split: Its split.
        index: Its place in the split, counted from 0.
        id: Its name.
        origin: Where it stands: ``"products.csv, row 17"``.
        value: The path, or the beginning of what the field holds.
        detail: What is the matter with this one.
    """

    split: str
    index: int
    id: str
    origin: str
    value: str = ""
    detail: str = ""

    def describe(self) -> str:
        """One line; paths are cut to their last folder."""
        short = _short(self.value)
        detail = self.detail.replace(self.value, short) if self.value else self.detail
        shown = "" if short and short in detail else short
        return ": ".join(part for part in (self.origin, detail, shown) if part)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is the matter with the data.

    Attributes:
        grade: error: training would fail. warning: it would mislead. note: good to know.
        code: Kind of finding, a word that stays the same.
        title: What was found, without a full stop.
        advice: What to do, one sentence or more; empty if nothing.
        field: The field it is about.
        places: The rows it is about, where it is about some.
    """

    grade: Grade
    code: str
    title: str
    advice: str = ""
    field: str | None = None
    places: tuple[Place, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; every row is listed."""
        return {
            "grade": self.grade,
            "code": self.code,
            "title": self.title,
            "advice": self.advice,
            "field": self.field,
            "rows": [asdict(place) for place in self.places],
        }


def _short(value: str) -> str:
    path = Path(value)
    return f".../{path.parent.name}/{path.name}" if path.is_absolute() else value


def percent(part: float, whole: float = 1.0) -> str:
    """``"12.5 %"``; what is not nothing is never shown as 0."""
    share = 100 * part / whole if whole else 0.0
    if share in (0, 100):
        return f"{share:.0f} %"
    if share < 0.05:
        return "< 0.1 %"
    return f"{share:.1f} %" if share < 99.95 else "> 99.9 %"


def count(number: int, thing: str) -> str:
    """``"1 row"``, ``"1,204 rows"``, ``"2 classes"``, ``"3 empty texts"``."""
    plural = f"{thing}es" if thing.endswith("ss") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"


def by_split(numbers: Mapping[str, int]) -> str:
    """``"train 12, test 3"``: splits without any are left out."""
    return ", ".join(f"{split} {number:,}" for split, number in numbers.items() if number)


def some(names: Iterable[str], shown: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - shown:,} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more
