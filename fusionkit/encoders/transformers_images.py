"""The image preprocessing that a model of transformers was published with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import AutoImageProcessor

from fusionkit.encoders.augment import Augment
from fusionkit.encoders.images import ImagePreprocessor, Whole, pair, uncropped
from fusionkit.encoders.transformers_known import known_config
from fusionkit.encoders.transformers_weights import fetch
from fusionkit.encoders.weights import locate
from fusionkit.errors import ConfigError

_REMEDY = (
    "Save it beside the weights: AutoImageProcessor.from_pretrained(NAME).save_pretrained(FOLDER)."
)

_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
_SQUASH = {"crop_pct": 1.0, "crop_mode": "squash"}
_CROP = {"interpolation": "bicubic", "crop_pct": 224 / 256}

# What the model cards of each family state, by transformers' model_type: for well-known names
# without a network, and for nets of one's own. Other models state it in a file.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "clip_vision_model": {**_CLIP, "interpolation": "bicubic", "crop_pct": 1.0},
    "deit": {**_IMAGENET, **_CROP, "crop_mode": "squash"},
    "dinov2": {**_IMAGENET, **_CROP},
    "dinov2_with_registers": {**_IMAGENET, **_CROP},
    "dinov3_vit": {**_IMAGENET, "interpolation": "bilinear", **_SQUASH},
    "vit": {**_HALF, "interpolation": "bilinear", **_SQUASH},
}

_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # PIL's codes 0 .. 5


def image_preprocessor(
    model: str | None, config: Any, image_size: int | None, augment: Augment, whole: Whole
) -> ImagePreprocessor:
    """The preprocessing of a model, as it was published.

    Args:
        model: Hub name or local folder; None for a net of one's own, which gets what its family
            was published with.
        config: Its architecture.
        image_size: Side of the result; None for the published one. What the centre crop cuts off
            stays the same share.
        augment: See :class:`ImagePreprocessor`.
        whole: See :func:`~fusionkit.encoders.images.uncropped`.

    Raises:
        WeightsError: The model does not say how its images are preprocessed.
        ConfigError: It says something that :class:`ImagePreprocessor` cannot do.
    """
    settings = {"size": pair(config.image_size), **_settings(model, config.model_type)}
    if image_size is not None:
        settings["size"] = (image_size, image_size)
    # timm floors size / crop_pct, which would be a pixel short where the quotient is rounded down.
    settings["crop_pct"] = math.nextafter(settings["crop_pct"], 0)
    settings |= uncropped(whole)
    return ImagePreprocessor(channels=config.num_channels, augment=augment, **settings)


def _settings(model: str | None, family: str) -> dict[str, Any]:
    if model is None:
        return dict(PUBLISHED[family])
    source = locate(model)
    try:
        found = AutoImageProcessor.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError):
        if known_config(source) is not None:
            # DeiT without the distillation token is a "vit" that was trained like the other DeiTs;
            # DINOv2 has positions for 518 pixels, but is published with crops of 224.
            size = {"size": (224, 224)} if family.startswith("dinov2") else {}
            return {**PUBLISHED["deit" if "deit-" in source else family], **size}
        what = "preprocessor_config.json"
        found = fetch(AutoImageProcessor.from_pretrained, source, what, _REMEDY)
    return translate(found.to_dict(), model)


def translate(stated: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Settings of :class:`ImagePreprocessor` for what an image processor of transformers states.

    Args:
        stated: Its ``to_dict()``.
        model: Named in the message.

    Raises:
        ConfigError: It pads, does not resize to one size, or scales pixels to other than 0..1.
    """
    size = stated["size"]
    crop = stated.get("crop_size") if stated.get("do_center_crop") else None
    shortest = size.get("shortest_edge")
    resized = (shortest, shortest) if shortest else (size.get("height"), size.get("width"))
    result = (crop["height"], crop["width"]) if crop else resized
    followed = (
        stated["do_resize"]
        and None not in resized
        and (crop or not shortest)  # else images of a batch differ in size
        and math.isclose(result[0] * resized[1], result[1] * resized[0])
        and max(result) <= max(resized)
        and not stated.get("do_pad")
        and stated["do_rescale"]
        and math.isclose(stated["rescale_factor"], 1 / 255, rel_tol=1e-3)
    )
    if not followed:
        raise ConfigError(
            f"The image preprocessing of {model!r} cannot be followed: images are resized, cropped "
            f"to one size and scaled to 0..1 here, given {dict(stated)}."
        )
    normalised = stated["do_normalize"]
    return {
        "size": result,
        "mean": stated["image_mean"] if normalised else (0.0, 0.0, 0.0),
        "std": stated["image_std"] if normalised else (1.0, 1.0, 1.0),
        "interpolation": _FILTERS[int(stated["resample"])],
        "crop_pct": result[0] / resized[0],
        "crop_mode": "center" if shortest else "squash",
    }
