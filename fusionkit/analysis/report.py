"""Everything that the page of a run shows, as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fusionkit.analysis.media import for_page
from fusionkit.analysis.words import words_of_experts
from fusionkit.config.schema import Experiment
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.data.base import Dataset, Sample, Stream
from fusionkit.errors import DataError
from fusionkit.training.folders import CONFIG, METRICS, logged_by_epoch
from fusionkit.training.report import metric_title, value_text
from fusionkit.training.routing import FILE as ROUTING
from fusionkit.training.run import read_data
from fusionkit.training.samples import FILE as SAMPLES

SHOWN = 400  # samples in the browser
_TOP = 3  # classes of a prediction
_IMAGES = 8  # of each expert


def report(folder: Path, other: Path | None = None, shown: int = SHOWN) -> dict[str, Any]:
    """What the page of a run shows.

    Args:
        folder: Of a finished run.
        other: Of a run to compare it with.
        shown: Samples in the browser, spread evenly over the split.

    Raises:
        FusionkitError: A file of the run or its data cannot be read.
    """
    found = _run(folder)
    experiment = _experiment(folder)
    dataset, splits = read_data(experiment, {})
    classes = None if dataset.classes is None else [str(name) for name in dataset.classes]
    kept, about = _samples(folder)
    found |= {
        "task": dataset.task,
        "classes": classes,
        "split": about["split"],
        "baselines": [_run(place) | {"label": place.name} for place in _baselines(folder)],
        "other": None if other is None else _run(other) | {"label": str(other)},
    }
    rows = splits[about["split"]]
    samples = None if isinstance(rows, Stream) else rows
    weights = _weights(kept, about)
    places = np.unique(np.linspace(0, len(kept) - 1, min(shown, len(kept))).astype(int))
    found["samples"] = [
        _sample(kept[place], samples, dataset, None if weights is None else weights[place])
        for place in places
    ]
    if other is not None:
        _agree(found["samples"], [kept[place] for place in places], other, dataset.task)
    found["experts"] = (
        None if weights is None else _experts(kept, samples, dataset, weights, places, classes)
    )
    return found


def _experiment(folder: Path) -> Experiment:
    import yaml

    path = folder / CONFIG
    return experiment_from_mapping(yaml.safe_load(path.read_text("utf-8")), str(path))


def _run(folder: Path) -> dict[str, Any]:
    """Figures and curves of one run, without its samples."""
    if not (folder / METRICS).is_file():
        raise DataError(f"{folder} holds no {METRICS}: the run has not finished yet.")
    summary = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    config = (folder / CONFIG).read_text(encoding="utf-8")
    curves: dict[str, list[list[float]]] = {}
    for epoch, name, value in logged_by_epoch(folder):
        if np.isfinite(value):
            curves.setdefault(name, []).append([epoch, value])
    return {
        "folder": str(folder),
        "config": config,
        "name": _name(config, folder),
        "metrics": [
            {"title": metric_title(name).removesuffix(" %"), "text": value_text(name, value)}
            for name, value in summary["metrics"].items()
        ],
        "trained": summary["trained_parameters"],
        "total": summary["all_parameters"],
        "seconds": summary["seconds"],
        "best_epoch": summary["best_epoch"],
        "curves": {name: sorted(points) for name, points in curves.items()},
        "routing": _routing(folder),
    }


def _name(config: str, folder: Path) -> str:
    import yaml

    return str(yaml.safe_load(config).get("name") or folder.name)


def _baselines(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"baselines/*/{METRICS}"))


def _routing(folder: Path) -> dict[str, Any] | None:
    """Importance by epoch, layer and expert, the rest by epoch and layer."""
    if not (folder / ROUTING).is_file():
        return None
    rows = pq.read_table(folder / ROUTING).to_pylist()
    epochs = sorted({row["epoch"] for row in rows})
    layers = sorted({row["layer"] for row in rows})
    at = {(row["epoch"], row["layer"]): row for row in rows}

    def by_layer(key: str) -> list[list[Any]]:
        return [[_short(at[epoch, layer][key]) for layer in layers] for epoch in epochs]

    return {
        "epochs": epochs,
        "layers": layers,
        "experts": len(rows[0]["importance"]),
        **{key: by_layer(key) for key in ("importance", "entropy", "effective_experts", "cv2")},
    }


def _short(value: Any) -> Any:
    return [round(x, 5) for x in value] if isinstance(value, list) else round(value, 5)


def _samples(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    path = folder / SAMPLES
    if not path.is_file():
        raise DataError(
            f"{folder} holds no {SAMPLES}; it is from before runs kept it. Train again, or "
            f"continue the run with `fusionkit fit --ckpt_path {folder}`."
        )
    table = pq.read_table(path)
    about = {k.decode(): json.loads(v) for k, v in (table.schema.metadata or {}).items()}
    return table.to_pylist(), about


def _weights(
    kept: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> NDArray[np.float32] | None:
    """(S, N, k)."""
    if "layers" not in about:
        return None
    flat = np.asarray([row["routing"] for row in kept], dtype=np.float32)
    return flat.reshape(len(kept), len(about["layers"]), about["experts"])


def _sample(
    row: Mapping[str, Any],
    samples: Sequence[Sample] | None,
    dataset: Dataset,
    weights: NDArray[np.float32] | None,
) -> dict[str, Any]:
    made: dict[str, Any] = {"index": row["index"], **_outcome(row, dataset.task)}
    if samples is not None:
        sample = samples[row["index"]]
        made["id"] = str(sample.id)
        fields = {
            name: for_page(sample.fields.get(name), modality)  # type: ignore[arg-type]
            for name, modality in dataset.fields.items()
        }
        made["fields"] = {name: value for name, value in fields.items() if value}
    if weights is not None:  # two digits are enough for a colour
        made["route"] = (100 * weights).round().astype(int).tolist()
    return made


def _outcome(row: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Target and prediction: of classes their indices, and the probabilities of the likeliest."""
    target, predicted = row["target"], row["prediction"]
    if task == "regression":
        return {"target": target, "predicted": predicted, "right": None}
    chances = np.asarray(predicted)
    likely = np.argsort(-chances, kind="stable")[:_TOP]
    top = [[int(i), round(float(chances[i]), 4)] for i in likely]
    if task == "multi_label":
        true = [i for i, on in enumerate(target) if on]
        chosen = [int(i) for i in np.flatnonzero(chances > 0.5)]
        return {"target": true, "predicted": chosen, "top": top, "right": true == chosen}
    return {"target": target, "predicted": top[0][0], "top": top, "right": top[0][0] == target}


