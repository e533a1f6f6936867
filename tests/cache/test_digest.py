import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from fusionkit.cache.digest import (
    SIZE,
    FileDigests,
    digest,
    digest_object,
    digest_sources,
    digest_value,
    pickled,
)
from fusionkit.errors import DataError


@pytest.fixture
def files(tmp_path):
    return FileDigests(tmp_path / "memory" / "files.sqlite")


def old(path, content: bytes):
    """A file that was written long enough ago to be remembered."""
    path.write_bytes(content)
    past = time.time() - 100
    os.utime(path, (past, past))
    return str(path)


def test_a_digest_knows_where_parts_end():
    assert len(digest(b"ab")) == SIZE
    assert len({digest(b"ab", b"c"), digest(b"a", b"bc"), digest(b"abc"), digest()}) == 4


def test_equal_values_have_equal_digests_and_others_have_others():
    values = [
        lambda: "text",
        lambda: b"text",
        lambda: ["text"],
        lambda: {"a": 1, "b": None},
        lambda: {"a": 1, "b": 0},
        lambda: np.arange(6.0),
        lambda: np.arange(6.0).reshape(2, 3),
        lambda: np.arange(6.0, dtype=np.float32),
        lambda: torch.arange(6.0),
        lambda: torch.arange(6.0).view(2, 3),
        lambda: (np.zeros(3), 16_000),
        lambda: (np.zeros(3), 8_000),
        lambda: Image.new("RGB", (4, 2), "red"),
        lambda: Image.new("RGB", (2, 4), "red"),
        lambda: Image.new("L", (4, 2), 7),
    ]
    digests = [digest_object(make()) for make in values]
    assert digests == [digest_object(make()) for make in values]
    assert len(set(digests)) == len(values)


def test_a_lone_surrogate_is_a_text_too():
    assert digest_object("\udce9") != digest_object("?")


def test_a_transform_with_tensors_is_the_same_in_another_process():
    code = (
        "import torch; from torchvision.transforms import v2\n"
        "from fusionkit.cache.digest import digest, pickled\n"
        "print(digest(pickled([v2.Normalize([0.1], [0.2]), torch.tensor([0.3])])).hex())"
    )
    done = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    here = digest(pickled([v2.Normalize([0.1], [0.2]), torch.tensor([0.3])])).hex()
    assert done == [here, here]


def test_what_cannot_be_pickled_says_so():
    with pytest.raises((pickle.PicklingError, AttributeError)):
        digest_object(lambda: None)


def test_a_file_is_its_content_wherever_it_lies(files, tmp_path):
    first = old(tmp_path / "a.jpg", b"one")
    second = old(tmp_path / "b.jpg", b"one")
    assert files(first) == files(second) != files(old(tmp_path / "c.jpg", b"two"))


def test_a_folder_is_what_is_in_it(files, tmp_path):
    (tmp_path / "frames").mkdir()
    old(tmp_path / "frames" / "1.png", b"one")
    before = files(str(tmp_path / "frames"))
    old(tmp_path / "frames" / "2.png", b"two")
    assert files(str(tmp_path / "frames")) != before


def test_a_file_is_read_once(files, tmp_path, monkeypatch):
    path = old(tmp_path / "a.jpg", b"one")
    os.utime(path)  # ctime is now: too fresh to be sure of
    monkeypatch.setattr("fusionkit.cache.digest._SETTLED", -1.0)
    found = files(path)
    files.close()
    again = FileDigests(tmp_path / "memory" / "files.sqlite")
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("it was read again"))
    assert again(path) == found


def test_a_change_that_keeps_size_and_time_is_seen(files, tmp_path, monkeypatch):
    monkeypatch.setattr("fusionkit.cache.digest._SETTLED", -1.0)
    path = old(tmp_path / "a.jpg", b"one")
    before, times = files(path), os.stat(path)
    time.sleep(0.05)
    (tmp_path / "a.jpg").write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert files(path) != before


def test_what_was_written_just_now_is_not_remembered(files, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"one")
    files(str(tmp_path / "a.jpg"))
    files.keep()
    memory = sqlite3.connect(tmp_path / "memory" / "files.sqlite")
    assert memory.execute("SELECT count(*) FROM files").fetchone() == (0,)


def test_a_missing_file_raises(files):
    with pytest.raises(FileNotFoundError):
        files("nowhere.jpg")


def test_text_is_a_path_where_the_modality_has_files(files, tmp_path):
    path = old(tmp_path / "a.jpg", b"one")
    assert digest_value(path, "image", files) == files(path)
    assert digest_value(tmp_path / "a.jpg", "other", files) == files(path)
    assert digest_value(path, "text", files) == digest_object(path)


def test_a_file_in_a_column_is_its_bytes_or_its_path(files, tmp_path):
    path = old(tmp_path / "a.jpg", b"one")
    inside = {"bytes": b"one", "path": "a.jpg"}
    assert digest_value(inside, "image", files) == digest_object(b"one")
    assert digest_value({"bytes": None, "path": path}, "image", files) == files(path)


def test_frames_of_a_video_are_what_their_files_hold(files, tmp_path):
    frames = [old(tmp_path / "1.png", b"one"), old(tmp_path / "2.png", b"two")]
    before = digest_value(frames, "video", files)
    assert before != digest_value(frames[::-1], "video", files)
    assert digest_value([0.5, 1], "vector", files) == digest_object([0.5, 1])
    (tmp_path / "2.png").write_bytes(b"three")
    assert digest_value(frames, "video", files) != before


def test_a_file_behind_http_that_has_changed_is_seen(files, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"one")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.jpg"
        before = files(url)
        assert before == files(url)
        (tmp_path / "a.jpg").write_bytes(b"three")
        assert files(url) != before
        with pytest.raises(DataError, match="cannot be read: it does not exist"):
            files(url.replace("a.jpg", "b.jpg"))
        server.shutdown()


def test_a_url_that_cannot_be_read_is_named(files):
    with pytest.raises(DataError, match="memory://fk/none.jpg cannot be read: it does not exist"):
        files("memory://fk/none.jpg")


def test_a_remote_file_is_what_its_store_says_of_it(files):
    import fsspec

    with fsspec.open("memory://fk/a.jpg", "wb") as file:
        file.write(b"one")
    before = files("memory://fk/a.jpg")
    assert before == files("memory://fk/a.jpg")
    with fsspec.open("memory://fk/a.jpg", "wb") as file:
        file.write(b"three")
    assert files("memory://fk/a.jpg") != before


def test_sources_follow_the_module_and_its_neighbours(tmp_path, monkeypatch):
    package = tmp_path / "neighbours"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text("class Model:\n    pass\n")
    (package / "helper.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    from neighbours.model import Model

    before = digest_sources([Model])
    assert before == digest_sources([Model])
    (package / "helper.py").write_text("x = 2\n")
    changed = digest_sources([Model])
    assert changed != before
    (package / "inner").mkdir()
    (package / "inner" / "blocks.py").write_text("y = 1\n")
    assert digest_sources([Model]) != changed
