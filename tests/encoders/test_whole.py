"""`whole`: image encoders see all of a long image, not only the middle of it."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from cases_clip import CASES as CLIP
from cases_hf_vit import CASES as HF
from cases_timm import CASES as TIMM
from PIL import Image

from fusionkit.encoders.timm_vit import TimmViT
from fusionkit.errors import ConfigError

CASES = {name: variants for name, variants in {**CLIP, **HF, **TIMM}.items() if "text" not in name}
LONG = Image.fromarray(np.tile(np.linspace(0, 255, 400, dtype=np.uint8), (100, 1)))
PLAIN = [Image.new("L", (400, 100), grey) for grey in (0, 255)]


@pytest.mark.parametrize("name", CASES)
def test_both_ends_are_seen(name):
    encoder = next(iter(CASES[name].values()))("").make()
    assert inspect.signature(type(encoder)).parameters["whole"].default is None
    assert encoder.whole is None
    encoder.whole = "squash"
    squash = encoder.preprocessor(train=False)
    black, white = (squash(image)["pixels"] for image in PLAIN)

    def shares(whole: str | None) -> np.ndarray:
        encoder.whole = whole
        made = encoder.preprocessor(train=False)
        pixels = made(LONG)["pixels"]
        assert pixels.shape == white.shape
        assert whole is None or made.kept(400, 100) == 1
        return ((pixels - black) / (white - black))[0].numpy()  # grey, 0..1

    middle, stretched, barred = shares(None), shares("squash"), shares("border")
    if name != "hf_vit":  # that one is published with stretched images
        assert np.ptp(middle) < 0.4
    assert np.ptp(stretched) > 0.95
    assert np.ptp(stretched, axis=0).max() < 0.01  # rows of pixels are alike
    side = len(barred)
    assert np.ptp(barred[side // 2]) > 0.9
    assert np.ptp(barred[0]) < 0.01  # a bar
    assert np.ptp(barred[-1]) < 0.01


def test_what_it_may_be():
    with pytest.raises(ConfigError, match="whole is squash, border or null, given 'crop'"):
        TimmViT("vit_tiny_patch16_224", weights="random", whole="crop").preprocessor(False)
