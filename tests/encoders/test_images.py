"""Image preprocessing: odd files, arrays, augmentation."""

import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import create_transform

from fusionkit.encoders.base import Preprocessor
from fusionkit.encoders.images import ImagePreprocessor, load_image
from fusionkit.errors import ConfigError, DataError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def plain(size=(8, 8), channels=3, **options):
    """Pixels in 0..1, unscaled."""
    return ImagePreprocessor(size, [0.0] * channels, [1.0] * channels, channels, **options)


def noise(height=8, width=8):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_evaluation_is_timms_own(mode):
    image = Image.fromarray(noise(50, 70))
    config = {"interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": mode}
    ours = ImagePreprocessor((24, 24), MEAN, STD, **config)
    theirs = create_transform((3, 24, 24), mean=MEAN, std=STD, **config)
    assert torch.equal(ours(image)["pixels"], theirs(image))


@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor, Image.fromarray])
def test_an_image_of_the_input_size_passes_unscaled(wrap):
    pixels = noise()
    expected = torch.as_tensor(pixels).permute(2, 0, 1) / 255
    assert torch.equal(plain()(wrap(pixels))["pixels"], expected)


def test_statistics_are_applied_per_channel_and_averaged_for_grey():
    row = ImagePreprocessor((4, 4), MEAN, STD)(np.full((4, 4, 3), 1.0))["pixels"]
    assert torch.allclose(row[:, 0, 0], (1 - torch.tensor(MEAN)) / torch.tensor(STD))
    grey = ImagePreprocessor((4, 4), MEAN, STD, channels=1)(np.full((4, 4), 255))["pixels"]
    assert grey.shape == (1, 4, 4)
    assert grey[0, 0, 0].item() == pytest.approx((1 - 0.4) / (0.95 / 3))
    with pytest.raises(ConfigError, match="1 or 3 channels, the encoder is built for 4"):
        ImagePreprocessor((4, 4), MEAN, STD, channels=4)


def test_collate_stacks():
    preprocessor = plain()
    assert isinstance(preprocessor, Preprocessor)
    batch = preprocessor.collate([preprocessor(noise()), preprocessor(noise(20, 10))])
    assert batch["pixels"].shape == (2, 3, 8, 8)
    assert batch["pixels"].dtype == torch.float32


