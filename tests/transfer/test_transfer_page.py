"""docs/transfer.md says what is there, and its table what its script prints."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import TinyMain

from fusionkit import registry


@pytest.fixture
def page(root: Path) -> str:
    return (root / "docs" / "transfer.md").read_text()


def built_in(kind: Any) -> set[str]:
    found = registry.entries(kind).values()
    return {entry.name for entry in found if entry.distribution == "fusionkit"}


def test_every_mode_has_a_row_and_a_section(page: str) -> None:
    sections = " ".join(re.findall(r"^## (.*)$", page, re.MULTILINE)).split()
    for mode in built_in("transfer"):
        assert f"| `{mode}` |" in page
        assert mode in sections


def test_the_table_is_what_the_script_prints(
    page: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location(
        "matrix_script", root / "scripts/transfer_matrix.py"
    )
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(["bert", "bow", "timm_cnn", "vector"])  # the others are as many seconds
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6
    for line in printed:
        assert line in page.splitlines(), "run python scripts/transfer_matrix.py"
    # A table of 30,522 rows of 256 numbers, with updates of rank 8.
    assert f"| {100 * 8 * (30_522 + 256) / (30_522 * 256):.2g} % |" in printed[3]


def test_the_table_has_every_encoder(page: str) -> None:
    rows = set(re.findall(r"^\| `(\w+)` \| [\d.]+ M", page, re.MULTILINE))
    missing = built_in("main_encoder") | built_in("complement_encoder")
    assert not missing - rows, "run python scripts/transfer_matrix.py"


def test_the_mode_of_the_page_works(page: str) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/transfer.md", "exec"), names)
    transfer = names["AttentionOnly"](TinyMain(depth=1), part="qkv")
    trained = {name for name, weight in transfer.named_parameters() if weight.requires_grad}
    assert trained == {"encoder.backbone.0.qkv.weight", "encoder.backbone.0.qkv.bias"}
    assert not transfer.train().encoder.training
