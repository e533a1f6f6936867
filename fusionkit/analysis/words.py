"""Which words the samples of an expert have more often than others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST = 24  # words for each expert
_VOCABULARY = 5000
_KEPT = {  # in the usual list of stop words, though they say something
    "no", "not", "nor", "none", "never", "nothing", "above", "below", "top", "bottom", "empty",
    "full", "front", "back", "side", "fire", "system", "one", "two", "three", "four", "five", "six",
    "eight", "nine", "ten", "eleven", "twelve", "fifteen", "twenty", "forty", "fifty", "sixty",
    "hundred", "first", "last",
}  # fmt: skip


def words_of_experts(
    texts: Sequence[str], weights: NDArray[np.float32]
) -> list[list[tuple[str, float]]]:
    """The words that set each expert's samples apart, with their part in it.

    With q_w the share of word w among the words of an expert's samples, each counted by the
    expert's weight, and p_w its share among all, the part is q_w log2(q_w / p_w): their sum over
    words is the divergence of q from p. Stop words are left out, numbers and negations are not.

    Args:
        texts: S of them.
        weights: (S, E), how much each sample used each of E experts.

    Returns:
        For each expert up to :data:`MOST` words, largest part first; none if all are as usual.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

    vectorizer = CountVectorizer(
        stop_words=sorted(ENGLISH_STOP_WORDS - _KEPT),
        token_pattern=r"(?u)\b\w+\b",
        max_features=_VOCABULARY,
        binary=True,
    )
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:  # no text has a word that counts
        return [[] for _ in range(weights.shape[1])]
    names = vectorizer.get_feature_names_out()
    usual = np.asarray(counts.sum(axis=0), dtype=float).ravel()
    usual /= usual.sum()
    served = np.asarray((counts.T @ weights).T, dtype=float)
    found: list[list[tuple[str, float]]] = []
    for row in served:
        if row.sum() == 0:
            found.append([])
            continue
        share = row / row.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = np.where(share > 0, share * np.log2(share / usual), 0.0)
        best = np.argsort(-parts, kind="stable")[:MOST]
        found.append([(str(names[i]), float(parts[i])) for i in best if parts[i] > 0])
    return found
