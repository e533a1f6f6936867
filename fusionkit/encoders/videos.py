"""Videos to frames: files, folders of images, animations, lists and arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fusionkit.encoders.images import load_image
from fusionkit.errors import DataError
from fusionkit.registry import require

_ANIMATIONS = (".gif", ".webp", ".png", ".apng")  # what PIL reads and FFmpeg may not
_ANIMATED = (b"GIF8", b"\x89PNG")  # how their bytes begin, those of WebP aside
_FAR = 5.0  # seconds; decoding so much costs about as much as a keyframe's distance after a seek
_SLACK = 1.0  # seconds by which a whole file may end ahead of what its header says


def read_frames(raw: Any, count: int) -> list[Image.Image]:
    """Frames of a video, at even distances: each is the middle one of its share.

    Args:
        raw: A path of a video file, an animation or a folder of images, in natural order; a file's
            bytes; a sequence of images or their paths; or an array of uint8, (T, H, W, 3).
        count: How many; a shorter video gives all it has.

    Returns:
        At least one RGB or other image, in order of time.

    Raises:
        DataError: There are no frames, or they cannot be read.
    """
    if isinstance(raw, (str, Path)):
        path = Path(raw)
        if path.is_dir():
            return [load_image(file) for file in pick(_image_files(path), count)]
        return _read_file(path, count)
    if isinstance(raw, bytes):
        return _read_file(raw, count)
    if isinstance(raw, (np.ndarray, Tensor)):
        raw = np.asarray(raw)
        if raw.ndim != 4 or raw.shape[3] != 3 or raw.dtype != np.uint8:
            raise DataError(
                f"A video array is uint8 of shape (T, H, W, 3), given {raw.dtype} of {raw.shape}."
            )
    elif not isinstance(raw, (list, tuple)):
        raise DataError(
            f"A video is the path of a file or of a folder of images, a list of images or an array "
            f"of shape (T, H, W, 3), given {type(raw).__name__}."
        )
    if not len(raw):
        raise DataError("The video has no frames. Remove the row.")
    return [load_image(frame) for frame in pick(raw, count)]


def pick(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` items, the middle one of each of as many equal shares."""
    total, count = len(items), min(count, len(items))
    return [items[(2 * i + 1) * total // (2 * count)] for i in range(count)]


def _image_files(folder: Path) -> list[Path]:
    known = Image.registered_extensions()
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in known and not file.name.startswith(".")
    ]
    if not files:
        raise DataError(f"The folder {folder} holds no images. Give one with a video's frames.")
    return sorted(files, key=_natural)


def _natural(file: Path) -> list[str | int]:
    """2.png before 10.png."""
    parts = re.split(r"(\d+)", file.name.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _read_file(raw: Path | bytes, count: int) -> list[Image.Image]:
    try:
        if not (len(raw) if isinstance(raw, bytes) else raw.stat().st_size):
            raise ValueError("it is empty")
        frames = _read_animation(raw, count) if _is_animation(raw) else _decode(raw, count)
        if not frames:
            raise ValueError("no frame could be decoded")
    # PIL, FFmpeg and the file system; a bug of ours is none of these.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        name = f"of {len(raw):,} bytes" if isinstance(raw, bytes) else raw
        raise DataError(f"The video {name} cannot be read: {error}") from error
    return frames


def _is_animation(raw: Path | bytes) -> bool:
    if isinstance(raw, bytes):
        return raw.startswith(_ANIMATED) or (raw.startswith(b"RIFF") and raw[8:12] == b"WEBP")
    return raw.suffix.lower() in _ANIMATIONS


def _source(raw: Path | bytes) -> Any:
    return BytesIO(raw) if isinstance(raw, bytes) else str(raw)


def _read_animation(raw: Path | bytes, count: int) -> list[Image.Image]:
    frames = []
    with Image.open(_source(raw)) as file:
        for place in pick(range(getattr(file, "n_frames", 1)), count):
            file.seek(place)
            frames.append(file.convert("RGBA" if file.has_transparency_data else "RGB"))
    return frames


def _decode(raw: Path | bytes, count: int) -> list[Image.Image]:
    av = require("av", "video")
    try:
        with av.open(_source(raw)) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # data workers are processes already
            frames = _decode_at(container, stream, count)
        return [_to_image(frame) for frame in frames or _decode_all(av, raw, count)]
    except av.FFmpegError as error:
        raise ValueError(str(error)) from error


def _decode_at(container: Any, stream: Any, count: int) -> list[Any]:
    """The frames shown at even points of time; none if the file does not say how long it is.

    Memory holds what is returned; of a long video only the parts around each frame are decoded.
    """
    base = float(stream.time_base)
    span = stream.duration or (container.duration or 0) / 1e6 / base
    start = stream.start_time or 0
    exact = bool(stream.duration) or len(container.streams) == 1  # not that of a longer sound track
    decoded: Iterator[Any] = container.decode(stream)
    shown, upcoming = None, next(decoded, None)
    if not span or upcoming is None or upcoming.pts is None:
        return []
    frames: list[Any] = []
    for i in range(count):
        time = start + (i + 0.5) / count * span
        if upcoming is not None and (time - upcoming.pts) * base > _FAR:
            container.seek(int(time), stream=stream)  # to the keyframe ahead of it
            decoded = container.decode(stream)
            shown, upcoming = None, next(decoded, None)
        while upcoming is not None and (shown is None or upcoming.pts <= time):
            shown, upcoming = upcoming, next(decoded, None)
        if upcoming is None and exact:
            _check_end(shown, time, base)
        if shown is not None and (not frames or shown.pts > frames[-1].pts):
            frames.append(shown)
    return frames


def _check_end(last: Any, time: float, base: float) -> None:
    """Raise ValueError if a stream ended well ahead of a time that its header covers."""
    end = 0 if last is None else last.pts + (last.duration or 0)
    if (time - end) * base > _SLACK:
        raise ValueError(f"it is cut off: nothing at {time * base:.1f} s, where more is announced")


def _decode_all(av: Any, raw: Path | bytes, count: int) -> list[Any]:
    """The same by number of frame, in two passes over the file, so that memory stays flat."""
    with av.open(_source(raw)) as container:
        total = sum(1 for _ in container.decode(video=0))
    wanted = set(pick(range(total), count))
    with av.open(_source(raw)) as container:
        return [frame for i, frame in enumerate(container.decode(video=0)) if i in wanted]


def _to_image(frame: Any) -> Image.Image:
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
