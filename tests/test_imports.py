"""Imports go one way, and what answers at once imports no torch (docs/design.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fusionkit

ROOT = Path(fusionkit.__file__).parent

# What each room may import of fusionkit, besides itself, errors and the registry.
ALLOWED = {
    "errors": set(),
    "registry": set(),
    "encoders": {"pretrained"},
    "prompts": {"encoders.base"},
    "pretrained": set(),
    "transfer": {"encoders.base", "prompts"},
    "fusion": {"encoders.base", "encoders.sequences", "prompts", "transfer.base"},
    "data": {"encoders.base", "encoders.files", "config.schema"},
    "config": {"encoders.base"},
    "cache": {
        "config.schema",
        "data",
        "encoders.base",
        "encoders.files",
        "fusion.model",
        "transfer.base",
    },
    "testing": {"encoders.base", "encoders.stack"},
    "training": {
        "cache",
        "config",
        "data",
        "encoders.base",
        "fusion.base",
        "fusion.model",
        "prompts",
        "transfer.base",
    },
    "compare": {
        "cache",
        "config",
        "data",
        "encoders.base",
        "fusion.base",
        "fusion.model",
        "training",
    },
    "analysis": {
        "config",
        "data",
        "encoders.audio",
        "encoders.base",
        "encoders.images",
        "training",
    },
    "sweep": {"compare", "config", "data.folders", "training"},
    "doctor": {
        "config.schema",
        "data",
        "encoders.audio",
        "encoders.base",
        "encoders.files",
        "encoders.images",
        "fusion.model",
        "training.assemble",
    },
    "cli": {"analysis", "cache", "compare", "config", "doctor", "sweep", "testing", "training"},
}
MODULES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem[0] != "_")


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or late."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            package = ROOT.parent.joinpath(*node.module.split("."))
            is_ours = node.module.split(".")[0] == "fusionkit" and package.is_dir()
            found |= submodules if is_ours else {node.module}
    return found


def test_modules_are_found():
    assert len(MODULES) > 30


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    allowed = {"errors", "registry", "__version__", room} | ALLOWED[room]
    for module in imported(path):
        if module.startswith("fusionkit."):
            inner = module.removeprefix("fusionkit.")
            assert any(inner == a or inner.startswith(f"{a}.") for a in allowed), (
                f"{path.relative_to(ROOT)} imports {module}"
            )
        if module.partition(".")[0] in ("lightning", "pytorch_lightning"):
            assert room in ("training", "compare", "cli"), (
                f"{path.relative_to(ROOT)} imports {module}"
            )


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["list", "encoders"],
        ["list", "encoders", "--json"],
        ["new-plugin", "bert", "--kind", "main"],
        ["contract", "brt"],
        ["info", "bert"],
        ["fit", "--help"],
        ["report", "--help"],
        ["contributions", "--help"],
        ["sweep", "--help"],
        ["table", "--help"],
        ["plot", "--help"],
        ["data", "doctor", "--help"],
        ["data", "prepare", "--help"],
        ["data", "prepare", "food101", "--root", "nowhere"],
        ["fitt"],
        ["fit", "--config", "CONFIG", "--complement", "brt"],
        ["fit", "--config", "CONFIG", "--trainer.max_epoch", "3"],
    ],
    ids=" ".join,
)
def test_answers_without_torch(argv, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("main: {name: bert, model: x}\ncomplement: bow\ndata: digit_claims\n")
    argv = [word.replace("CONFIG", str(config)) for word in argv]
    code = (
        "import sys, fusionkit, fusionkit.registry, fusionkit.config.validate\n"
        "from fusionkit.cli import main\n"
        f"main({argv!r})\n"
        "heavy = {'torch', 'lightning', 'transformers', 'timm'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
