"""Nearly equal values, found through parts of their hashes that are equal, not by comparing all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Indices = NDArray[np.int64]

_MOST = 200  # neighbours that one is compared with for one key: bounds the work on odd data


def candidates(keys: NDArray[Any]) -> Iterator[tuple[Indices, Indices]]:
    """Pairs with an equal key, each pair once per call, some at a time.

    Args:
        keys: (n,).
    """
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    at = np.arange(len(keys))
    for lag in range(1, min(len(keys), _MOST + 1)):
        at = at[at + lag < len(keys)]
        at = at[ranked[at] == ranked[at + lag]]
        if not len(at):
            return
        yield order[at], order[at + lag]


def group(
    digests: list[bytes],
    keys: Iterator[NDArray[Any]],
    close: Callable[[Indices, Indices], NDArray[np.bool_]],
) -> dict[bytes, int]:
    """Number of the group of nearly equal ones, by digest; only of those that are in one.

    Args:
        digests: (n) of what is compared.
        keys: Several (n,); what is nearly equal has one of them in common.
        close: Which of some pairs are nearly equal, given their places.
    """
    first, second = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for column in keys:
        for a, b in candidates(column):
            near = close(a, b)
            first.append(a[near])
            second.append(b[near])
    a, b = np.concatenate(first), np.concatenate(second)
    if not len(a):
        return {}
    graph = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(len(digests), len(digests)))
    number = connected_components(graph, directed=False)[1]
    return {digests[i]: int(number[i]) for i in np.unique(np.concatenate([a, b])).tolist()}
