"""Which modality mattered: exact Shapley values over what a sample is shown of."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionkit.data.base import Sample, Stream
from fusionkit.data.folders import replace_whole
from fusionkit.errors import ConfigError, DataError
from fusionkit.training.predictor import Predictor
from fusionkit.training.run import read_data

MOST = 6  # roles: 2^n passes over the data

Subset = frozenset[str]


@dataclass(frozen=True, slots=True)
class Contributions:
    """What each role contributed to the predictions of S samples.

    Attributes:
        roles: ``main``, ``complement``, ...
        samples: Ids, S of them.
        targets: (S,) or (S, C), as the data set has them.
        values: v of each subset of roles, (S,): what the model makes of a sample of which only
            those are shown. See :func:`value_of`.
        shapley: (S, roles). They add up to v of all roles less v of none.
        interaction: (S,), the Shapley interaction of each pair of roles, added up: above 0 where
            roles say more together than the sum of what each says, below 0 where they repeat each
            other.
        scores: Of each subset, the share of right predictions (classes) or the mean absolute
            error (numbers).
    """

    roles: tuple[str, ...]
    samples: tuple[str, ...]
    targets: NDArray[np.float64]
    values: Mapping[Subset, NDArray[np.float64]]
    shapley: NDArray[np.float64]
    interaction: NDArray[np.float64]
    scores: Mapping[Subset, float]


def shapley_values(
    roles: Sequence[str], value: Callable[[Subset], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """phi_r = sum over S without r of |S|! (n - |S| - 1)! / n! (v(S + r) - v(S)).

    Args:
        roles: n of them.
        value: v of a subset, (samples,).

    Returns:
        (samples, n).
    """
    n = len(roles)
    columns = []
    for role in roles:
        others = [other for other in roles if other != role]
        phi = np.zeros_like(value(frozenset()))
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for chosen in itertools.combinations(others, size):
                without = frozenset(chosen)
                phi = phi + weight * (value(without | {role}) - value(without))
        columns.append(phi)
    return np.stack(columns, axis=1)


def interactions(
    roles: Sequence[str], value: Callable[[Subset], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """The Shapley interaction index (Grabisch and Roubens, 1999), summed over pairs, (samples,).

    Of two roles it is v(both) - v(one) - v(other) + v(none).
    """
    n = len(roles)
    total = np.zeros_like(value(frozenset()))
    for first, second in itertools.combinations(roles, 2):
        others = [role for role in roles if role not in (first, second)]
        for size in range(n - 1):
            weight = math.factorial(size) * math.factorial(n - size - 2) / math.factorial(n - 1)
            for chosen in itertools.combinations(others, size):
                rest = frozenset(chosen)
                total = total + weight * (
                    value(rest | {first, second})
                    - value(rest | {first})
                    - value(rest | {second})
                    + value(rest)
                )
    return total


def value_of(
    predicted: NDArray[np.float64], targets: NDArray[np.float64], task: str
) -> NDArray[np.float64]:
    """v of each sample, (S,), more being better.

    The probability of the true class; in multi_label the mean over classes of the probability of
    what is true of each; in regression the absolute error, negative.

    Args:
        predicted: (S, C) probabilities, or (S,) numbers.
        targets: (S,) class indices or numbers, or (S, C) zeros and ones.
        task: Of the data set.
    """
    if task == "single_label":
        return predicted[np.arange(len(targets)), targets.astype(int)]
    if task == "multi_label":
        found: NDArray[np.float64] = np.where(targets > 0.5, predicted, 1 - predicted).mean(axis=1)
        return found
    return -np.abs(predicted - targets)


def contributions(
    predictor: Predictor, split: str = "test", watch: Callable[[int, int], None] | None = None
) -> Contributions:
    """Leave out every subset of roles in turn; learned stand-ins take the place of what is hidden.

    Nothing at all is shown to no model: v of the empty subset is that of the training split's class
    frequencies, or of its mean target.

    Args:
        predictor: Trained with ``missing.allow`` for all of its roles.
        split: Of its data.
        watch: Told how many passes of how many are done.

    Raises:
        ConfigError: The model cannot do without some role, or has too many.
        DataError: The split is empty, a stream, or has samples that lack a field as they are.
    """
    roles = tuple(predictor.model.fusion.encoders)
    _check_roles(roles, predictor)
    dataset, splits = read_data(predictor.experiment, {})
    samples = splits[split]
    if isinstance(samples, Stream) or not len(samples):
        raise DataError(f"The {split} split is {'a stream' if samples else 'empty'}.")
    fields = {role: predictor.description.fields[role] for role in roles}
    _check_whole(samples, fields)
    task, outputs = dataset.task, dataset.outputs
    targets = _targets(samples, task, outputs)
    prior = _prior(splits["train"], task, outputs)
    subsets = [
        frozenset(chosen)
        for size in range(1, len(roles) + 1)
        for chosen in itertools.combinations(roles, size)
    ]
    guessed = np.broadcast_to(prior, (len(samples), *prior.shape))
    predictions = {frozenset[str](): guessed}
    for number, subset in enumerate(subsets):
        hidden = [fields[role] for role in roles if role not in subset]
        predicted = predictor.predict_samples(_Without(samples, hidden))
        predictions[subset] = predicted.double().numpy()
        if watch:
            watch(number + 1, len(subsets))
    values = {s: value_of(p, targets, task) for s, p in predictions.items()}
    return Contributions(
        roles,
        tuple(sample.id for sample in samples),
        targets,
        values,
        shapley_values(roles, values.__getitem__),
        interactions(roles, values.__getitem__),
        {s: _score(p, targets, task) for s, p in predictions.items()},
    )


class _Without(Sequence[Sample]):
    """Samples of which some fields are hidden."""

    def __init__(self, samples: Sequence[Sample], hidden: Sequence[str]) -> None:
        self._samples = samples
        self._hidden = frozenset(hidden)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        sample = self._samples[index]
        shown = {name: raw for name, raw in sample.fields.items() if name not in self._hidden}
        return replace(sample, fields=shown)


def _check_roles(roles: Sequence[str], predictor: Predictor) -> None:
    lacking = [role for role in roles if role not in predictor.model.fusion.stand_ins]
    if lacking:
        raise ConfigError(
            f"This model cannot do without {' and '.join(lacking)}, so nothing can be left out. "
            f"Train one that can: --missing.allow '[{', '.join(roles)}]' --missing.dropout 0.3"
        )
    if len(roles) > MOST:
        raise ConfigError(f"{len(roles)} roles take 2^{len(roles)} passes; {MOST} are the most.")


def _check_whole(samples: Sequence[Sample], fields: Mapping[str, str]) -> None:
    for sample in samples:
        for role, name in fields.items():
            if sample.fields.get(name) is None:
                raise DataError(
                    f"{sample.origin}: field {name!r} of {role} is missing; contributions are of "
                    f"samples that have all. Leave out --missing.mask, or such rows."
                )


def _targets(samples: Sequence[Sample], task: str, outputs: int) -> NDArray[np.float64]:
    if task != "multi_label":
        return np.asarray([sample.target for sample in samples], dtype=float)
    found = np.zeros((len(samples), outputs))
    for row, sample in enumerate(samples):
        found[row, list(sample.target)] = 1  # type: ignore[arg-type]
    return found


def _prior(samples: Sequence[Sample] | Stream, task: str, outputs: int) -> NDArray[np.float64]:
    targets = _targets(list(samples), task, outputs)
    if task == "single_label":
        return np.bincount(targets.astype(int), minlength=outputs) / len(targets)
    return np.asarray(targets.mean(axis=0))


def _score(predicted: NDArray[np.float64], targets: NDArray[np.float64], task: str) -> float:
    if task == "single_label":
        return float((predicted.argmax(axis=1) == targets).mean())
    if task == "multi_label":
        return float(((predicted > 0.5) == (targets > 0.5)).all(axis=1).mean())
    return float(np.abs(predicted - targets).mean())


def save(found: Contributions, path: Path) -> None:
    """Write a CSV with a row for each sample: phi of each role, interaction, v of each subset."""

    def write(place: Path) -> None:
        with place.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            named = {"+".join(r for r in found.roles if r in s) or "none": s for s in found.values}
            writer.writerow(["id", *found.roles, "interaction", *(f"v({name})" for name in named)])
            columns = [found.values[subset] for subset in named.values()]
            for row, name in enumerate(found.samples):
                numbers = [*found.shapley[row], found.interaction[row], *(c[row] for c in columns)]
                writer.writerow([name, *(f"{number:.6g}" for number in numbers)])

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(path, write)
