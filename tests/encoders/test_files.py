"""Files as paths, URLs and bytes: every encoder's preprocessor gets the same from each."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from PIL import Image
from served import serve

from fusionkit.encoders.audio import load_audio
from fusionkit.encoders.files import (
    base_name,
    file_name,
    is_file,
    is_url,
    join,
    local_path,
    open_file,
    parent,
)
from fusionkit.encoders.images import load_image
from fusionkit.encoders.vector import load_vectors
from fusionkit.encoders.videos import read_frames
from fusionkit.errors import DataError, MissingExtraError


@pytest.fixture
def server(tmp_path):
    with serve(tmp_path) as address:
        yield address


def write(folder, kind):
    """A file of that kind, and what reads it."""
    if kind == "image":
        path = folder / "f.png"
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
        return path, lambda raw: np.asarray(load_image(raw))
    if kind == "audio":
        path = folder / "f.flac"
        soundfile.write(path, np.sin(np.arange(8000) / 9), 8000)
        return path, lambda raw: load_audio(raw, 8000, 20.0)
    if kind == "vector":
        path = folder / "f.npy"
        np.save(path, np.arange(12.0).reshape(4, 3))
        return path, lambda raw: load_vectors(raw, 3)
    if kind == "animation":
        path = folder / "f.gif"
        frames = [Image.new("L", (4, 4), 20 * i) for i in range(5)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    else:
        av = pytest.importorskip("av")
        path = folder / "f.ts"  # says no number of frames: read in two passes
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for i in range(10):
                frame = np.full((48, 64, 3), 20 * i, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    return path, lambda raw: np.stack([np.asarray(f.convert("L")) for f in read_frames(raw, 4)])


KINDS = ("image", "audio", "vector", "animation", "video")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_its_path_its_bytes_or_its_address(tmp_path, server, kind):
    path, read = write(tmp_path, kind)
    content = path.read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, f"in/{path.name}")
    fsspec.filesystem("memory").pipe(f"/files/{path.name}", content)
    expected = read(path)
    for raw in (
        str(path),
        content,
        bytearray(content),
        {"bytes": content, "path": None},
        {"bytes": content, "path": "somewhere/else"},
        {"bytes": None, "path": str(path)},
        f"memory://files/{path.name}",
        f"zip://in/{path.name}::{tmp_path}/a.zip",
        f"{server}/{path.name}",
        path.as_uri(),
    ):
        np.testing.assert_array_equal(read(raw), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_read_is_named(tmp_path, server, kind):
    path, read = write(tmp_path, kind)
    content = path.read_bytes()[:11]
    for raw, name in (
        (content, "of 11 bytes"),
        ({"bytes": content, "path": "a.x"}, r"a\.x \(11 bytes\)"),
        ({"bytes": None, "path": "nowhere.x"}, r"nowhere\.x"),
        ("memory://nowhere/a.x", "memory://nowhere/a.x cannot be read: it does not exist. Check"),
        (f"zip://no.x::{tmp_path}/a.zip", r"zip://no\.x::.*a\.zip cannot be read"),
        (f"{server}/no.x", r"no\.x cannot be read: it does not exist"),
        ("http://127.0.0.1:1/a.x", r"127\.0\.0\.1:1/a\.x cannot be read"),
        ("nope://a.x", "nope://a.x cannot be read: ValueError: Protocol not known: nope. Check"),
    ):
        with pytest.raises(DataError, match=name) as caught:
            read(raw)
        assert " object at 0x" not in str(caught.value)


def test_a_protocol_whose_library_is_missing_says_what_to_install(monkeypatch):
    for name in ("s3fs", "boto3", "botocore", "aiobotocore"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"^s3://b/a\.png: s3:// needs a library .*s3fs"):
        load_image("s3://b/a.png")


def test_what_is_a_url():
    for text in ("s3://b/c", "https://h/a.png", "zip://a.png::b.zip", "memory://a", "file://a"):
        assert is_url(text)
        assert local_path(text) is None
    for text in ("a/b.png", "C://a.png", "/a/b", "http:/a", "a b://c"):
        assert not is_url(text)
        assert local_path(text) == text


def test_what_stands_for_a_file():
    assert all(map(is_file, ["a", Path("a"), b"", {"bytes": None, "path": "a"}]))
    assert not any(map(is_file, [3, None, [b"a"], {"bytes": b"a"}, {"bytes": None, "path": None}]))
    assert file_name(b"x" * 12345) == "of 12,345 bytes"
    assert file_name({"bytes": b"xy", "path": None}) == "of 2 bytes"


@pytest.mark.parametrize(
    ("folder", "path", "joined"),
    [
        ("a/b", "c.png", "a/b/c.png"),
        ("", "c.png", "c.png"),
        ("a", "/c.png", "/c.png"),
        ("s3://b", "/c.png", "/c.png"),
        ("a", "s3://b/c.png", "s3://b/c.png"),
        ("s3://b/d", "e/c.png", "s3://b/d/e/c.png"),
        ("https://h/d/", "c.png", "https://h/d/c.png"),
        ("zip://::a.zip", "c.png", "zip://c.png::a.zip"),
        ("zip://d::s3://b/a.zip", "c.png", "zip://d/c.png::s3://b/a.zip"),
    ],
)
def test_paths_are_relative_to_folders_and_urls(folder, path, joined):
    assert join(folder, path) == joined


@pytest.mark.parametrize(
    ("file", "folder", "name"),
    [
        ("a/t.csv", "a", "t.csv"),
        ("t.csv", "", "t.csv"),
        ("s3://b/d/t.csv", "s3://b/d", "t.csv"),
        ("https://h/d/t.csv", "https://h/d", "t.csv"),
        ("zip://t.csv::a.zip", "zip://::a.zip", "t.csv"),
        ("zip://d/t.csv::s3://b/a.zip", "zip://d::s3://b/a.zip", "t.csv"),
    ],
)
def test_parts_of_an_address(file, folder, name):
    assert (parent(file), base_name(file)) == (folder, name)
    assert join(parent(file), name) == file


def test_a_query_is_no_part_of_a_name():
    address = "https://h/d/t.csv?raw=true&at=a/b"
    assert (parent(address), base_name(address)) == ("https://h/d", "t.csv")


def test_bytes_are_opened_without_a_copy_on_disk():
    assert isinstance(open_file(b"abc"), io.BytesIO)
