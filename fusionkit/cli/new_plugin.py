"""``fusionkit new-plugin``."""

from __future__ import annotations

import keyword
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

import yaml

from fusionkit.cli.parser import Parser
from fusionkit.cli.tables import print_table
from fusionkit.errors import ConfigError
from fusionkit.registry import entries

_KINDS = ("main", "complement")
_MODALITIES = ("text", "image", "audio", "video", "table", "vector", "other")
_EXTRAS = ("audio", "video")  # modalities whose files are read by optional libraries

# What the contract is run on: an expression, and what it needs of the package's inputs.
_SAMPLES = {
    "table": ('samples("table", columns=COLUMNS)', "COLUMNS"),
    "vector": ('samples("vector", width=WIDTH)', "WIDTH"),
    "other": ("EXAMPLES", "EXAMPLES"),
}


def run(argv: Sequence[str]) -> int:
    """Write a distribution with a small encoder that works."""
    parser = Parser(
        "new-plugin",
        "Write a distribution with an encoder of your own: it installs, passes the contract and "
        "can be trained as it is, with a small model where yours goes.",
        "NAME --kind main|complement [--modality MODALITY] [--folder FOLDER]",
        "examples:\n  fusionkit new-plugin my_text --kind main\n"
        "  fusionkit new-plugin my_sounds --kind complement --modality audio\n\n"
        "docs/own_encoder.md goes on from there.",
    )
    parser.add_argument("name", metavar="NAME", help="what configs call the encoder")
    parser.add_argument(
        "--kind",
        choices=_KINDS,
        required=True,
        help="main: has layers that are prompted, fits either role; complement: anything else",
    )
    parser.add_argument(
        "--modality",
        choices=_MODALITIES,
        default="text",
        metavar="MODALITY",
        help=f"what it reads: {', '.join(_MODALITIES)} (text)",
    )
    parser.add_argument(
        "--folder", default=".", metavar="FOLDER", help="where the distribution's folder goes (.)"
    )
    options = parser.parse_only(argv)
    _check_name(options.name)
    target = Path(options.folder, _distribution(options.name))
    _write(target, _texts(options.name, options.kind, options.modality))
    _print_next(target, options.name, options.kind)
    return 0


def _check_name(name: str) -> None:
    """Raise ConfigError unless configs, Python and package indexes can all use it."""
    usable = re.fullmatch(r"[a-z](?:[a-z0-9_]*[a-z0-9])?", name) and "__" not in name
    if not usable or keyword.iskeyword(name) or not isinstance(yaml.safe_load(name), str):
        close = re.sub(r"\W+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).strip("_").lower()
        hint = f" Did you mean {close!r}?" if close != name and close.isidentifier() else ""
        raise ConfigError(
            f"{name!r} cannot name an encoder: lower-case letters, digits and single _ between "
            f"them, a letter first, and no word of Python or YAML.{hint}"
        )
    if name in _KINDS:
        raise ConfigError(f"{name!r} is a role, not a name for an encoder. Choose another.")
    for kind in ("main_encoder", "complement_encoder"):
        known = entries(kind)  # type: ignore[arg-type]
        if name in known:
            raise ConfigError(
                f"There is an encoder {name!r} already, of {known[name].distribution} "
                f"{known[name].version}. Choose another name."
            )


def _texts(name: str, kind: str, modality: str) -> dict[str, str]:
    """The distribution's files: text by path."""
    package = f"fusionkit_{name}"
    samples, needed = _SAMPLES.get(modality, (f'samples("{modality}")', ""))
    values = {
        "name": name,
        "kind": kind,
        "modality": modality,
        "distribution": _distribution(name),
        "package": package,
        "encoder": "".join(part.capitalize() for part in name.split("_")) + "Encoder",
        "role": "main or complement" if kind == "main" else "for the role of a complement",
        "fusionkit": f"fusionkit[{modality}]" if modality in _EXTRAS else "fusionkit",
        "sizes": "16, 2" if kind == "main" else "16",
        "samples": samples,
        "samples_import": ", samples" if "samples(" in samples else "",
        "inputs_import": f"\nfrom {package}.inputs import {needed}" if needed else "",
    }

    def fill(template: str) -> str:
        file = Path(__file__).parent / "templates" / f"{template}.in"
        return Template(file.read_text(encoding="utf-8")).substitute(values)

    return {
        "pyproject.toml": fill("pyproject.toml"),
        "README.md": fill("README.md"),
        f"{package}/__init__.py": f'"""{name}, an encoder of fusionkit."""\n',
        f"{package}/encoder.py": fill(f"{kind}.py"),
        f"{package}/inputs.py": fill(f"{modality}.py"),
        f"{package}/case.py": fill("case.py"),
        "tests/test_contract.py": fill("test_contract.py"),
    }


def _distribution(name: str) -> str:
    return f"fusionkit-{name.replace('_', '-')}"


def _write(target: Path, texts: Mapping[str, str]) -> None:
    """All files or none: they are written beside ``target``, which appears when it is whole."""
    if target.exists():
        raise ConfigError(f"{target} exists, and nothing was written. Move it or choose a name.")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as beside:
            made = Path(beside, target.name)
            for path, text in texts.items():
                (made / path).parent.mkdir(parents=True, exist_ok=True)
                (made / path).write_text(text, encoding="utf-8")
            made.rename(target)
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be written: {error.strerror}. Choose another with --folder."
        ) from error


def _print_next(target: Path, name: str, kind: str) -> None:
    package = f"fusionkit_{name}"
    print(f"Written to {target}:")
    print_table(
        [
            (f"  {package}/encoder.py", "the model, and how fusionkit runs it"),
            (f"  {package}/inputs.py", "from raw values to tensors"),
            (f"  {package}/case.py", "what the contract is run on"),
        ]
    )
    print(
        f"\nIt works as it is; your own model goes where it says `# replace this`. Next:\n"
        f"  pip install -e {shlex.quote(_path(target))}\n"
        f"  fusionkit list encoders\n"
        f"  fusionkit contract {name}\n"
        f"and in a config, or as options of `fusionkit fit`:\n"
        f"  {kind}: {name}\n"
        f"  {kind}_transfer: fine_tune"
    )


def _path(target: Path) -> str:
    """As pip takes it for a folder."""
    return str(target) if target.is_absolute() else f"./{target}"
