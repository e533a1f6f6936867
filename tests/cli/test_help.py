from dataclasses import fields

import pytest

from fusionkit import __version__
from fusionkit.cli import COMMANDS, main
from fusionkit.cli.keys import describe_keys
from fusionkit.config.schema import SECTIONS, ConfigKeys


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)


def test_no_arguments_show_the_help(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: fusionkit")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(capsys, command):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: fusionkit {command} ")
    assert max(map(len, out.splitlines())) <= 100


def test_help_of_fit_has_every_key_with_a_line(capsys):
    text = describe_keys()
    keys = [key.name for key in fields(ConfigKeys) if key.name not in SECTIONS]
    keys += [f"{name}.{key.name}" for name, cls in SECTIONS.items() for key in fields(cls)]
    for key in keys:
        line = next(line for line in text.splitlines() if line.split()[:1] in ([key], [f"{key}*"]))
        assert len(line.split()) > 1, key
    assert "trainer.max_epochs              Passes over the training split (12)" in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fusionkit {__version__}\n"
