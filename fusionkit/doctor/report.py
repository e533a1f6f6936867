"""What an examination found, for people and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fusionkit.doctor import audio, images, tables, texts
from fusionkit.doctor.findings import GRADES, Finding, count, percent, some
from fusionkit.doctor.labels import LabelCounts, tally
from fusionkit.doctor.study import FieldStudy, Study

FORMAT = 1  # of the JSON

_FEW = 3  # classes that are all listed

_DESCRIBE: dict[str, Any] = {
    "image": images.describe,
    "text": texts.describe,
    "audio": audio.describe,
    "table": tables.describe_table,
    "vector": tables.describe_vectors,
}


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`fusionkit.doctor.run.examine` found.

    Attributes:
        name: Of the experiment.
        study: What was seen.
        findings: Errors first, then warnings, then notes.
    """

    name: str
    study: Study
    findings: Sequence[Finding]

    @classmethod
    def of_errors(cls, name: str, findings: Sequence[Finding]) -> Report:
        """The report of a data set that cannot be opened."""
        return cls(name, Study("single_label", None, {}), findings)

    @property
    def fails(self) -> bool:
        """Whether training would fail."""
        return any(finding.grade == "error" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One or two sentences."""
        of_grade = {grade: [f for f in self.findings if f.grade == grade] for grade in GRADES}
        rest = ", ".join(count(len(found), grade) for grade, found in of_grade.items() if found)
        if self.fails:
            first, *others = of_grade["error"]
            rows = some((p.origin for p in first.places if p.origin), 3)
            where = f" ({rows})" if rows else ""
            also = f"; and {count(len(others), 'other error')}" if others else ""
            return f"Training would fail: {first.title}{where}{also}."
        if of_grade["warning"]:
            codes = ", ".join(dict.fromkeys(finding.code for finding in of_grade["warning"]))
            return f"Training would run; look at the warnings first ({codes})."
        return "Training would run" + (f"; {rest}." if rest else "; nothing stands out.")

    def split_rows(self) -> list[tuple[str, str, str, str]]:
        """Rows, labels and baseline of each split, as text."""
        labels = tally(self.study)
        return [
            (
                split,
                f"{len(rows):,}",
                _labels(labels[split]) if split in labels else "not known",
                _baseline(labels.get(split), self.study.task),
            )
            for split, rows in self.study.splits.items()
        ]

    def field_rows(self) -> list[tuple[str, ...]]:
        """What each field holds, as text."""
        return [
            (
                name,
                ", ".join(reader.who for reader in field.readers[:2])
                + (f" and {len(field.readers) - 2} more" if len(field.readers) > 2 else ""),
                f"{sum(map(len, _unreadable(field).values())):,}",
                percent(sum(_missing(field).values()), _total(field)),
                f"{len(_distinct(field)):,}",
                _DESCRIBE[field.modality](field.measured()) if field.modality in _DESCRIBE else "",
            )
            for name, field in self.study.fields.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values for machines; every finding lists all its rows."""
        labels = tally(self.study)
        return {
            "format": FORMAT,
            "name": self.name,
            "fails": self.fails,
            "verdict": self.verdict,
            "task": self.study.task,
            "splits": {
                split: {
                    "rows": len(rows),
                    "labels": asdict(labels[split]) if split in labels else None,
                }
                for split, rows in self.study.splits.items()
            },
            "fields": {name: _field_json(field) for name, field in self.study.fields.items()},
            "findings": [finding.to_json() for finding in self.findings],
        }


def _labels(labels: LabelCounts) -> str:
    if labels.numbers:
        n = labels.numbers
        return (
            f"{n['least']:.4g} to {n['greatest']:.4g}, mean {n['mean']:.4g} ± {n['deviation']:.4g}"
        )
    total = sum(labels.counts.values())
    ranked = sorted(labels.counts.items(), key=lambda item: -item[1])
    if len(ranked) <= _FEW:
        return ", ".join(f"{name} {percent(rows, total)}" for name, rows in ranked)
    (most, many), (least, few) = ranked[0], ranked[-1]
    return f"{len(ranked)} classes, {most} {percent(many, total)} to {least} {percent(few, total)}"


def _baseline(labels: LabelCounts | None, task: str) -> str:
    if labels is None or labels.baseline is None:
        return ""
    return f"{labels.baseline:.4g}" if task == "regression" else percent(labels.baseline)


def _total(field: FieldStudy) -> int:
    return sum(len(column.shown) for column in field.columns.values())


def _missing(field: FieldStudy) -> dict[str, int]:
    return {split: sum(field.missing(split)) for split in field.columns}


def _unreadable(field: FieldStudy) -> dict[str, list[int]]:
    return {split: list(column.faults) for split, column in field.columns.items()}


def _distinct(field: FieldStudy) -> set[bytes]:
    return {d for column in field.columns.values() for d in column.digests if d}


def _field_json(field: FieldStudy) -> dict[str, Any]:
    return {
        "modality": field.modality,
        "read_by": [reader.who for reader in field.readers],
        "distinct": len(_distinct(field)),
        "measures": _DESCRIBE[field.modality](field.measured())
        if field.modality in _DESCRIBE
        else "",
        "splits": {
            split: {
                "rows": len(column.shown),
                "missing": sum(field.missing(split)),
                "unreadable": len(column.faults),
                "distinct": len({digest for digest in column.digests if digest}),
            }
            for split, column in field.columns.items()
        },
    }
