"""Frames of videos: which ones are taken, from what, and what is said of damaged files."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fusionkit.encoders import videos
from fusionkit.encoders.videos import pick, read_frames
from fusionkit.errors import DataError, MissingExtraError


def picture(level: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Grey, with a red corner at the top left."""
    array = np.full((height, width, 3), level, np.uint8)
    array[:8, :8] = [255, 0, 0]
    return array


def level(frame: Image.Image) -> int:
    return int(np.asarray(frame.convert("RGB"))[20:28, 20:28].mean().round())


def levels(frames) -> list[int]:
    return [level(frame) for frame in frames]


def about(expected):
    return pytest.approx(expected, abs=2)  # lossy codecs; other frames are 6 apart


def write(path: Path, shades, codec="mpeg4", rate=10, rotation=0, times=None, sound=0.0) -> str:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = 12, 4_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        audio = container.add_stream("aac", rate=8000) if sound else None
        for number, shade in enumerate(shades):
            frame = av.VideoFrame.from_ndarray(picture(shade), format="rgb24")
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            silence = np.zeros((1, int(8000 * sound)), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.rate = 8000
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return str(path)


SHADES = [6 * k for k in range(40)]


def test_frames_are_the_middle_ones_of_equal_shares():
    assert pick(range(40), 8) == [2, 7, 12, 17, 22, 27, 32, 37]
    assert pick(range(10), 4) == [1, 3, 6, 8]
    assert pick(range(9), 1) == [4]
    assert pick("abc", 8) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("v.mp4", "mpeg4"),
        ("v.avi", "mpeg4"),
        ("v.mkv", "mpeg4"),  # says no number of frames
        ("v.ts", "mpeg2video"),  # starts at another time than 0
        ("v.m4v", "mpeg4"),  # a bare stream: no index, no length
    ],
)
def test_files_of_any_container(tmp_path, name, codec):
    file = write(tmp_path / name, SHADES, codec, rate=25 if codec == "mpeg2video" else 10)
    frames = read_frames(file, 8)
    assert levels(frames) == about([SHADES[k] for k in pick(range(40), 8)])
    assert {frame.size for frame in frames} == {(64, 48)}
    assert levels(read_frames(Path(file), 100)) == about(SHADES)


@pytest.mark.parametrize("number", [1, 3])
def test_a_short_file_gives_all_its_frames_once(tmp_path, number):
    shades = SHADES[10 : 10 + number]
    assert levels(read_frames(write(tmp_path / "v.mp4", shades), 8)) == about(shades)


def test_frames_are_evenly_spaced_in_time_not_in_number(tmp_path):
    times = [0, 1, 2, 3, 30]  # the fourth is shown for most of the time
    file = write(tmp_path / "v.mp4", [0, 50, 100, 150, 200], times=times)
    assert levels(read_frames(file, 2)) == about([150])


def test_rotation_is_applied(tmp_path):
    (frame,) = read_frames(write(tmp_path / "v.mp4", [120], rotation=90), 1)
    assert frame.size == (48, 64)
    red = np.asarray(frame)[-4:, :4].mean(axis=(0, 1))  # counterclockwise: top left to bottom left
    assert red[0] > 200
    assert red[1] < 60


def test_of_a_long_file_only_the_parts_around_its_frames_are_decoded(tmp_path, monkeypatch):
    """And none is held that is not returned."""
    shades = [(k // 20) % 250 for k in range(5000)]
    file = write(tmp_path / "v.mp4", shades, rate=10)
    av = pytest.importorskip("av")
    decoded: Counter[str] = Counter()

    class Container:
        def __init__(self, opened: Any) -> None:
            self.opened = opened

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.opened.close()

        def __getattr__(self, name):
            return getattr(self.opened, name)

        def decode(self, *args, **kwargs):
            for frame in self.opened.decode(*args, **kwargs):
                decoded["frames"] += 1
                yield frame

    class Library:
        FFmpegError = av.FFmpegError

        @staticmethod
        def open(path):
            decoded["opened"] += 1
            return Container(av.open(path))

    monkeypatch.setattr(videos, "require", lambda module, extra: Library)
    assert levels(read_frames(file, 8)) == about([shades[k] for k in pick(range(5000), 8)])
    assert decoded["opened"] == 1
    assert 8 <= decoded["frames"] < 8 * 15  # keyframes are 12 apart


def test_a_sound_track_may_be_longer(tmp_path):
    file = write(tmp_path / "v.mkv", SHADES[:20], sound=6.0)
    assert levels(read_frames(file, 6)) == about([SHADES[k] for k in (5, 15, 19)])


def test_a_file_that_is_cut_off_says_so(tmp_path):
    for name in ("v.avi", "v.mkv"):
        file = Path(write(tmp_path / name, SHADES))
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * 0.6)])
        with pytest.raises(DataError, match=rf"{name} cannot be read: it is cut off: nothing at"):
            read_frames(file, 8)
    file = Path(write(tmp_path / "v.mp4", SHADES))  # its index stands at its end
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * 0.6)])
    with pytest.raises(DataError, match=r"v\.mp4 cannot be read: .*Invalid data found"):
        read_frames(file, 8)


