from __future__ import annotations

import math

import numpy as np
import pytest

from fusionkit.analysis.words import MOST, words_of_experts


def test_parts_by_hand():
    # Four texts of one word each; the first expert serves the first two, the second all alike.
    weights = np.asarray([[1, 1], [1, 1], [0, 1], [0, 1]], dtype=np.float32)
    first, second = words_of_experts(["red", "red", "blue", "green"], weights)
    assert first == [("red", pytest.approx(math.log2(1 / 0.5)))]
    assert second == []  # what it serves is as usual


def test_weights_count_and_stop_words_do_not():
    texts = ["the cat is not on the mat", "a dog and the cat", "seven dogs of one"]
    weights = np.asarray([[0.9], [0.1], [0.0]], dtype=np.float32)
    (words,) = words_of_experts(texts, weights)
    found = [word for word, _ in words]
    assert found[:2] == ["mat", "not"]
    assert not {"the", "is", "a", "and", "of", "dogs"} & set(found)


def test_nothing_to_count():
    assert words_of_experts(["", "the"], np.ones((2, 3), dtype=np.float32)) == [[], [], []]
    assert words_of_experts(["cat", "dog"], np.zeros((2, 1), dtype=np.float32)) == [[]]
    many = " ".join(f"word{i}" for i in range(60))
    (words,) = words_of_experts([many, "zebra"], np.asarray([[1.0], [0.0]], dtype=np.float32))
    assert len(words) == MOST
