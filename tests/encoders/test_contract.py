"""Every built-in encoder, and every one under plugins/, passes the contract."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
from cases import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fusionkit import registry
from fusionkit.testing import CHECKS, Case, format_results, run_contract

# name in the registry -> variant -> its case, given the folder of a tokenizer
CASES: dict[str, dict[str, Callable[[str], Case]]] = {}
for _file in sorted(Path(__file__).parent.glob("cases_*.py")):
    CASES |= import_module(_file.stem).CASES
EACH = [(name, variant) for name, variants in CASES.items() for variant in variants]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("words"))
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _plugins_importable(root: Path) -> Iterator[None]:
    """The plug-ins need not be installed to be checked."""
    with pytest.MonkeyPatch.context() as patch:
        for file in root.glob("plugins/*/pyproject.toml"):
            patch.syspath_prepend(file.parent)
        yield


@pytest.mark.parametrize(("name", "variant"), EACH)
def test_encoder_passes_the_contract(name: str, variant: str, tokenizer: str) -> None:
    case = CASES[name][variant](tokenizer)
    results = run_contract(case)
    assert len(results) == len(CHECKS)
    assert not [r for r in results if r.status == "failed"], format_results(results)
    # Skipped is only what does not apply: nothing for want of a reference or of padded texts.
    skipped = {r.number: r.message for r in results if r.status == "skipped"}
    assert not any("the case has no" in message for message in skipped.values()), skipped
    has_lengths = case.make().modality in ("text", "audio", "video")
    assert (5 in skipped) != has_lengths


def test_every_built_in_encoder_has_a_case() -> None:
    found = {**registry.entries("main_encoder"), **registry.entries("complement_encoder")}
    names = {name for name, entry in found.items() if entry.distribution == "fusionkit"}
    assert len(names) >= 5
    assert names <= set(CASES), f"no contract case for {sorted(names - set(CASES))}"


def test_every_encoder_under_plugins_has_a_case(root: Path) -> None:
    files = list(root.glob("plugins/*/pyproject.toml"))
    assert files
    for file in files:
        points = tomllib.loads(file.read_text())["project"].get("entry-points", {})
        for group in ("fusionkit.main_encoders", "fusionkit.complement_encoders"):
            missing = set(points.get(group, {})) - set(CASES)
            assert not missing, f"no contract case for {sorted(missing)} of {file.parent.name}"
