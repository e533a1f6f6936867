"""Raw values that the contract is run on where an encoder brings none."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from fusionkit.encoders.base import Modality
from fusionkit.testing import samples

LENGTHS = {
    "text": len,
    "audio": lambda raw: len(raw[0]),
    "video": len,
}


@pytest.mark.parametrize("modality", sorted(set(get_args(Modality)) - {"other"}))
def test_samples_differ_and_are_always_the_same(modality):
    found, again = samples(modality), samples(modality)
    assert len(found) >= 3
    shown = [repr(raw) if isinstance(raw, dict) else _bytes(raw) for raw in found]
    assert len(set(shown)) == len(shown)
    assert shown == [repr(raw) if isinstance(raw, dict) else _bytes(raw) for raw in again]
    if modality in LENGTHS:
        assert len({LENGTHS[modality](raw) for raw in found}) >= 3


def _bytes(raw):
    parts = raw if isinstance(raw, tuple) else (raw,)
    return b"".join(np.asarray(part).tobytes() for part in parts)


def test_vectors_and_tables_are_as_asked_for():
    assert {len(raw) for raw in samples("vector", width=3)} == {3}
    rows = samples("table", columns=["age", "size"])
    assert all(list(row) == ["age", "size"] for row in rows)
    assert rows[-1] == {"age": None, "size": None}


def test_images_have_several_sizes_and_one_is_grey():
    shapes = {raw.shape for raw in samples("image")}
    assert len(shapes) == 4
    assert 2 in {len(shape) for shape in shapes}


def test_sound_is_within_full_scale():
    assert all(0.1 < np.abs(array).max() <= 1 for array, _ in samples("audio"))


def test_other_modalities_have_none():
    with pytest.raises(ValueError, match="modality 'other'"):
        samples("other")
