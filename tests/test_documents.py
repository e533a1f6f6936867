"""Every config under configs/ and every command in README and docs/ is run here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import replicas
import yaml
from PIL import Image

from fusionkit.cli import main
from fusionkit.config.validate import load_config
from fusionkit.data.digit_claims import DigitClaims
from fusionkit.training import api
from fusionkit.training.check import check

ROOT = Path(__file__).resolve().parent.parent
BASELINES = ROOT / "configs" / "baselines"  # built one by one in tests/config/test_baselines.py
EXPERIMENTS = ROOT / "configs" / "experiments"  # likewise, in tests/config/test_experiments.py
CONFIGS = sorted(
    path
    for path in (ROOT / "configs").rglob("*.yaml")
    if not {BASELINES, EXPERIMENTS} & set(path.parents)
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = [page for page in PAGES if "\n```python\n" in page.read_text()]
FIT = api.fit

# A training run of a document is cut to a few batches; what it prints is not claimed by this test.
SHORT = [
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.progress_bar=false",
    "--data.claims_per_image=2",
]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    found = [line for block in blocks(page.read_text(), "bash") for line in block.splitlines()]
    return [line.strip() for line in found if line.strip()]


def head_commands(config: Path) -> list[str]:
    """The commands in a config's opening comment."""
    lines = config.read_text().splitlines()
    return [line.lstrip("# ") for line in lines if re.match(r"#\s+fusionkit ", line)]


def test_the_globs_see_what_is_there():
    assert {path.parent.name: 0 for path in CONFIGS}.keys() == {"compare", "configs", "modularity"}
    assert len(CONFIGS) == 20
    assert len(list(BASELINES.rglob("*.yaml"))) == 51
    assert len(PAGES) == 23
    assert {page.stem for page in PYTHON} >= {"README", "contract", "data", "own_encoder"}
    assert sum(len(commands(page)) for page in PAGES) >= 60
    assert all(len(head_commands(config)) >= 2 for config in CONFIGS)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    report = check(load_config([config]))
    assert 0 < report.trained < sum(count.total for count in report.counts)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder like a checkout, with a table of new claims and small published data sets."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "configs").symlink_to(ROOT / "configs")
    sample = DigitClaims(2).split("test")[0]
    sample.fields["image"].save(folder / "three.png")
    (folder / "new_claims.csv").write_text(
        "image,claim\nthree.png,it is odd\nthree.png,it is even\n"
    )
    (folder / "data").mkdir()
    rows = ["image,title,category"]
    for i in range(40):
        category = ("bags", "shirts", "shoes")[i % 3]
        Image.new("RGB", (32, 32), (80 * (i % 3), i, 0)).save(folder / "data" / f"{i}.png")
        rows.append(f"{i}.png,number {i},{category}")
    (folder / "data" / "products.csv").write_text("\n".join(rows) + "\n")
    for name in ("food101", "mmimdb", "snli_ve", "mustard"):
        (folder / "data" / name).mkdir()
        getattr(replicas, name)(folder / "data" / name)
    return folder


def run(command: str) -> int:
    words = shlex.split(command)
    assert words[0] == "fusionkit", command
    if words[1:2] == ["compare"] and "--help" not in words:
        words += ["--steps=1", *SHORT]
    if words[1:2] == ["fit"] and "--help" not in words:
        words += SHORT if "quickstart" in command else OWN_TABLE
        if "last" not in words:
            words += ["--trainer.max_epochs=1"]
    try:
        return main(words[1:])
    except SystemExit as stop:  # --help
        return int(stop.code or 0)


# Tests download nothing, so the template runs on random weights and on an encoder that ships.
OWN_TABLE = [
    "--main.weights=random",
    "--complement.model=fusionkit/claims-transformer",
    "--trainer.limit_train_batches=1",
    "--trainer.progress_bar=false",
    "--loader.workers=0",
]


def test_commands_of_readme_docs_and_configs_work(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    seen = []
    for command in [c for page in PAGES for c in commands(page)] + [
        c for config in CONFIGS for c in head_commands(config)
    ]:
        if command in seen:
            continue
        seen.append(command)
        if command.startswith("make "):
            assert f"\n{command.removeprefix('make ')}:" in (ROOT / "Makefile").read_text()
        else:
            assert run(command) == 0, f"{command}\n{capsys.readouterr().err}"
    assert (place / "predictions.csv").read_text().startswith('"image","claim","prediction"')


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.stem)
def test_python_of_the_documents_works(page, place, monkeypatch):
    monkeypatch.chdir(place)
    if page.stem == "README":
        assert run("fusionkit fit --config configs/quickstart.yaml") == 0
    monkeypatch.setattr(api, "fit", fit_shortly)
    names = {"__name__": page.stem}
    for block in blocks(page.read_text(), "python"):
        exec(compile(block, page.name, "exec"), names)


def fit_shortly(config, data, overrides):
    """``fusionkit.fit`` of the template, as OWN_TABLE cuts its command."""
    assert config == "configs/own_table.yaml"
    cut = {
        "main": {"weights": "random"},
        "complement": {"model": "fusionkit/claims-transformer"},
        "trainer": {"max_epochs": 1, "limit_train_batches": 1, "progress_bar": False},
        "loader": {"workers": 0},
    }
    return FIT(config, data, {**overrides, **cut})


def test_yaml_of_the_docs_is_yaml():
    for page in PAGES:
        for block in blocks(page.read_text(), "yaml"):
            assert isinstance(yaml.safe_load(block), dict), page
