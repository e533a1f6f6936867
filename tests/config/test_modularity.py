"""The rows of configs/modularity: what a file changes can be given on the command line."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from fusionkit.config.validate import load_config

# Table 4 of arXiv 2312.03734, and rows of our own: what a row says instead of the base.
ROWS: dict[str, list[tuple[str, str]]] = {
    "bow_fine_tuned": [
        ("complement", "bow"),
        ("complement.init_from", "bert-base-uncased"),
        ("complement_transfer", "fine_tune"),
    ],
    "bert_frozen": [("complement_transfer", "frozen")],
    "gpt2_frozen": [("complement", "gpt2"), ("complement_transfer", "frozen")],
    "bert_fine_tuned": [("complement_transfer", "fine_tune")],
    "gpt2_lora": [("complement", "gpt2"), ("complement_transfer", "lora")],
    "clip_text_frozen": [("complement", "clip_text"), ("complement_transfer", "frozen")],
    "ast_frozen": [
        ("complement", "ast"),
        ("complement_transfer", "frozen"),
        ("data.more_fields.audio", "trailers/{id}.wav"),
    ],
}


def resolved(file: Any, overrides: list[tuple[str, str]]) -> dict[str, Any]:
    found = load_config([file], overrides).resolved
    return {key: value for key, value in found.items() if key != "name"}


def test_there_is_a_file_for_each_row(root):
    files = {path.stem for path in (root / "configs" / "modularity").glob("*.yaml")}
    assert files == {"base", *ROWS}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_equals_the_base_with_its_overrides(row, root):
    folder = root / "configs" / "modularity"
    quoted = [(key, f'"{value}"' if "{" in value else value) for key, value in ROWS[row]]
    found = resolved(folder / f"{row}.yaml", [])
    assert found == resolved(folder / "base.yaml", quoted)
    assert found != resolved(folder / "base.yaml", [])
    assert len(yaml.safe_load((folder / f"{row}.yaml").read_text())) <= 4  # `base` among them
