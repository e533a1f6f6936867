"""``fusionkit data prepare``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fusionkit.cli.parser import Parser
from fusionkit.cli.tables import print_table
from fusionkit.errors import ConfigError, suggest
from fusionkit.registry import entries, load

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")

_KNOWN = {
    "food101": "UPMC Food-101: dishes by photo and title or page",
    "mmimdb": "MM-IMDB: genres by poster and plot",
    "snli_ve": "SNLI-VE: does a picture entail a sentence",
    "mustard": "MUStARD: sarcasm by words, voice and face; needs the extra video",
}


def run(argv: Sequence[str]) -> int:
    """Index a published data set and print what was found."""
    parser = Parser(
        "data prepare",
        "Read a published data set as its authors distribute it, check every row, and write an "
        "index that the data set of that name reads. Nothing is downloaded: what is missing is "
        "listed with where it comes from and where it belongs. The official files stay as they "
        "are; the index goes into the folder fusionkit beside them. Running it again replaces it.",
        "NAME --root DIR [--keep-incomplete]",
        "data sets:\n"
        + "".join(f"  {name:<10}{what}\n" for name, what in _KNOWN.items())
        + "\nexamples:\n"
        "  fusionkit data prepare food101 --root data/food101\n"
        "  fusionkit check --config configs/food101.yaml\n\n"
        "docs/datasets.md has the layout, source and published counts of each.",
    )
    parser.add_argument("name", metavar="NAME", help="which data set")
    parser.add_argument(
        "--root", required=True, metavar="DIR", help="folder of the official files; data.root"
    )
    parser.add_argument(
        "--keep-incomplete",
        action="store_true",
        help="keep rows whose image or clip is missing or broken, without it, for missing.allow; "
        "by default they are dropped",
    )
    options = parser.parse_only(argv)
    prepare = _find(options.name)
    root = Path(options.root).expanduser()
    with _progress() as track:
        report = prepare(root, options.keep_incomplete, track)
    _print(report, options.name, options.root)
    return 0


def _find(name: str) -> Any:
    """The function that prepares a data set.

    Raises:
        ConfigError: There is no such data set, or it needs no preparation.
    """
    if name not in entries("dataset"):
        raise ConfigError(
            f"Unknown data set {name!r}.{suggest(name, _KNOWN)} Known: {', '.join(_KNOWN)}."
        )
    found = getattr(load("dataset", name), "prepare", None)
    if found is None:
        raise ConfigError(
            f"{name} needs no preparation: it is read as it is. To be prepared: "
            f"{', '.join(_KNOWN)}."
        )
    return found


@contextmanager
def _progress() -> Iterator[_Bar]:
    """A bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn as Left,
    )

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with progress:
        yield _Bar(progress)


class _Bar:
    """Passes items on, and shows how far it is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, items: Iterable[Item], total: int, what: str) -> Iterable[Item]:
        task = self._progress.add_task(what, total=total)
        yield from self._progress.track(items, task_id=task, total=total)
        self._progress.remove_task(task)


def _print(report: Any, name: str, root: str) -> None:
    findings = report.findings.summary()
    if findings:
        rows = [(what, f"{count:,}", outcome, first) for what, count, outcome, first in findings]
        print_table(rows, ("found", "rows", "outcome", "first"))
        print(f"All of them: {report.folder / 'findings.csv'}\n")
    counts = [
        (c.split, f"{c.listed:,}", f"{c.listed - c.kept:,}", f"{c.kept:,}", c.published)
        for c in report.counts
    ]
    print_table(counts, ("split", "listed", "dropped", "rows", "published"))
    for remark in report.remarks:
        print(f"\n{remark}")
    print(f"\nThe index is in {report.folder}. In a config: data: {{name: {name}, root: {root}}}")
