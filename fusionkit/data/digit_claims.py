"""Handwritten digits with claims about them: a data set that needs no download.

The images are the 1,797 digits that ship with scikit-learn (E. Alpaydin and C. Kaynak, Optical
Recognition of Handwritten Digits, UCI, CC BY 4.0), 8 x 8 grey levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from fusionkit.data.base import Dataset, Sample, Split, Task
from fusionkit.data.claims import Claim, claims
from fusionkit.errors import DataError

# RandomState: numpy promises never to change its stream, so the images held out from the shipped
# encoders stay held out.
_SPLIT_SEED = 2312
_TRAIN, _VAL = 0.7, 0.1  # the rest is the test split


class DigitClaims(Dataset):
    """Does the claim hold of the handwritten digit? ("the digit is greater than four").

    Neither modality alone says more than chance: half of the claims made of each image hold, and
    each sentence holds in half of the pairs it stands in (one more or less where it stands in an
    odd number of them). Split by image, stratified by digit.

    Args:
        claims_per_image: Claims made of each image; even, at least 2. Half of them hold.
        seed: Draws the claims. The split of the images does not depend on it.

    Raises:
        DataError: ``claims_per_image`` is odd, less than 2 or more than can be made.
    """

    task: Task = "single_label"
    fields: Mapping[str, str] = {"image": "image", "claim": "text"}
    augment: ClassVar = "none"  # a mirrored digit is none

    def __init__(self, claims_per_image: int = 8, seed: int = 0) -> None:
        if claims_per_image < 2 or claims_per_image % 2 or claims_per_image > 40:
            raise DataError(
                f"claims_per_image must be an even number from 2 to 40, given {claims_per_image}: "
                f"half of the claims made of an image hold."
            )
        self.claims_per_image = claims_per_image
        self.seed = seed

    @property
    def classes(self) -> Sequence[str]:
        return ("does not hold", "holds")

    def split(self, name: Split) -> Sequence[Sample]:
        if name == "predict":
            return ()
        images, digits = load_digits()
        held = split_indices(digits)[name]
        language = claims()
        rng = np.random.RandomState([self.seed, ("train", "val", "test").index(name)])
        pairs = pair(digits[held], language, self.claims_per_image, rng)
        samples = []
        for index, row in zip(held.tolist(), pairs.tolist(), strict=True):
            image = Image.fromarray(images[index])
            for place, number in enumerate(row):
                claim = language[number]
                samples.append(
                    Sample(
                        id=f"{index}-{place}",
                        fields={"image": image, "claim": claim.text},
                        target=int(int(digits[index]) in claim.holds_for),
                        origin=f"scikit-learn digits, image {index}, claim {place}",
                    )
                )
        return samples


@cache
def load_digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images (1797, 8, 8) uint8, ink bright on dark, 0 .. 255; digits (1797,) int."""
    from sklearn.datasets import load_digits as load  # here: nothing else in data needs sklearn

    bunch = load()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return images, np.asarray(bunch.target)


def split_indices(digits: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Positions of the images of ``train``, ``val`` and ``test``, ascending, stratified by digit.

    The script that pretrains the shipped encoders takes its images from here as well.
    """
    rng = np.random.RandomState(_SPLIT_SEED)
    parts: dict[str, list[np.ndarray[Any, Any]]] = {"train": [], "val": [], "test": []}
    for digit in range(10):
        positions = rng.permutation(np.flatnonzero(digits == digit))
        first = round(_TRAIN * len(positions))
        second = first + round(_VAL * len(positions))
        parts["train"].append(positions[:first])
        parts["val"].append(positions[first:second])
        parts["test"].append(positions[second:])
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def pair(
    digits: np.ndarray[Any, Any],
    language: Sequence[Claim],
    claims_per_image: int,
    rng: np.random.RandomState,
) -> np.ndarray[Any, Any]:
    """Choose claims for images so that neither side predicts the label.

    Images take turns. Each takes one claim that holds and one that does not, of those it does not
    have yet: the ones whose own score of true against false most needs it, the least used
    first, the rest by lot.

    Args:
        digits: (n,) int, the digit in each image.
        language: The claims to choose from.
        claims_per_image: m, even.
        rng: Decides the order of the images and breaks ties.

    Returns:
        (n, m) int: for each image the positions of its claims in ``language``, shuffled. Half of
        a row holds. A claim's pairs that hold and that do not differ by at most one.
    """
    holds = np.array([[digit in claim.holds_for for claim in language] for digit in range(10)])
    surplus = np.zeros(len(language), dtype=np.int64)  # pairs that hold - pairs that do not
    used = np.zeros(len(language), dtype=np.int64)
    rows = np.empty((len(digits), claims_per_image), dtype=np.int64)
    for place in range(0, claims_per_image, 2):
        for image in rng.permutation(len(digits)):
            for offset, sign in enumerate((1, -1)):
                fits = holds[digits[image]] == (sign == 1)
                fits[rows[image, : place + offset]] = False
                order = np.lexsort((rng.rand(len(language)), used, sign * surplus))
                chosen = order[fits[order]][0]
                rows[image, place + offset] = chosen
                surplus[chosen] += sign
                used[chosen] += 1
    return np.stack([rng.permutation(row) for row in rows])
