from pathlib import Path

from fusionkit.data.folders import cache_folder


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FUSIONKIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "fusionkit"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/fusionkit")
    monkeypatch.setenv("FUSIONKIT_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
