"""Videos to frames: files, folders of images, animations, lists and arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fusionkit.encoders.files import file_name, is_file, local_path, open_file
from fusionkit.encoders.images import load_image
from fusionkit.errors import DataError
from fusionkit.registry import require

_ANIMATION = re.compile(rb"GIF8|RIFF....WEBP|\x89PNG", re.DOTALL)  # what FFmpeg may not read
_FAR = 5.0  # seconds; decoding so much costs about as much as a keyframe's distance after a seek
_SLACK = 1.0  # seconds by which a whole file may end ahead of what its header says


def read_frames(raw: Any, count: int) -> list[Image.Image]:
    """Frames of a video, at even distances: each is the middle one of its share.

    Args:
        raw: A video file or an animation: its path or URL, bytes, or ``{"bytes", "path"}``; the
            path of a folder of images, in natural order; a sequence of images or their paths; or
            an array of uint8, (T, H, W, 3).
        count: How many; a shorter video gives all it has.

    Returns:
        At least one RGB or other image, in order of time.

    Raises:
        DataError: There are no frames, or they cannot be read.
    """
    if is_file(raw):
        path = local_path(raw)
        if path is not None and Path(path).is_dir():
            return [load_image(file) for file in pick(_image_files(Path(path)), count)]
        return _read_file(raw, count)
    if isinstance(raw, (np.ndarray, Tensor)):
        raw = np.asarray(raw)
        if raw.ndim != 4 or raw.shape[3] != 3 or raw.dtype != np.uint8:
            raise DataError(
                f"A video array is uint8 of shape (T, H, W, 3), given {raw.dtype} of {raw.shape}."
            )
    elif not isinstance(raw, (list, tuple)):
        raise DataError(
            f"A video is the path of a file or of a folder of images, a URL, bytes, a list of "
            f"images or an array of shape (T, H, W, 3), given {type(raw).__name__}."
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


def _read_file(raw: Any, count: int) -> list[Image.Image]:
    try:
        with open_file(raw) as file:
            head = file.read(12)
            if not head:
                raise ValueError("it is empty")
            source = local_path(raw) or file  # FFmpeg reads a path faster than a Python file
            read = _read_animation if _ANIMATION.match(head) else _decode
            frames = read(source, count)
        if not frames:
            raise ValueError("no frame could be decoded")
    except UnidentifiedImageError as error:  # its own words name a Python object
        raise DataError(
            f"The video {file_name(raw)} cannot be read: it is in no format that PIL knows."
        ) from error
    # PIL, FFmpeg and the file system; a bug of ours is none of these.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"The video {file_name(raw)} cannot be read: {error}") from error
    return frames


def _read_animation(source: str | BinaryIO, count: int) -> list[Image.Image]:
    frames = []
    with Image.open(_from_start(source)) as image:
        for place in pick(range(getattr(image, "n_frames", 1)), count):
            image.seek(place)
            frames.append(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    return frames


def _decode(source: str | BinaryIO, count: int) -> list[Image.Image]:
    av = require("av", "video")
    try:
        with av.open(_from_start(source)) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # data workers are processes already
            frames = _decode_at(container, stream, count)
        return [_to_image(frame) for frame in frames or _decode_all(av, source, count)]
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


def _decode_all(av: Any, source: str | BinaryIO, count: int) -> list[Any]:
    """The same by number of frame, in two passes over the file, so that memory stays flat."""
    with av.open(_from_start(source)) as container:
        total = sum(1 for _ in container.decode(video=0))
    wanted = set(pick(range(total), count))
    with av.open(_from_start(source)) as container:
        return [frame for i, frame in enumerate(container.decode(video=0)) if i in wanted]


def _from_start(source: str | BinaryIO) -> str | BinaryIO:
    if not isinstance(source, str):
        source.seek(0)
    return source


def _to_image(frame: Any) -> Image.Image:
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
