from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from fusionkit import registry

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes into the cache of who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSIONKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def tiny_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of tests/tiny.py under names that configs can use."""
    names = {
        "fusionkit.main_encoders": {"tiny_main": "tiny:TinyMain"},
        "fusionkit.complement_encoders": {"tiny_complement": "tiny:TinyComplement"},
        "fusionkit.datasets": {"tiny_data": "tiny:TinyData"},
    }
    monkeypatch.setattr(
        registry,
        "_installed_entry_points",
        lambda group: [EntryPoint(n, p, group) for n, p in names.get(group, {}).items()],
    )


@pytest.fixture
def tiny_config(tiny_names: None, tmp_path: Path) -> dict[str, Any]:
    """A whole config over the classes of tests/tiny.py; runs go to ``tmp_path``."""
    return {
        "name": "tiny",
        "output": str(tmp_path / "runs"),
        "main": {"name": "tiny_main"},
        "main_field": "a",
        "complement": {"name": "tiny_complement"},
        "complement_transfer": "frozen",
        "complement_field": "b",
        "fusion": {"name": "conditional_prompt", "experts": 2, "prompt_length": 2},
        "data": {"name": "tiny_data"},
        "loader": {"batch_size": 16, "workers": 0},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "progress_bar": False},
    }