def test_files_that_are_no_videos(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video " * 50)
    for name, reason in (
        ("empty.mp4", "it is empty"),
        ("text.mp4", "Invalid data found"),
        ("nowhere.mp4", "No such file"),
    ):
        with pytest.raises(DataError, match=rf"The video .*{name} cannot be read: .*{reason}"):
            read_frames(tmp_path / name, 8)


def test_a_file_of_sound_alone_has_no_video_stream(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = np.zeros((1, 8000), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match=r"sound\.mp4 cannot be read: it has no video stream"):
        read_frames(tmp_path / "sound.mp4", 8)


def test_files_need_the_extra_and_folders_do_not(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "v.mp4").write_bytes(b"x")
    with pytest.raises(MissingExtraError, match=r"pip install 'fusionkit\[video\]'"):
        read_frames(tmp_path / "v.mp4", 8)
    Image.fromarray(picture(50)).save(tmp_path / "1.png")
    assert levels(read_frames(tmp_path, 8)) == [50]


def test_a_folder_is_read_in_natural_order(tmp_path):
    for number in (1, 2, 10, 11, 100):
        Image.fromarray(picture(number)).save(tmp_path / f"frame{number}.png")
    Image.fromarray(picture(3)).save(tmp_path / "Frame3.PNG")
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.png").touch()
    assert levels(read_frames(tmp_path, 8)) == [1, 2, 3, 10, 11, 100]
    assert levels(read_frames(str(tmp_path), 2)) == [2, 11]
    (tmp_path / "frame2.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"The image .*frame2\.png cannot be read"):
        read_frames(tmp_path, 2)


def test_a_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"The folder .* holds no images. Give one with a video's"):
        read_frames(tmp_path, 8)


@pytest.mark.parametrize("name", ["v.gif", "v.webp", "v.png"])
def test_animations(tmp_path, name):
    first, *others = [Image.fromarray(picture(shade)) for shade in SHADES[:10]]
    options = {"lossless": True} if name == "v.webp" else {}
    first.save(tmp_path / name, save_all=True, append_images=others, **options)
    expected = [SHADES[k] for k in (1, 3, 6, 8)]
    assert levels(read_frames(tmp_path / name, 4)) == pytest.approx(expected, abs=1)
    first.save(tmp_path / name)
    assert levels(read_frames(tmp_path / name, 4)) == pytest.approx(SHADES[:1], abs=1)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    with pytest.raises(DataError, match=rf"The video .*{name} cannot be read"):
        read_frames(tmp_path / name, 4)


def test_lists_and_arrays(tmp_path):
    arrays = [picture(shade) for shade in SHADES[:10]]
    Image.fromarray(arrays[3]).save(tmp_path / "3.png")
    mixed: list[Any] = [*arrays]
    mixed[3], mixed[6] = str(tmp_path / "3.png"), Image.fromarray(arrays[6])
    for raw in (mixed, tuple(mixed), np.stack(arrays), torch.from_numpy(np.stack(arrays))):
        assert levels(read_frames(raw, 4)) == [SHADES[k] for k in (1, 3, 6, 8)]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "The video has no frames. Remove the row."),
        (np.zeros((0, 4, 4, 3), np.uint8), "The video has no frames."),
        (np.zeros((4, 4, 3), np.uint8), "uint8 of shape (T, H, W, 3), given uint8 of (4, 4, 3)."),
        (np.zeros((2, 4, 4, 3)), "given float64 of (2, 4, 4, 3)."),
        (7, "A video is the path of a file or of a folder of images, a URL, bytes, a list of"),
    ],
)
def test_what_is_no_video(raw, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_frames(raw, 8)
