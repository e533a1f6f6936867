"""Augmentation as a config states it."""

import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from fusionkit.encoders.augment import check_augment, comes_first, make_transforms
from fusionkit.encoders.images import ImagePreprocessor
from fusionkit.encoders.timm_cnn import TimmCNN
from fusionkit.errors import ConfigError

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
LISTS = [
    ["RandomHorizontalFlip"],
    [{"name": "RandomCrop", "padding": 4}, "TrivialAugmentWide"],
    [{"name": "RandomResizedCrop", "scale": [0.5, 1.0]}, {"name": "ColorJitter", "hue": 0.1}],
    [{"name": "Resize", "size": 40}, "RandomCrop", "RandAugment", "RandomErasing"],
    [{"name": "RandomApply", "transforms": [{"name": "GaussianBlur", "kernel_size": 3}]}],
]


def image(height=50, width=70):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def preprocessor(augment, **kwargs):
    return ImagePreprocessor((32, 24), MEAN, STD, augment=augment, **kwargs)


@pytest.mark.parametrize("augment", LISTS)
def test_a_list_gives_the_backbones_size_and_survives_pickling(augment):
    assert check_augment(augment) is augment
    preprocess = pickle.loads(pickle.dumps(preprocessor(augment)))
    rows = [preprocess(image())["pixels"] for _ in range(8)]
    assert all(type(row) is torch.Tensor and row.shape == (3, 32, 24) for row in rows)
    assert not all(torch.equal(row, rows[0]) for row in rows)


def test_without_a_crop_the_backbones_own_come_first_and_normalisation_last():
    flipped = preprocessor([{"name": "RandomHorizontalFlip", "p": 1.0}], crop_pct=0.8)
    plain = preprocessor("none", crop_pct=0.8)
    torch.testing.assert_close(flipped(image())["pixels"], plain(image())["pixels"].flip(-1))
    inverted = preprocessor([{"name": "RandomInvert", "p": 1.0}])(image())["pixels"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    back = preprocessor(None)(image())["pixels"] * std + mean
    torch.testing.assert_close(inverted, (1 - back - mean) / std)


def test_a_crop_without_a_resize_crops_what_the_backbone_resizes():
    wide = image(32, 200)  # as high as the result: the crop moves from left to right only
    rows = [preprocessor(["RandomCrop"])(wide)["pixels"] for _ in range(4)]
    whole = v2.functional.to_dtype(v2.functional.to_image(wide), torch.float32, scale=True)
    whole = v2.functional.normalize(whole, list(MEAN), list(STD))
    for row in rows:
        windows = whole.unfold(2, 24, 1).permute(2, 0, 1, 3)
        assert (windows - row).abs().amax((1, 2, 3)).min() < 1e-6
    assert comes_first([{"name": "RandomApply", "transforms": ["Resize"]}]) == "nothing"


def test_presets_are_the_transforms_of_the_paper():
    crop, change = make_transforms("randaugment", (8, 9), InterpolationMode.LANCZOS)
    assert isinstance(crop, v2.RandomResizedCrop)
    assert isinstance(change, v2.RandAugment)
    assert crop.size == (8, 9)
    assert crop.interpolation is InterpolationMode.BICUBIC  # tensors have no Lanczos
    assert (change.num_ops, change.magnitude) == (2, 9)


def test_checking_leaves_the_random_state_alone_and_works_on_the_meta_device():
    state = torch.get_rng_state()
    with torch.device("meta"):
        check_augment(["RandAugment"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (["RandAugmnt"], "has no 'RandAugmnt' for a config. Did you mean 'RandAugment'"),
        (["os.system"], "torchvision.transforms.v2 has no 'os.system' for a config"),
        (["Lambda"], "has no 'Lambda' for a config"),
        (["functional"], "has no 'functional' for a config"),
        ([{"scale": 1}], "each is a transform's name, or {name: ..., ...} with its arguments"),
        (
            [{"name": "ColorJitter", "brightnes": 1}],
            "ColorJitter has no argument 'brightnes'. Did you mean 'brightness'? It takes: "
            "brightness, contrast, saturation, hue.",
        ),
        (
            [{"name": "ColorJitter", "brightness": -1}],
            "ColorJitter cannot be made with {'brightness': -1}: If brightness is a single number, "
            "it must be non negative. It takes: brightness",
        ),
        ([{"name": "RandomRotation", "degrees": 9, "interpolation": "best"}], "'best' is not a"),
        ([{"name": "RandomApply", "transforms": "Resize"}], "takes a list of transforms"),
        ([{"name": "Normalize", "mean": [0], "std": [1]}], "Normalize fails on an image of 37 x 4"),
        (["FiveCrop"], "FiveCrop makes a tuple of an image"),
        (["MixUp"], "MixUp fails on an image"),
        (["Grayscale"], "no image of three channels of uint8, but 1 of torch.uint8"),
        (
            [{"name": "RandomResizedCrop", "size": 64}],
            "RandomResizedCrop has not the encoder's size. End with a crop or Resize, and leave "
            "its `size` out",
        ),
        ([{"name": "Pad", "padding": 2}], "Pad has not the encoder's size"),
    ],
)
def test_what_cannot_be_done_is_said_when_the_encoder_is_built(augment, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=re.escape(message)):
        TimmCNN("resnet10t", "random", augment=augment)
