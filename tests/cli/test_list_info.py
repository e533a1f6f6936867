import json
import re
import sys
from importlib.metadata import EntryPoint

import pytest

from fusionkit import registry
from fusionkit.cli import main
from fusionkit.cli.source import describe, modality_of

PLUGIN = '''
from acme_fusion.base import Base

class Words(Base):
    """Counts words.

    Of any text.
    """

class Pictures(Base):
    modality = "image"

class Silent:
    modality: str
'''
BASE = '''
from typing import ClassVar, Literal

Mode = Literal["sum", "mean"]

class Base:
    modality: ClassVar[str] = "audio"

    def __init__(self, path: str, dim: int = 3, *, mode: Mode | None = None, kind: Mode = "sum"):
        """Make it.

        Args:
            path: Where the words are.
            dim: Width.
        """
'''
ENCODERS = {
    "inherits": "words:Words",
    "states": "words:Pictures",
    "silent": "words:Silent",
    "absent": "nowhere:Words",
}


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


def rows_of(out):
    """Cells by column title, for each name."""
    titles, *lines = [re.split(r"\s{2,}", line) for line in out.splitlines() if "  " in line]
    return {line[0]: dict(zip(titles, line, strict=True)) for line in lines}


def test_list_of_encoders_is_a_table(capsys):
    assert main(["list", "encoders"]) == 0
    rows = rows_of(capsys.readouterr().out)
    version = registry.entries("fusion")["main_only"].version
    assert rows["bow"] == {
        "name": "bow",
        "role": "complement",
        "modality": "text",
        "what it is": "mean of word embeddings",
        "source": "fusionkit",
        "version": version,
    }
    assert rows["timm_vit"]["role"] == "either"
    assert rows["timm_vit"]["modality"] == "image"
    assert list(rows).index("timm_vit") < list(rows).index("bow")
    known = {**registry.entries("main_encoder"), **registry.entries("complement_encoder")}
    assert rows.keys() == known.keys()


@pytest.mark.parametrize(("columns", "described"), [(80, False), (120, True)])
def test_list_of_encoders_fits_the_terminal(capsys, monkeypatch, columns, described):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["list", "encoders"]) == 0
    lines = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()
    assert len(lines) > 8
    assert max(map(len, lines)) <= columns
    assert ("what it is" in lines[0]) == described
    assert all(title in lines[0] for title in ("name", "role", "modality", "source", "version"))


@pytest.mark.parametrize("kind", ["main_encoder", "complement_encoder"])
def test_summaries_of_built_ins_state_the_modality_of_the_class(kind):
    checked = 0
    for entry in registry.entries(kind).values():
        if entry.distribution == "fusionkit":
            assert entry.summary.partition(":")[0] == modality_of(entry.path), entry.name
            checked += 1
    assert checked >= 2


def test_modality_of_a_plugin_is_read_from_its_source(plugin, capsys, monkeypatch):
    points = [EntryPoint(name, f"acme_fusion.{path}", "") for name, path in ENCODERS.items()]
    monkeypatch.setattr(
        registry,
        "_installed_entry_points",
        lambda group: points if group == "fusionkit.complement_encoders" else [],
    )
    assert main(["list", "encoders", "--json"]) == 0
    found = {row["name"]: row["modality"] for row in json.loads(capsys.readouterr().out)}
    assert {name: found[name] for name in ENCODERS} == {
        "inherits": "audio",
        "states": "image",
        "silent": None,
        "absent": None,
    }
    assert "acme_fusion" not in sys.modules
    assert main(["list", "encoders"]) == 0
    assert "silent" in capsys.readouterr().out


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
