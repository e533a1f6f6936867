"""Images: sizes, modes, blank ones, what the crop leaves, near duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fusionkit.doctor.findings import Finding, count, percent
from fusionkit.doctor.near import group
from fusionkit.doctor.study import FieldStudy, Reader, Study
from fusionkit.doctor.values import Value
from fusionkit.encoders.images import ImagePreprocessor, load_image, to_eight_bits

# Tried on 25,000 product photos, rendered scenes and handwritten digits, and on 900 of them that
# were scaled by 0.5 and 1.7, made lighter, and saved as JPEG of quality 90, 50 and 25: no two
# pictures of different things are as close as this, and of those changes most stay within it.
_HASH = 16  # side of the perceptual hash
_BITS = 12  # of 256 in which hashes may differ
_SIDE = 16  # of the thumbnail
_LEVELS = 14  # of 255 by which any pixel of the thumbnails may differ

_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)  # in a byte

_FLAT = 2  # levels of 255: less spread than this is one colour
_EXTREME = 20.0  # ratio of sides beyond which resizing itself is tried, too
_CUT = 0.5  # share of an image's area below which a crop is worth a word


class Facts(NamedTuple):
    """Pixels, PIL's mode, and whether it is all of one colour."""

    width: int
    height: int
    mode: str
    blank: bool


class Picture(Value):
    """An image, decoded once for all encoders and measures."""

    @cached_property
    def image(self) -> Image.Image:
        """Decoded."""
        return load_image(self.raw)

    @cached_property
    def rgb(self) -> Image.Image:
        """In three channels of eight bits."""
        return to_eight_bits(self.image, "RGB")

    def read(self, reader: Reader) -> None:
        made = reader.preprocessor
        if not isinstance(made, ImagePreprocessor):
            super().read(reader)
        elif self.ratio > _EXTREME:
            made(self.image)
        elif made.mode == "RGB":  # decoding is what can fail; scaling to a size cannot
            _ = self.rgb
        else:
            to_eight_bits(self.image, made.mode)

    @property
    def ratio(self) -> float:
        """Longer by shorter side."""
        return max(self.image.size) / min(self.image.size)

    def facts(self, readers: Sequence[Reader]) -> Facts:
        spread = max(high - low for low, high in self.rgb.getextrema())  # type: ignore[misc]
        return Facts(*self.image.size, self.image.mode, spread <= _FLAT)

    def near(self) -> bytes:
        """A perceptual hash, (32) bytes, and a thumbnail, (16 * 16 * 3); none of a blank one."""
        if self.facts(()).blank:
            return b""
        bits = imagehash.phash(self.rgb, hash_size=_HASH).hash
        small = self.rgb.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        return np.packbits(bits.reshape(-1)).tobytes() + small.tobytes()


def group_images(study: FieldStudy) -> None:
    """Find the groups of nearly equal images."""
    digests = list(study.near)
    if len(digests) < 2:
        return
    width = _HASH * _HASH // 8
    packed = np.frombuffer(b"".join(study.near.values()), np.uint8).reshape(len(digests), -1)
    hashes, pixels = packed[:, :width], packed[:, width:]

    def close(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
        near: NDArray[np.bool_] = _ONES[hashes[a] ^ hashes[b]].sum(axis=1) <= _BITS
        alike = np.abs(pixels[a[near]].astype(np.int16) - pixels[b[near]]).max(axis=1) <= _LEVELS
        near[near] = alike
        return near

    study.groups = group(digests, _bands(packed[:, :width]), close)


def _bands(packed: NDArray[np.uint8]) -> Iterator[NDArray[Any]]:
    """Pieces of the hashes, one more than bits may differ: one piece then is equal."""
    bits = np.unpackbits(packed, axis=1)
    for piece in np.array_split(np.arange(bits.shape[1]), _BITS + 1):
        yield bits[:, piece] @ (1 << np.arange(len(piece), dtype=np.int64))


def describe(facts: Sequence[Facts]) -> str:
    """Sizes and modes in a line."""
    if not facts:
        return ""
    sizes = np.array([(f.width, f.height) for f in facts])
    low, mid, high = sizes.min(axis=0), np.median(sizes, axis=0).astype(int), sizes.max(axis=0)
    text = f"{low[0]} x {low[1]}"
    if (low != high).any():
        text = f"{mid[0]} x {mid[1]} (median), {low[0]} x {low[1]} to {high[0]} x {high[1]}"
    modes = Counter(f.mode for f in facts).most_common()
    share = "" if len(modes) == 1 else f" {percent(modes[0][1], len(facts))}"
    more = "".join(f", {mode} {number:,}" for mode, number in modes[1:])
    return f"{text}; {modes[0][0]}{share}{more}"


def findings(study: Study, name: str) -> Iterator[Finding]:
    """What is the matter with the images of a field."""
    field = study.fields[name]
    blank = [
        study.place(split, index, name)
        for split, column in field.columns.items()
        for index, facts in enumerate(column.facts)
        if facts is not None and facts.blank
    ]
    if blank:
        yield Finding(
            "warning",
            "blank",
            f"Field {name!r}: {count(len(blank), 'image')} of one colour only",
            "They say nothing: leave their cells empty, or remove the rows.",
            name,
            tuple(blank),
        )
    facts = field.measured()
    said: set[str] = set()
    for reader in field.readers:
        made = reader.preprocessor
        if isinstance(made, ImagePreprocessor) and facts:
            for finding in _fit(name, facts, reader.who, made):
                if finding.title not in said:
                    said.add(finding.title)
                    yield finding


def _fit(name: str, facts: Sequence[Facts], who: str, made: ImagePreprocessor) -> Iterator[Finding]:
    """How the images fit what an encoder takes."""
    kept = np.array([made.kept(f.width, f.height) for f in facts])
    if (cut := int((kept < _CUT).sum())) > 0:
        yield Finding(
            "warning" if cut >= 0.05 * len(facts) else "note",
            "cropped",
            f"Field {name!r}: {who} reads the centre of long images only: of "
            f"{percent(cut, len(facts))} of them it sees "
            f"{percent(float(np.median(kept[kept < _CUT])))} of the area (median)",
            "Where what matters may stand at the ends, state `whole: squash` or `border` for it.",
            name,
        )
    scale = np.array([max(made.size[0] / f.height, made.size[1] / f.width) for f in facts])
    if (small := int((scale > 1).sum())) > 0:
        yield Finding(
            "note",
            "upscaled",
            f"Field {name!r}: {percent(small, len(facts))} of the images are smaller than the "
            f"{made.size[1]} x {made.size[0]} that {who} takes, and enlarged "
            f"{np.median(scale[scale > 1]):.1f} times (median)",
            "An encoder for smaller images would see as much in less time.",
            name,
        )
