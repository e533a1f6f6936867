"""What cannot be read, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator

from fusionkit.doctor.findings import Finding, Place, count, percent, some
from fusionkit.doctor.study import FieldStudy, Study

_MOSTLY = 0.5  # share of missing values from which on it is a warning
_APART = 0.2  # difference of that share between training and another split
_MANY = 20  # rows with one value
_TIMES = 5  # as often as the next value: a placeholder


def broken(study: Study) -> Iterator[Finding]:
    """Samples that cannot be made."""
    places = tuple(
        study.place(split, index, detail=reason)
        for split, rows in study.splits.items()
        for index, reason in rows.broken.items()
    )
    if places:
        yield Finding(
            "error",
            "row",
            f"{count(len(places), 'row')} cannot be made into a sample",
            "Correct what each line says, or remove the row.",
            None,
            places,
        )


def findings(study: Study, name: str) -> Iterator[Finding]:
    """What of a field cannot be read or is missing."""
    field = study.fields[name]
    yield from _unreadable(study, name, field)
    yield from _missing(study, name, field)
    yield from _constant(study, name, field)


def _unreadable(study: Study, name: str, field: FieldStudy) -> Iterator[Finding]:
    fatal: list[Place] = []
    spared: list[Place] = []
    for split, column in field.columns.items():
        for index, faults in column.faults.items():
            worst = next((fault for fault in faults if fault.fatal), faults[0])
            (fatal if worst.fatal else spared).append(study.place(split, index, name, worst.reason))
    roles = ", ".join(dict.fromkeys(reader.role for reader in field.readers))
    if fatal:
        yield Finding(
            "error",
            "unreadable",
            f"{count(len(fatal), 'value')} of field {name!r} cannot be read",
            f"Repair or replace them, remove the rows, or take what is broken for missing: "
            f"missing.allow: [{roles}], missing.unreadable: true.",
            name,
            tuple(fatal),
        )
    if not spared:
        return
    train = field.columns.get("train")
    hopeless = (
        train is not None
        and len(train.faults) > 1  # as fusionkit.data.missing.Unreadable has it
        and not any(train.digests)
    )
    yield Finding(
        "error" if hopeless else "warning",
        "unreadable",
        f"Not one of {count(len(spared), 'value')} of field {name!r} can be read"
        if hopeless
        else f"{count(len(spared), 'value')} of field {name!r} cannot be read, and taken for "
        f"missing as missing.unreadable says",
        "Correct where the files are; missing.unreadable is for the odd broken one."
        if hopeless
        else "",
        name,
        tuple(spared),
    )


def _missing(study: Study, name: str, field: FieldStudy) -> Iterator[Finding]:
    needy = [reader for reader in field.readers if not reader.may_lack]
    lacking = {split: field.missing(split) for split in field.columns}
    places = [
        study.place(split, index)
        for split, flags in lacking.items()
        for index, gone in enumerate(flags)
        if gone and index not in study.splits[split].broken
    ]
    if not places:
        return
    total = sum(len(flags) for flags in lacking.values())
    shares = {split: sum(flags) / len(flags) for split, flags in lacking.items() if flags}
    listed = ", ".join(f"{split} {percent(share)}" for split, share in shares.items())
    if needy:
        roles = ", ".join(dict.fromkeys(reader.role for reader in field.readers))
        yield Finding(
            "error",
            "missing",
            f"Field {name!r} is missing in {count(len(places), 'row')}, and "
            f"{some(reader.who for reader in needy)} cannot do without",
            f"Fill it in, remove the rows, or let a learned stand-in take its place: "
            f"missing.allow: [{roles}].",
            name,
            tuple(places),
        )
        return
    uneven = any(abs(share - shares.get("train", share)) > _APART for share in shares.values())
    yield Finding(
        "warning" if uneven or len(places) > _MOSTLY * total else "note",
        "missing",
        f"Field {name!r} is missing in {count(len(places), 'row')} ({listed}); a learned stand-in "
        f"takes its place",
        "The splits differ: training sees another share of missing values than it is tested on."
        if uneven
        else "",
        name,
        tuple(places),
    )


def _constant(study: Study, name: str, field: FieldStudy) -> Iterator[Finding]:
    """One value in every row, or one that is far more frequent than any other."""
    rows: dict[bytes, list[tuple[str, int]]] = {}
    for split, column in field.columns.items():
        for index, digest in enumerate(column.digests):
            if digest:
                rows.setdefault(digest, []).append((split, index))
    if not rows:
        return
    first, *others = sorted(rows.values(), key=len, reverse=True)
    if not others and len(first) > 1:
        yield Finding(
            "warning",
            "constant",
            f"Field {name!r}: the same value in every row",
            "It says nothing; leave out the encoder that reads it, or check the column.",
            name,
            (study.place(*first[0], name),),
        )
    elif others and len(first) >= _MANY and len(first) >= _TIMES * len(others[0]):
        yield Finding(
            "note",
            "placeholder",
            f"Field {name!r}: one value stands in {count(len(first), 'row')}, the next in "
            f"{len(others[0]):,}",
            "If it stands for nothing (a picture that says there is none, 'n/a'), leave the cells "
            "empty.",
            name,
            tuple(study.place(*row, name) for row in first),
        )
