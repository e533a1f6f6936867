"""What `fusionkit new-plugin` writes works, and docs/own_encoder.md leads from it to a model."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import yaml

from fusionkit import registry
from fusionkit.cli import main, new_plugin
from fusionkit.encoders.base import ComplementEncoder, MainEncoder, Modality
from fusionkit.testing import CHECKS, format_results, run_contract

PAGE = Path(__file__).parents[2] / "docs" / "own_encoder.md"
TEMPLATES = Path(new_plugin.__file__).with_name("templates")
KINDS = {"main": MainEncoder, "complement": ComplementEncoder}
ALL = [(kind, modality) for kind in KINDS for modality in get_args(Modality)]


def write(folder, name, kind, modality="text"):
    argv = ["new-plugin", name, "--kind", kind, "--modality", modality, "--folder", str(folder)]
    assert main(argv) == 0
    return folder / f"fusionkit-{name.replace('_', '-')}"


# ---- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "modality"), ALL)
def test_each_one_keeps_the_contract(tmp_path, monkeypatch, kind, modality):
    name = f"new_{kind}_{modality}"
    monkeypatch.syspath_prepend(write(tmp_path, name, kind, modality))
    if modality != "text":  # compiling takes most of the time, and differs in nothing
        left = [check for check in CHECKS if check.number != 10]
        monkeypatch.setattr("fusionkit.testing.contracts.CHECKS", left)
    results = run_contract(importlib.import_module(f"fusionkit_{name}.case").case())
    assert not [r for r in results if r.status == "failed"], format_results(results)
    skipped = {r.number for r in results if r.status == "skipped"}
    has_lengths = modality in ("text", "audio", "video", "other")
    assert (5 in skipped) != has_lengths
    if kind == "main":
        assert skipped - {5} == {12}
    assert 1 not in skipped


def test_all_modalities_and_templates_are_used():
    used = {f"{name}.in" for name in ("pyproject.toml", "README.md", "case.py", "test_contract.py")}
    used |= {f"{kind}.py.in" for kind in KINDS} | {f"{m}.py.in" for m in get_args(Modality)}
    assert {path.name for path in TEMPLATES.iterdir()} == used


def test_what_is_written_is_tidy(tmp_path):
    for kind, modality in ALL:
        write(tmp_path, f"{kind}_{modality}", kind, modality)
    ruff = [sys.executable, "-m", "ruff"]
    style = ["--isolated", "--no-cache", "--line-length", "100"]
    select = ["--select", "E,F,W,I,UP,B,SIM,RUF,PT,D1", "--ignore", "D102,D105,D107"]
    for folder in tmp_path.iterdir():
        for command in (["format", "--check", *style], ["check", *style, *select]):
            done = subprocess.run(
                [*ruff, *command, "."], cwd=folder, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr


def test_entry_points_readme_and_class_go_by_the_name(tmp_path, monkeypatch, capsys):
    folder = write(tmp_path, "bird_song", "main", "audio")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "fusionkit-bird-song"
    assert project["dependencies"] == ["fusionkit[audio]"]
    assert project["entry-points"] == {
        "fusionkit.main_encoders": {"bird_song": "fusionkit_bird_song.encoder:BirdSongEncoder"},
        registry.CASES_GROUP: {"bird_song": "fusionkit_bird_song.case:case"},
    }
    assert set(project["entry-points"]) <= {*registry.GROUPS.values(), registry.CASES_GROUP}
    monkeypatch.syspath_prepend(folder)
    made = importlib.import_module("fusionkit_bird_song.encoder").BirdSongEncoder
    assert issubclass(made, MainEncoder)
    assert made.modality == "audio"
    (block,) = re.findall(r"```yaml\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert yaml.safe_load(block)["main"] == {"name": "bird_song"}
    out = capsys.readouterr().out
    assert f"pip install -e {folder}" in out
    assert "fusionkit contract bird_song" in out
    written = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert len(written) == 7
    assert not any("$" in path.read_text() for path in written)


def test_its_own_test_passes(tmp_path):
    folder = write(tmp_path, "tested", "complement", "vector")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_weights_load_strictly_from_a_file(tmp_path, monkeypatch):
    import torch

    from fusionkit.errors import WeightsError

    monkeypatch.syspath_prepend(write(tmp_path, "weighed", "main"))
    made = importlib.import_module("fusionkit_weighed.encoder").WeighedEncoder
    encoder = made(dim=16, depth=2)
    torch.save(encoder.backbone.state_dict(), tmp_path / "own.pt")
    again = made(dim=16, depth=2, weights=str(tmp_path / "own.pt"))
    assert torch.equal(again.backbone.norm.weight, encoder.backbone.norm.weight)
    assert torch.equal(again.backbone.stem.byte.weight, encoder.backbone.stem.byte.weight)
    with pytest.raises(WeightsError, match=r"do not fit.*blocks\.2\."):
        made(dim=16, depth=3, weights=str(tmp_path / "own.pt"))
    with pytest.raises(WeightsError, match=r"No weights can be read from 'nowhere\.pt'"):
        made(weights="nowhere.pt")


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Text", "Did you mean 'my_text'?"),
        ("myText", "Did you mean 'my_text'?"),
        ("2d", "'2d' cannot name an encoder: lower-case letters"),
        ("a__b", "cannot name"),
        ("a_", "Did you mean 'a'?"),
        ("größe", "cannot name"),
        ("../x", "cannot name"),
        ("class", "no word of Python or YAML"),
        ("null", "no word of Python or YAML"),
        ("no", "no word of Python or YAML"),
        ("main", "'main' is a role"),
        ("timm_vit", "There is an encoder 'timm_vit' already, of fusionkit"),
        ("bow", "There is an encoder 'bow' already, of fusionkit"),
    ],
)
def test_names_that_cannot_be_used_are_refused(tmp_path, capsys, name, message):
    assert main(["new-plugin", name, "--kind", "main", "--folder", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path, capsys):
    folder = write(tmp_path, "mine", "main")
    (folder / "README.md").write_text("kept")
    assert main(["new-plugin", "mine", "--kind", "complement", "--folder", str(tmp_path)]) == 2
    assert "exists, and nothing was written" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == "kept"
    assert "BlockStack" in (folder / "fusionkit_mine" / "encoder.py").read_text()


def test_a_folder_that_is_not_there_is_an_error(tmp_path, capsys):
    missing = tmp_path / "nowhere"
    assert main(["new-plugin", "mine", "--kind", "main", "--folder", str(missing)]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_half_written(tmp_path, monkeypatch, capsys, error):
    before, calls = Path.write_text, []

    def fail_the_third(path, *args, **options):
        calls.append(path)
        if len(calls) == 3:
            raise error
        return before(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", fail_the_third)
    assert main(["new-plugin", "mine", "--kind", "main", "--folder", str(tmp_path)]) != 0
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


# ---- the page ------------------------------------------------------------------------------------

FEW = [
    "--trainer.limit_test_batches=1",
    "--trainer.progress_bar=false",
    "--loader.eval_batch_size=16",
]
SHORT = {
    "fit": [
        *FEW,
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1",
        "--data.claims_per_image=2",
    ],
    "test": FEW,
}
DRIVER = """
import json, sys
from fusionkit.cli import main
for argv in json.loads(sys.argv[1]):
    print("$", *argv, flush=True)
    print("exit code", main(argv), flush=True)
