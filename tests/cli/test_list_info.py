import json
import sys

import pytest

from fusionkit import registry
from fusionkit.cli import main
from fusionkit.cli.source import describe

PLUGIN = '''
from acme_fusion.base import Base

class Words(Base):
    """Counts words.

    Of any text.
    """
'''
BASE = '''
from typing import Literal

Mode = Literal["sum", "mean"]

class Base:
    def __init__(self, path: str, dim: int = 3, *, mode: Mode | None = None, kind: Mode = "sum"):
        """Make it.

        Args:
            path: Where the words are.
            dim: Width.
        """
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    folder = tmp_path / "acme_fusion"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "words.py").write_text(PLUGIN)
    (folder / "base.py").write_text(BASE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("what", ["encoders", "fusions", "transfers", "datasets"])
def test_list_as_json_has_every_name(capsys, what):
    assert main(["list", what, "--json"]) == 0
    kinds = [k for k in registry.GROUPS if k.endswith("encoder") == (what == "encoders")]
    found = {row["name"] for row in json.loads(capsys.readouterr().out)}
    known = {name for kind in kinds for name in registry.entries(kind)}
    assert found
    assert found <= known


def test_list_of_encoders_says_role_and_origin(capsys):
    assert main(["list", "encoders"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "main or complement" in rows["bert"]
    assert "complement only" in rows["bow"]
    assert f"fusionkit {registry.entries('fusion')['main_only'].version}" in rows["bow"]


@pytest.mark.parametrize("kind", list(registry.GROUPS))
def test_info_describes_every_installed_name(capsys, kind):
    for name in registry.entries(kind):
        assert main(["info", name]) == 0
        out = capsys.readouterr().out
        assert f"name: {name}" in out
        assert "source was not found" not in out


def test_info_does_not_show_arguments_that_configs_cannot_state(capsys):
    main(["info", "conditional_prompt", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    names = {argument["name"] for argument in found["arguments"]}
    assert "experts" in names
    assert not names & {"main", "complements", "self"}


def test_source_is_read_without_importing_the_plugin(plugin):
    found = describe("acme_fusion.words:Words")
    assert found.text == "Counts words.\n\nOf any text."
    assert [(a.name, a.type, a.default, a.doc) for a in found.arguments] == [
        ("path", "str", None, "Where the words are."),
        ("dim", "int", "3", "Width."),
        ("mode", "Mode or null", "None", ""),
        ("kind", "'sum' or 'mean'", "'sum'", ""),
    ]
    assert "acme_fusion" not in sys.modules


@pytest.mark.parametrize("path", ["no_such_package.words:Words", "fusionkit.errors:Nothing"])
def test_source_that_is_not_there_is_none(path):
    assert describe(path) is None


def test_info_of_unknown_name_suggests(capsys):
    assert main(["info", "conditional_promt"]) == 2
    assert "Did you mean 'conditional_prompt'?" in capsys.readouterr().err
