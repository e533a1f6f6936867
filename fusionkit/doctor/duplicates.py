"""Rows that occur more than once within a split."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from fusionkit.doctor.findings import Finding, Place, by_split, count
from fusionkit.doctor.images import group_images
from fusionkit.doctor.study import Study
from fusionkit.doctor.texts import group_texts

Key = Hashable  # what equal rows have in common; None where a row has nothing


def group_near(study: Study) -> None:
    """Find the groups of nearly equal values of every field."""
    for field in study.fields.values():
        if field.modality == "image":
            group_images(field)
        elif field.modality == "text":
            group_texts(field)


def row_keys(study: Study, split: str) -> list[Key]:
    """One for each row: what all of its fields hold."""
    columns = [field.columns[split] for field in study.fields.values()]
    unread = {index for column in columns for index in column.faults}
    rows = zip(*(column.digests for column in columns), strict=True)
    return [row if any(row) and i not in unread else None for i, row in enumerate(rows)]


def label_of(target: Any) -> Hashable:
    """A target that can be compared."""
    return tuple(target) if isinstance(target, Sequence) else target


def findings(study: Study) -> Iterator[Finding]:
    """Rows of which a split has another that is the same, and what their labels say."""
    repeated: list[Place] = []
    opposed: list[Place] = []
    repeats, oppositions = {}, {}
    for split, rows in study.splits.items():
        members: dict[Key, list[int]] = {}
        for index, key in enumerate(row_keys(study, split)):
            if key is not None:
                members.setdefault(key, []).append(index)
        before = len(repeated), len(opposed)
        for first, *others in members.values():
            labels = {label_of(rows.targets[index]) for index in (first, *others)}
            for index in others:
                twin = f"as {rows.origins[first]}"
                if len(labels) > 1:
                    opposed.append(study.place(split, index, next(iter(study.fields)), twin))
                else:
                    repeated.append(study.place(split, index, next(iter(study.fields)), twin))
        repeats[split] = len(repeated) - before[0]
        oppositions[split] = len(opposed) - before[1]
    fields = " and ".join(map(repr, study.fields))
    if opposed:
        yield Finding(
            "warning",
            "contradiction",
            f"{count(len(opposed), 'row')} with the same {fields} as an earlier one of the split, "
            f"among which labels differ ({by_split(oppositions)})",
            "No model can be right about all of them. Decide which label holds.",
            None,
            tuple(opposed),
        )
    if repeated:
        yield Finding(
            "note",
            "duplicate",
            f"{count(len(repeated), 'row')} with the same {fields} as an earlier one of the split, "
            f"label included ({by_split(repeats)})",
            "They count more than once; remove them if that is not meant.",
            None,
            tuple(repeated),
        )


def near_findings(study: Study, name: str) -> Iterator[Finding]:
    """Values that nearly equal another of their split."""
    field = study.fields[name]
    found: list[Place] = []
    numbers, differing = {}, 0
    for split, column in field.columns.items():
        rows = study.splits[split]
        firsts: dict[int, int] = {}
        before = len(found)
        for index, digest in enumerate(column.digests):
            number = field.groups.get(digest)
            if number is None:
                continue
            first = firsts.setdefault(number, index)
            if column.digests[first] != digest:
                differing += label_of(rows.targets[first]) != label_of(rows.targets[index])
                detail = f"nearly as {rows.origins[first]}"
                found.append(study.place(split, index, name, detail))
        numbers[split] = len(found) - before
    if found:
        labels = f", {differing:,} of them with another label" if differing else ""
        yield Finding(
            "note",
            "near_duplicate",
            f"Field {name!r}: {count(len(found), 'row')} {'hold' + 's' * (len(found) == 1)} nearly "
            f"what an earlier one of the split holds ({by_split(numbers)}){labels}",
            "Look at some of the pairs: copies that were saved anew count more than once.",
            name,
            tuple(found),
        )
