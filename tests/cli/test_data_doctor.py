"""`fusionkit data doctor`: exit codes, what is printed, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from things import Things

from fusionkit.cli import main


@pytest.fixture
def things(tmp_path: Path) -> Things:
    return Things(tmp_path)


def doctor(things: Things, *words: str, **sections) -> int:
    config = things.folder / "c.yaml"
    config.write_text(yaml.safe_dump(things.config(**sections)))
    return main(["data", "doctor", "--config", str(config), *words])


def test_a_table_without_faults(things, capsys):
    assert doctor(things) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # no bar where there is no terminal
    lines = printed.out.splitlines()
    assert lines[0].split() == ["split", "rows", "labels", "largest", "class"]
    assert lines[1].split()[:2] == ["train", "45"]
    assert lines[-1].startswith("Training would run; nothing stands out. (")


def test_a_table_that_would_fail(things, capsys):
    for i in range(5):
        things.rows[i]["photo"] = f"none{i}.png"
    things.rows[60]["title"] = things.rows[7]["title"]
    out = things.folder / "sub" / "findings.json"
    assert doctor(things, "--output", str(out), "--examples", "2") == 1
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("error"))
    assert lines[start] == "error    5 values of field 'image' cannot be read."
    assert lines[start + 1].startswith(
        f"         - things.csv, row 1: The image .../{things.folder.name}/"
    )
    assert lines[start + 3] == "         - and 3 more"
    assert any(line.startswith("note     Field 'text': 1 of 15 test rows") for line in lines)
    verdict = (
        "Training would fail: 5 values of field 'image' cannot be read (things.csv, row 1, "
        "things.csv, row 2, things.csv, row 3 and 2 more)."
    )
    assert lines[-2].startswith(verdict)
    assert lines[-1] == f"All rows of all findings are in {out}."
    written = json.loads(out.read_text())
    assert (written["format"], written["fails"], written["verdict"]) == (1, True, verdict)
    assert len(written["findings"][0]["rows"]) == 5


def test_json_goes_to_standard_output_alone(things, capsys):
    assert doctor(things, "--json", data={"files": "none.csv"}) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["code"] == "data"
    assert "none.csv does not exist" in finding["title"]


def test_what_the_command_can_get_wrong(things, capsys):
    assert doctor(things, "--examples", "-1") == 2
    assert "--examples is at least 0, given -1." in capsys.readouterr().err
    assert doctor(things, complement={"name": "wav2vec2", "model": "x"}) == 2
    assert "reads audio, but the data has no such field" in capsys.readouterr().err
    assert main(["data", "docter"]) == 2
    assert "Did you mean 'doctor'" in capsys.readouterr().err
    assert main(["data", "doctor"]) == 2
    assert "required: --config" in capsys.readouterr().err


def test_overrides_reach_the_config(things, capsys):
    assert doctor(things, "--data.label", "knid") == 1
    assert "Did you mean 'kind'" in " ".join(capsys.readouterr().out.split())
