"""Examine the data of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import Subset

from fusionkit.config.schema import Experiment
from fusionkit.data.base import Dataset, Split
from fusionkit.data.loading import worker_count
from fusionkit.doctor import audio, duplicates, files, images, labels, leakage, tables, texts
from fusionkit.doctor.findings import GRADES, Finding, Place, count
from fusionkit.doctor.look import Examiner, walk
from fusionkit.doctor.report import Report
from fusionkit.doctor.study import UNLABELLED, FieldStudy, Reader, Study
from fusionkit.errors import DataError, RowsError, WeightsError
from fusionkit.fusion.model import FusionModel
from fusionkit.training.assemble import (
    check_presence,
    check_trainable,
    dry_build,
    field_by_role,
    meta_model,
    read_splits,
)

_SPLITS: tuple[Split, ...] = ("train", "val", "test")

Watch = Callable[[str, int, int | None], None]  # split, rows seen, rows there are

_BY_MODALITY = {
    "image": images.findings,
    "text": texts.findings,
    "audio": audio.findings,
    "table": tables.findings,
}


def examine(
    experiment: Experiment, workers: int | None = None, watch: Watch | None = None
) -> Report:
    """Look at every value that training would read, as it would read it.

    Args:
        experiment: What reads the data; its ``baselines`` count as well.
        workers: Processes; None for as many as training has.
        watch: Called as rows are seen.

    Raises:
        FusionkitError: The experiment cannot be built, whatever its data.
    """
    try:
        dataset: Dataset = experiment.data.build()
    except (DataError, OSError) as error:
        return Report.of_errors(experiment.name, _unusable([error]))
    found: list[Finding] = []
    splits, unlabelled = _open(experiment, dataset, found)
    fields = _fields(experiment, dataset, found)
    classes = dataset.classes if "train" in splits else None
    study = Study(dataset.task, classes, fields, unlabelled=unlabelled)
    examiner = Examiner({name: (field.modality, field.readers) for name, field in fields.items()})
    number = worker_count(experiment.loader) if workers is None else workers
    for split, samples in splits.items():
        study.start(split)
        total = len(samples) if hasattr(samples, "__len__") else None  # nobody knows a stream's
        for rows in walk(samples, examiner, number):
            for row in rows:
                study.add(split, row)
            if watch is not None:
                watch(split, len(study.splits[split]), total)
    duplicates.group_near(study)
    found += _judge(study)
    found.sort(key=lambda finding: GRADES.index(finding.grade))
    return Report(experiment.name, study, found)


def _open(
    experiment: Experiment, dataset: Dataset, found: list[Finding]
) -> tuple[dict[str, Any], set[str]]:
    """The splits that have rows, and which of them have no labels.

    Rows of splits that cannot be made are taken from those to predict, which need no labels.
    """
    splits: dict[str, Any] = {}
    failed: dict[str, tuple[DataError | OSError, list[str]]] = {}
    for name in _SPLITS:
        try:
            samples = read_splits(experiment, dataset, [name])[name]
            if name == "train":
                check_trainable(dataset, samples)
            if samples:
                splits[name] = samples
        except (DataError, OSError) as error:
            failed.setdefault(str(error), (error, []))[1].append(name)
    if not failed:
        return splits, set()
    found += _unusable([error for error, _ in failed.values()])
    if "train" not in splits:
        splits.clear()
    names = [name for _, several in failed.values() for name in several]
    split = names[0] if splits and len(names) == 1 else UNLABELLED
    try:
        rest = _rest(dataset.split("predict"), [dataset.split(name) for name in splits])  # type: ignore[arg-type]
    except (DataError, OSError) as error:
        if str(error) not in failed:
            found += _unusable([error])
        rest = None
    return (splits, set()) if not rest else ({**splits, split: rest}, {split})


def _rest(every: Any, known: Iterable[Any]) -> Any:
    """The rows that stand in none of the splits; None if that cannot be said."""
    if not hasattr(every, "__getitem__"):
        return None
    origins = {sample.origin for samples in known for sample in samples}
    left = [place for place, sample in enumerate(every) if sample.origin not in origins]
    return Subset(every, left) if len(left) + len(origins) == len(every) else None


def _unusable(errors: Iterable[DataError | OSError]) -> list[Finding]:
    """The findings of what keeps splits from being made."""
    labels: dict[str, None] = {}
    found = []
    for error in errors:
        if isinstance(error, RowsError):
            labels.update(dict.fromkeys(error.errors))
        else:
            found.append(Finding("error", "data", str(error).rstrip(".")))
    if labels:
        places = tuple(Place("", i, "", "", detail=text) for i, text in enumerate(labels))
        found.append(
            Finding(
                "error",
                "label",
                f"{count(len(labels), 'label')} cannot be used",
                "Correct them, remove the rows, or declare `classes` with other_labels: drop, "
                "which leaves out rows of other classes.",
                None,
                places,
            )
        )
    return found


def _fields(
    experiment: Experiment, dataset: Dataset, found: list[Finding]
) -> dict[str, FieldStudy]:
    """The fields that encoders read, those of baselines over the same data as well."""
    outputs = _outputs(dataset)
    fields: dict[str, FieldStudy] = {}
    known: set[str] = set()
    for label, other in {"": experiment, **experiment.baselines}.items():
        if repr((other.data, other.missing.mask)) != repr(
            (experiment.data, experiment.missing.mask)
        ):
            found += _elsewhere(label, other)
            continue
        by_role = field_by_role(other, dataset)
        model = meta_model(other, outputs, dataset.task == "regression")
        for role, name in by_role.items():
            if role not in model.fusion.encoders:
                continue
            component = other.main if role == "main" else _complement(other, role)
            may_lack = role in model.fusion.stand_ins
            key = repr((name, component, may_lack, other.missing.unreadable))
            if key not in known:
                known.add(key)
                who = f"{role} {component.name!r}" + (f" of {label!r}" if label else "")
                field = fields.setdefault(name, FieldStudy(dataset.fields[name], []))
                field.readers.append(_reader(other, model, role, who, found))
    return fields


def _reader(
    experiment: Experiment, model: FusionModel, role: str, who: str, found: list[Finding]
) -> Reader:
    encoder: Any = model.fusion.encoders[role]
    may_lack = role in model.fusion.stand_ins
    try:
        made = encoder.encoder.preprocessor(train=False)
    except WeightsError as error:
        made = None
        found.append(
            Finding(
                "warning",
                "preprocessor",
                f"The preprocessing of {who} cannot be had, so its field is not read as training "
                f"reads it, and lengths are in words: {str(error).rstrip('.')}",
                "Training needs it.",
            )
        )
    return Reader(who, role, made, may_lack, experiment.missing.unreadable and may_lack)


def _complement(experiment: Experiment, role: str) -> Any:
    number = 0 if role == "complement" else int(role.removeprefix("complement_")) - 1
    return experiment.complements[number].encoder


def _outputs(dataset: Dataset) -> int:
    try:
        return dataset.outputs
    except (DataError, OSError):  # said where the splits are opened
        return 2


def _elsewhere(label: str, baseline: Experiment) -> Iterator[Finding]:
    """What stops a baseline over other data ahead of training; its values are not read."""
    try:
        model, dataset, fields = dry_build(baseline)
        splits = read_splits(baseline, dataset, _SPLITS)
        check_trainable(dataset, splits["train"])
        check_presence(baseline, model, fields, splits)
    except DataError as error:
        title = f"Baseline {label!r}: {str(error).rstrip('.')}"
        yield Finding("error", "data", title)
        return
    yield Finding(
        "note",
        "baseline",
        f"Baseline {label!r} reads other data, which was not looked through",
        "Examine it with a config of its own.",
    )


def _judge(study: Study) -> Iterable[Finding]:
    yield from files.broken(study)
    for name, field in study.fields.items():
        yield from files.findings(study, name)
        if field.modality in _BY_MODALITY:
            yield from _BY_MODALITY[field.modality](study, name)
    yield from labels.findings(study)
    yield from leakage.findings(study)
    yield from duplicates.findings(study)
    for name in study.fields:
        yield from duplicates.near_findings(study, name)
