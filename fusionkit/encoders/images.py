"""Image preprocessing: files, PIL images and arrays to normalised pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from timm.data import create_transform, resolve_model_data_config
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision.transforms import v2

from fusionkit.encoders.augment import Augment, comes_first, make_transforms
from fusionkit.encoders.base import Inputs
from fusionkit.encoders.files import file_name, is_file, open_file
from fusionkit.errors import ConfigError, DataError, EncoderError

Whole = Literal["squash", "border"] | None


class ImagePreprocessor:
    """A file, a PIL image or an array to ``{"pixels": (C, H, W)}``, normalised float32.

    A file is a path, a URL, bytes or ``{"bytes", "path"}``. Arrays (numpy or torch) are (H, W),
    (H, W, 1), (H, W, 3) or (H, W, 4): integers in 0..255, unsigned 16 bits, or floats in 0..1.
    Transparency is put on white, EXIF rotation is applied, an animation gives its first frame.
    """

    def __init__(
        self,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        channels: int = 3,
        interpolation: str = "bicubic",
        crop_pct: float = 1.0,
        crop_mode: str = "center",
        augment: Augment = None,
    ) -> None:
        """Set up the transform.

        Args:
            size: (H, W) of the result.
            mean: Mean of each channel, for pixels in 0..1.
            std: Standard deviation of each channel.
            channels: 3 for RGB, 1 for grey; other statistics than this many are averaged.
            interpolation: As timm names it: ``bicubic``, ``bilinear``, ...
            crop_pct: Share of the resized image that the centre crop keeps.
            crop_mode: timm's: ``center``, ``squash`` or ``border``.
            augment: ``none`` or None: resize and centre crop. ``crop``: random crop and horizontal
                flip. ``randaugment``: random crop and RandAugment in its default setting. Or a
                list, see :func:`~fusionkit.encoders.augment.make_transforms`; where it does not
                resize, the backbone's own resizing comes first, where it does not crop either,
                its crop as well. Normalisation comes last.
        """
        if channels not in (1, 3):
            raise ConfigError(f"Images have 1 or 3 channels, the encoder is built for {channels}.")
        if len(mean) != channels:
            mean, std = [sum(mean) / len(mean)] * channels, [sum(std) / len(std)] * channels
        self.mode = "RGB" if channels == 3 else "L"
        self.size, self.crop_pct, self.crop_mode = size, crop_pct, crop_mode
        own = create_transform(
            (channels, *size),
            interpolation=interpolation,
            mean=tuple(mean),
            std=tuple(std),
            crop_pct=crop_pct,
            crop_mode=crop_mode,
        )
        self.transform: Any = own
        if augment is None or augment == "none":
            return
        ahead = {"nothing": 0, "resize": 1, "resize and crop": 2}[comes_first(augment)]
        self.transform = v2.Compose(
            [
                *own.transforms[:ahead],
                v2.ToImage(),
                *make_transforms(augment, size, str_to_interp_mode(interpolation)),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(mean), list(std)),
                v2.ToPureTensor(),
            ]
        )

    @classmethod
    def of_backbone(
        cls, backbone: Any, channels: int, size: tuple[int, int], augment: Augment, whole: Whole
    ) -> ImagePreprocessor:
        """With the statistics, interpolation and crop that a timm model was trained with."""
        config = resolve_model_data_config(backbone)
        keys = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
        settings = {**{key: config[key] for key in keys}, **uncropped(whole)}
        return cls(size, channels=channels, augment=augment, **settings)

    def __call__(self, raw: Any) -> dict[str, Tensor]:
        """One image to a row.

        Raises:
            DataError: The file is missing, truncated or no image, or the array is not one.
        """
        return {"pixels": self.transform(to_eight_bits(load_image(raw), self.mode))}

    def kept(self, width: int, height: int) -> float:
        """Share of an image's area that the crop of evaluation leaves, 0..1."""
        if self.crop_mode != "center":  # resized to one size, or with a border
            return self.crop_pct**2 if self.crop_mode == "squash" else 1.0
        scale = max(self.size[0] / height, self.size[1] / width) / self.crop_pct
        return self.size[0] / (height * scale) * self.size[1] / (width * scale)

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Rows to ``{"pixels": (B, C, H, W)}``."""
        return {"pixels": torch.stack([row["pixels"] for row in rows])}


def uncropped(whole: Whole) -> dict[str, Any]:
    """Settings of :class:`ImagePreprocessor` in the place of the model's own, if any.

    Args:
        whole: How to keep all of an image; None for the model's own crop.

    Raises:
        ConfigError: ``whole`` is none of these.
    """
    if whole is None:
        return {}
    if whole not in ("squash", "border"):
        raise ConfigError(f"whole is squash, border or null, given {whole!r}.")
    return {"crop_pct": 1.0, "crop_mode": whole}


def load_image(raw: Any) -> Image.Image:
    """A file (see :mod:`fusionkit.encoders.files`), PIL image or array as a PIL image.

    It is turned as its EXIF tag says.
    """
    if is_file(raw):
        try:
            with open_file(raw) as file, Image.open(file) as image:
                return upright(image)
        except UnidentifiedImageError as error:  # its own words name a Python object
            raise DataError(
                f"The image {file_name(raw)} cannot be read: it is in no format that PIL knows."
            ) from error
        # PIL raises these for missing, truncated, broken and far too large files.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"The image {file_name(raw)} cannot be read: {error}") from error
    if isinstance(raw, Image.Image):
        return upright(raw)
    if isinstance(raw, (np.ndarray, Tensor)):
        return _from_array(np.asarray(raw))
    raise DataError(
        f"An image is a path, a URL, bytes, a PIL image or an array of shape (H, W) or (H, W, 3), "
        f"given {type(raw).__name__}."
    )


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TAGS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")


def upright(image: Image.Image) -> Image.Image:
    """A copy, turned as its EXIF tag says and without its tags, so that it is turned once.

    Not PIL's ``exif_transpose``: that one writes all tags anew, and fails where one of them holds a
    value of another kind than it should, as those of some photos do.
    """
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    turned = image.copy() if turn is None else image.transpose(turn)
    for tag in _TAGS:
        turned.info.pop(tag, None)
    return turned


def to_eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """Any mode to ``RGB`` or ``L``; transparency on white."""
    if image.mode == "F":
        raise DataError("An image of floats has no known range; save it with 8 or 16 bits.")
    if image.mode.startswith("I"):  # PIL would clip 16 bits to white instead of scaling them
        deep = np.asarray(image).astype(np.int64)
        image = Image.fromarray((deep.clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise DataError(
            f"An image array has shape (H, W) or (H, W, 3), channels last, given {array.shape}."
        )
    if array.dtype == np.uint16:
        return Image.fromarray((array // 257).astype(np.uint8))
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    top = 1 if array.dtype.kind == "f" else 255
    if array.size == 0 or not (array.min() >= 0 and array.max() <= top):
        raise DataError(
            f"An image array of {array.dtype} holds values in 0..{top}, given "
            f"{array.min() if array.size else 'none'}..{array.max() if array.size else 'none'}."
        )
    return Image.fromarray((array * 255 if top == 1 else array).round().astype(np.uint8))


def pixels_of(
    inputs: Inputs,
    encoder: str,
    channels: int,
    size: tuple[int, int] | None = None,
    multiple: tuple[int, int] = (1, 1),
) -> Tensor:
    """``inputs["pixels"]``, (B, C, H, W), if it fits the encoder.

    Args:
        inputs: What :class:`ImagePreprocessor` collated.
        encoder: Named in the message.
        channels: C.
        size: (H, W), or None where other sizes will do.
        multiple: What H and W must be multiples of where ``size`` is None.

    Raises:
        EncoderError: The key is missing or the shape is another one.
    """
    if "pixels" not in inputs:
        raise EncoderError(
            f"{encoder} takes inputs['pixels'], given {sorted(inputs)}; collate them with its "
            f"preprocessor()."
        )
    pixels = inputs["pixels"]
    fits = pixels.ndim == 4 and pixels.shape[1] == channels
    if fits and size is not None:
        fits = tuple(pixels.shape[2:]) == tuple(size)
    elif fits:
        fits = pixels.shape[2] % multiple[0] == 0 and pixels.shape[3] % multiple[1] == 0
    if not fits:
        height, width = size or (f"{step} * n" if step > 1 else "n" for step in multiple)
        raise EncoderError(
            f"{encoder} takes pixels of shape (B, {channels}, {height}, {width}), given "
            f"{tuple(pixels.shape)}; preprocess with its preprocessor() or set `image_size`."
        )
    return pixels


def pair(size: Any) -> tuple[int, int]:
    """(H, W) of a size that a config gives as one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def check_tiles(image_size: int | None, patch: Any) -> None:
    """Whether patches tile an image of that side; None for the model's own.

    Raises:
        ConfigError: They do not.
    """
    height, width = pair(patch)
    if image_size is not None and (image_size % height or image_size % width):
        raise ConfigError(
            f"`image_size: {image_size}` is no multiple of the patch, {height} x {width}."
        )