@pytest.mark.parametrize("augment", ["none", "crop", "randaugment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentations_give_the_shape_and_survive_pickling(augment, channels):
    preprocessor = pickle.loads(pickle.dumps(plain((16, 12), channels, augment=augment)))
    rows = [preprocessor(noise(30, 40))["pixels"] for _ in range(20)]
    assert all(row.shape == (channels, 16, 12) and row.dtype == torch.float32 for row in rows)
    assert all(row.min() >= 0 and row.max() <= 1 for row in rows)
    same = all(torch.equal(row, rows[0]) for row in rows)
    assert same == (augment == "none")


@pytest.mark.parametrize(
    ("mode", "colour"), [("CMYK", (0, 255, 255, 0)), ("P", 1), ("RGB", (255, 0, 0))]
)
def test_colour_modes_become_rgb(tmp_path, mode, colour):
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "image.tiff")
    for raw in (tmp_path / "image.tiff", str(tmp_path / "image.tiff"), image):
        assert plain()(raw)["pixels"][:, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_put_on_white(tmp_path, mode):
    image = Image.new(mode, (8, 8), {"RGBA": (9, 9, 9, 0), "LA": (9, 0), "P": 0}[mode])
    options = {"transparency": 0} if mode == "P" else {}
    image.save(tmp_path / "image.png", **options)
    assert plain()(tmp_path / "image.png")["pixels"].min() == 1
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert plain(channels=1)(half)["pixels"][0, 0, 0].item() == pytest.approx(127 / 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = np.full((8, 8), 257 * 100, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    wide = Image.fromarray(deep.astype(np.int32))  # mode I
    assert wide.mode == "I"
    for raw in (tmp_path / "deep.png", wide, deep):
        assert plain()(raw)["pixels"].unique().tolist() == [pytest.approx(100 / 255)]
    with pytest.raises(DataError, match="floats has no known range"):
        plain()(Image.new("F", (8, 8)))


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert plain()(tmp_path / "two.gif")["pixels"][:, 0, 0].tolist() == [1, 0, 0]


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("L", (8, 4))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    image.save(tmp_path / "turned.png", exif=exif)
    turned = load_image(tmp_path / "turned.png")
    assert turned.size == (4, 8)
    assert turned.getpixel((3, 0)) == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_every_exif_orientation_is_turned_as_pil_turns_it_and_once(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(6, 10)).save(tmp_path / f"a.{suffix}", exif=exif)
    turned = load_image(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as file:
        expected = ImageOps.exif_transpose(file)
    assert np.array_equal(turned, expected)
    assert np.array_equal(load_image(turned), turned)


def test_other_tags_may_be_broken(tmp_path):
    image = Image.fromarray(noise(6, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 72.0  # XResolution, a fraction
    raw = bytearray(exif.tobytes())
    place = raw.index(b"\x01\x1a" if b"MM" in raw[:10] else b"\x1a\x01")
    raw[place : place + 2] = b"\x01\x00" if b"MM" in raw[:10] else b"\x00\x01"  # now a width
    image.save(tmp_path / "odd.jpg", exif=bytes(raw))
    with Image.open(tmp_path / "odd.jpg") as file, pytest.raises(struct.error):
        ImageOps.exif_transpose(file)
    assert load_image(tmp_path / "odd.jpg").size == (6, 10)


def test_files_that_cannot_be_read_raise_and_are_named(tmp_path):
    Image.fromarray(noise(64, 64)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    Image.fromarray(noise(64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("cut.jpg", "cut.png", "text.jpg", "missing.jpg"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            plain()(tmp_path / name)


def test_arrays_that_are_no_images_are_described():
    with pytest.raises(DataError, match=r"\(H, W, 3\), channels last, given \(3, 8, 8\)"):
        plain()(np.zeros((3, 8, 8)))
    with pytest.raises(DataError, match=r"float64 holds values in 0\.\.1, given 0\.0\.\.16\.0"):
        plain()(np.array([[0.0, 16.0]]))
    with pytest.raises(DataError, match=r"int64 holds values in 0\.\.255, given -1\.\.3"):
        plain()(np.array([[-1, 3]]))
    with pytest.raises(DataError, match=r"0\.\.1, given nan"):
        plain()(np.array([[np.nan, 0.5]]))
    with pytest.raises(DataError, match="given int"):
        plain()(3)


def test_arrays_of_other_types():
    for array in (np.ones((8, 8), bool), np.ones((8, 8, 1), np.float32), torch.ones(8, 8, 3)):
        assert plain()(array)["pixels"].min() == 1
    assert plain()(np.zeros((8, 8, 4), np.uint8))["pixels"].min() == 1  # transparent: white


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(64, 64), (200, 50), (30, 90)])
def test_what_the_crop_leaves_is_what_moves_the_result(mode, size):
    width, height = size
    made = ImagePreprocessor((32, 32), (0.5,) * 3, (0.5,) * 3, crop_pct=0.8, crop_mode=mode)
    columns = Image.fromarray(np.tile(np.linspace(0, 255, width, dtype=np.uint8), (height, 1)))
    rows = Image.fromarray(
        np.tile(np.linspace(0, 255, height, dtype=np.uint8)[:, None], (1, width))
    )
    if mode == "border":
        assert made.kept(width, height) == 1
        return
    seen = 1.0
    for image in (columns, rows):  # grey levels tell where the borders of the crop are
        pixels = (made(image)["pixels"][0] + 1) / 2
        seen *= float(pixels.max() - pixels.min())
    assert made.kept(width, height) == pytest.approx(seen, abs=0.06)
