import pytest

from fusionkit import cli
from fusionkit.cli import main
from fusionkit.errors import ConfigError


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("main: {name: bert, model: x}\ncomplement: bow\ndata: digit_claims\n")
    return str(path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fitt"], "Unknown command 'fitt'. Did you mean 'fit'? Commands: fit, validate, test"),
        (["--verison"], "Unknown option '--verison'."),
        (["fit"], "The following arguments are required: --config. See `fusionkit fit --help`."),
        (["fit", "--config", "CONFIG", "--fuson.x", "3"], "'--fuson.x'. Did you mean '--fusion'?"),
        (["fit", "--config", "CONFIG", "--ckpt_pth", "3"], "Did you mean '--ckpt_path'?"),
        (["fit", "--config", "CONFIG", "b.yaml"], "Did you mean '--config b.yaml'?"),
        (["fit", "--config", "CONFIG", "--complement"], "--complement needs a value"),
        (["fit", "--config", "CONFIG", "--seed", "--output", "x"], "--seed needs a value"),
        (["fit", "--config", "CONFIG", "--complement", "brt"], "command line: complement: Unknown"),
        (["fit", "--config=CONFIG", "--main=bow"], "main: 'bow' has no layers to prompt"),
        (["check", "--config", "CONFIG", "--seed=x"], "seed: expected int, given 'x'."),
        (["list", "encodrs"], "invalid choice: 'encodrs'"),
        (
            ["predict", "--ckpt_path", "x", "--input", "a", "--output", "b.txt"],
            ".csv, .tsv, .jsonl",
        ),
    ],
)
def test_error_is_one_clean_message(capsys, config, argv, message):
    argv = [word.replace("CONFIG", config) for word in argv]
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("fusionkit: error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("FUSIONKIT_TRACEBACK", "1")
    with pytest.raises(ConfigError):
        main(["fitt"])


def test_interrupt_exits_with_130(monkeypatch, capsys):
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "fusionkit: interrupted.\n"