def _agree(
    shown: Sequence[dict[str, Any]], kept: Sequence[Mapping[str, Any]], other: Path, task: str
) -> None:
    """Say of each sample that is shown whether the other run is right about it."""
    theirs = {row["index"]: row for row in _samples(other)[0]}
    for sample, ours in zip(shown, kept, strict=True):
        row = theirs.get(ours["index"])
        if row is None or row["target"] != ours["target"]:
            raise DataError(
                f"{other} was not tested on the same samples; compare runs on the same data."
            )
        outcome = _outcome(row, task)
        sample["other"] = {"predicted": outcome["predicted"], "right": outcome["right"]}


def _experts(
    kept: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample] | None,
    dataset: Dataset,
    weights: NDArray[np.float32],
    places: NDArray[Any],
    classes: Sequence[str] | None,
) -> list[list[dict[str, Any]]]:
    """A card for each layer and expert."""
    count, layers, experts = weights.shape
    flat = weights.reshape(count, layers * experts)
    words: list[list[tuple[str, float]]] = [[] for _ in range(layers * experts)]
    texts = [name for name, modality in dataset.fields.items() if modality == "text"]
    if samples is not None and texts:
        read = (samples[row["index"]].fields for row in kept)
        said = [" ".join(str(fields.get(name) or "") for name in texts) for fields in read]
        words = words_of_experts(said, flat)
    served = None if classes is None else _served(kept, flat, len(classes), dataset.task)
    best = np.argsort(-flat[places], axis=0, kind="stable")[:_IMAGES]
    cards = [
        {
            "words": [[word, round(part, 5)] for word, part in words[i]],
            "samples": [int(place) for place in best[:, i]],
            "classes": [] if served is None else served[i],
            "weight": round(float(flat[:, i].mean()), 5),
            "first": round(float((weights[:, i // experts].argmax(1) == i % experts).mean()), 5),
        }
        for i in range(layers * experts)
    ]
    return [cards[layer * experts : (layer + 1) * experts] for layer in range(layers)]


def _served(
    kept: Sequence[Mapping[str, Any]], flat: NDArray[np.float32], classes: int, task: str
) -> list[list[list[float]]]:
    """For each expert its mean weight over the samples of a class, the largest first."""
    if task == "multi_label":
        member = np.asarray([row["target"] for row in kept], dtype=np.float32)
    else:
        member = np.eye(classes, dtype=np.float32)[[row["target"] for row in kept]]
    sizes = np.maximum(member.sum(axis=0), 1)
    means = (flat.T @ member) / sizes
    order = np.argsort(-means, axis=1, kind="stable")[:, :8]
    return [[[int(c), round(float(means[i, c]), 4)] for c in order[i]] for i in range(len(means))]
