"""Labels: how many of each, and what is wrong with them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusionkit.doctor.findings import Finding, count, some
from fusionkit.doctor.study import Study

_FEW = 10  # rows of a class
_UNEVEN = 10  # largest class by smallest
_SEVERE = 100


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """The labels of one split.

    Attributes:
        counts: Rows by class; empty in regression.
        numbers: Least, median, greatest, mean and standard deviation, in regression.
        baseline: What one learns from labels alone: accuracy of the largest training class;
            in regression, mean absolute error of the training median. None in multi-label.
    """

    counts: dict[str, int]
    numbers: dict[str, float]
    baseline: float | None


def tally(study: Study) -> dict[str, LabelCounts]:
    """The labels of each split that has rows; none where labels cannot be read."""
    train = None if "train" in study.unlabelled else study.splits.get("train")
    known = [t for t in (train.targets if train else []) if not _wrong(study, t)]
    found = {}
    for split, rows in study.splits.items():
        if split in study.unlabelled:
            continue
        targets = [target for target in rows.targets if not _wrong(study, target)]
        if targets and study.task == "regression":
            found[split] = _numbers(targets, known)
        elif targets:
            found[split] = _classes(study, targets, known)
    return found


def _numbers(targets: Sequence[float], known: Sequence[float]) -> LabelCounts:
    values = np.array(targets, dtype=float)
    numbers = {
        "least": float(values.min()),
        "median": float(np.median(values)),
        "greatest": float(values.max()),
        "mean": float(values.mean()),
        "deviation": float(values.std()),
    }
    error = float(np.abs(values - np.median(known)).mean()) if known else None
    return LabelCounts({}, numbers, error)


def _classes(study: Study, targets: Sequence[Any], known: Sequence[Any]) -> LabelCounts:
    names = list(study.classes or ())
    if study.task == "multi_label":
        of_each = Counter(number for target in targets for number in target)
        share = None
    else:
        of_each = Counter(targets)
        largest = Counter(known).most_common(1)
        share = of_each[largest[0][0]] / len(targets) if largest else None
    return LabelCounts({name: of_each[i] for i, name in enumerate(names)}, {}, share)


def _wrong(study: Study, target: Any) -> str:
    """Why a target cannot be trained on; empty if it can."""
    if target is None:
        return "there is none"
    classes = len(study.classes or ())
    try:
        if study.task == "regression":
            return "" if math.isfinite(target) else f"it is {target}, no finite number"
        numbers = target if study.task == "multi_label" else [target]
        wrong = [n for n in numbers if n != int(n) or not 0 <= n < classes]
    except (TypeError, ValueError):
        return f"it is {target!r}, which does not fit task {study.task}"
    return f"it is {wrong[0]}, classes are 0 .. {classes - 1}" if wrong else ""


def findings(study: Study) -> Iterator[Finding]:
    """What is the matter with the labels."""
    wrong = [
        study.place(split, index, detail=f"label: {why}")
        for split, rows in study.splits.items()
        if split not in study.unlabelled
        for index, target in enumerate(rows.targets)
        if index not in rows.broken and (why := _wrong(study, target))
    ]
    if wrong:
        yield Finding(
            "error",
            "label",
            f"{count(len(wrong), 'label')} cannot be trained or tested on",
            "Correct the data set, or remove the rows.",
            None,
            tuple(wrong),
        )
    counts = tally(study)
    if "train" not in counts:
        return
    if study.task == "regression":
        if not counts["train"].numbers["deviation"]:
            yield Finding(
                "warning", "constant", "The label is the same in every training row", "", None
            )
        return
    yield from _balance(study, counts)


def _balance(study: Study, counts: dict[str, LabelCounts]) -> Iterator[Finding]:
    train = counts["train"].counts
    absent = [name for name, rows in train.items() if not rows]
    tested = [
        name
        for name in absent
        if any(labels.counts[name] for split, labels in counts.items() if split != "train")
    ]
    if absent:
        also = f"; other splits have rows of {some(tested)}" if tested else ""
        yield Finding(
            "warning",
            "absent",
            f"{count(len(absent), 'class')} without a training row: {some(absent)}{also}",
            "They cannot be learned. Take them out of `classes`, or move rows into training.",
        )
    few = {name: rows for name, rows in train.items() if 0 < rows < _FEW}
    if few:
        listed = some(f"{name} ({rows})" for name, rows in few.items())
        yield Finding(
            "warning",
            "few",
            f"{count(len(few), 'class')} with fewer than {_FEW} training rows: {listed}",
            "Little can be learned of them, and their share of macro F1 is noise. Merge them, "
            "leave them out (`classes` with other_labels: drop), or collect more.",
        )
    present = {name: rows for name, rows in train.items() if rows}
    if len(present) > 1:
        large, small = max(present, key=train.__getitem__), min(present, key=train.__getitem__)
        ratio = train[large] / train[small]
        if ratio >= _UNEVEN:
            yield Finding(
                "warning" if ratio >= _SEVERE else "note",
                "imbalance",
                f"Classes are uneven: {large!r} has {train[large]:,} training rows, {small!r} "
                f"{train[small]:,} ({ratio:.0f} : 1)",
                "Accuracy is about the large ones; watch macro F1 (trainer.monitor: val/f1_macro)."
                if study.task == "single_label"
                else "",
            )
    for split in ("val", "test"):
        if split in counts:
            gone = [name for name in present if not counts[split].counts[name]]
            if gone:
                yield Finding(
                    "note",
                    "untested",
                    f"{count(len(gone), 'class')} of training without a row in {split}: "
                    f"{some(gone)}",
                    f"What is learned of them is not measured in {split}.",
                )