"""


class Reader:
    """Does what the page says, in its order, as if the distribution were installed."""

    def __init__(self, folder):
        self.folder, self.site = folder, folder / "site"
        self.package = folder / "fusionkit-my-words"
        self.commands, self.shown, self.files = [], [], []

    def follow(self, text):
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            if language == "sh":
                for line in block.splitlines():
                    self.type(shlex.split(line))
            elif block.startswith("# "):
                path, _, content = block.removeprefix("# ").partition("\n")
                self.write(path, content)
        self.run()

    def type(self, words):
        if words[:2] == ["pip", "install"]:
            self.run()
            assert words[2:] == ["-e", "./fusionkit-my-words"]
            self.install()
        else:
            assert words[0] == "fusionkit", words
            self.commands.append([*words[1:], *SHORT.get(words[1], [])])

    def write(self, path, content):
        self.run()
        (self.folder / path).write_text(content)
        self.files.append(path)

    def install(self):
        """Not editable, for want of an environment; the folder stands first on the path."""
        offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *offline]
        subprocess.run([*pip, "--target", str(self.site), str(self.package)], check=True)

    def run(self):
        """The commands that wait, in one process: each import of torch takes seconds."""
        if not self.commands:
            return
        path = os.pathsep.join([str(self.package), str(self.site)])
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, json.dumps(self.commands)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        codes = re.findall(r"^exit code (\d+)$", done.stdout, re.MULTILINE)
        assert len(codes) == len(self.commands), done.stdout + done.stderr
        self.shown.append((done.stdout, codes))
        self.commands = []


def test_the_page_leads_from_an_empty_folder_to_a_trained_model(tmp_path):
    page = PAGE.read_text()
    reader = Reader(tmp_path)
    reader.follow(page)
    assert len(reader.shown) == 4
    out = "".join(text for text, _ in reader.shown)
    codes = [code for _, found in reader.shown for code in found]
    assert codes == ["0"] * 8, out
    assert reader.files == ["my_words.yaml", "fusionkit-my-words/fusionkit_my_words/inputs.py"]
    assert re.search(r"my_words +either +text +.* fusionkit-my-words +0\.1\.0", out)
    assert len(re.findall("25 passed, 0 failed, 1 skipped", out)) == 2
    for run in ("bytes", "words"):
        assert (tmp_path / "runs" / run / "000" / "model.safetensors").is_file()
    assert "test/accuracy" in reader.shown[-1][0]

    # What the page says of an encoder that is broken.
    (shown,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    path = reader.package / "fusionkit_my_words" / "inputs.py"
    right = path.read_text()
    path.write_text(right.replace('"keep": keep}', '"keep": torch.ones_like(keep)}'))
    assert path.read_text() != right
    reader.follow("```sh\nfusionkit contract my_words\n```")
    out, codes = reader.shown[-1]
    assert codes == ["1"]
    number = r"\d\.\de[+-]\d\d"
    assert re.sub(number, "N", shown) in re.sub(number, "N", out), out
