from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusionkit.data.folders import cache_folder, replace_whole, write_whole


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FUSIONKIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "fusionkit"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/fusionkit")
    monkeypatch.setenv("FUSIONKIT_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


def test_many_may_write_one_file_at_once(tmp_path):
    path = tmp_path / "results.csv"

    def write(number: int) -> set[str]:
        write_whole(path, str(number) * 50_000)
        text = path.read_text()
        assert len(text) == 50_000
        return set(text)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(write, [1, 2, 3, 4] * 25))
    assert all(len(digits) == 1 for digits in found)
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "before")

    def fail(place: Path) -> None:
        place.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        replace_whole(path, fail)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
