"""MM-IMDB: the genres of a film, from its poster and its plot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from fusionkit.data.base import Task
from fusionkit.data.messy import check_images, complete, read_json, read_text, unique
from fusionkit.data.prepare import (
    FOLDER,
    Count,
    Findings,
    Piece,
    Prepared,
    Row,
    Track,
    find_all,
    open_folder,
    silent,
    total,
    write_pairs,
)
from fusionkit.data.published import Published
from fusionkit.data.rows import FieldSpec
from fusionkit.errors import DataError

_SOURCE = "mmimdb.tar.gz, see https://github.com/johnarevalo/gmu-mmimdb"
_SPLIT = Piece("split.json", "the official division", _SOURCE, ("mmimdb/split.json",))
_FILMS = Piece(
    "dataset",
    "ID.json and ID.jpeg of each film",
    _SOURCE,
    ("mmimdb/dataset", "labels", "mmimdb/labels"),
)
_POSTERS = ("images", "mmimdb/images")  # where copies keep posters apart from the films' data
_SUFFIXES = (".jpeg", ".jpg")

# By split: what split.json calls it, and the films it lists there.
_SPLITS = {
    "train": (("train",), 15_552),
    "val": (("dev", "val"), 2_608),
    "test": (("test",), 7_799),
}
_LEFT_OUT = ("News", "Reality-TV", "Talk-Show")  # films so tagged; too few to learn or to count


class MMIMDB(Published):
    """MM-IMDB: the genres of a film, from its poster and its plot; several hold of each.

    Arevalo et al., arXiv 1702.01992. Where a film has several plots, the longest is taken, as in
    the code of MMBT. Films tagged News, Reality-TV or Talk-Show are left out. Run
    ``fusionkit data prepare mmimdb`` once.

    Args:
        root: Folder with the official files.
        more_fields: Further fields, as of ``table``, over the columns id, image, text and label:
            {audio: "trailers/{id}.wav"}; paths are relative to ``root``.
    """

    name: ClassVar[str] = "mmimdb"
    # fmt: off
    labels: ClassVar[tuple[str, ...]] = (
        "Drama", "Family", "Comedy", "Biography", "Romance", "War", "Thriller", "History", "Crime",
        "Music", "Action", "Animation", "Adventure", "Musical", "Horror", "Western", "Documentary",
        "Sport", "Mystery", "Short", "Sci-Fi", "Film-Noir", "Fantasy",
    )
    # fmt: on

    task: Task = "multi_label"

    def __init__(self, root: str, more_fields: dict[str, str | FieldSpec] | None = None) -> None:
        files = {name: name for name in _SPLITS}
        super().__init__(root, files, {"image": "image", "text": "text"}, more_fields)

    @classmethod
    def prepare(cls, root: Path, keep_incomplete: bool = False, track: Track = silent) -> Prepared:
        division, films = find_all(cls.name, root, [_SPLIT, _FILMS])
        open_folder(root)
        findings = Findings()
        stated = _read_division(division, findings)
        posters = _posters(root, films)
        splits = unique(
            {
                split: track(_read(root, films, posters, ids, findings), len(ids), f"{split} films")
                for split, ids in stated.items()
            },
            findings,
        )
        problems = check_images(root, (r["image"] for rows in splits.values() for r in rows), track)
        splits = {
            split: complete(rows, problems, keep_incomplete, findings)
            for split, rows in splits.items()
        }
        counts = [
            Count(split, len(stated[split]), len(rows), f"{_SPLITS[split][1]:,} listed")
            for split, rows in splits.items()
        ]
        last = total(counts, "25,959 listed, 25,956 used in arXiv 2312.03734")
        report = Prepared(root / FOLDER, [*counts, last], findings)
        write_pairs(root, cls.name, splits, report)
        return report


def _read_division(path: Path, findings: Findings) -> dict[str, list[str]]:
    """Ids by split."""
    content = read_json(path, findings)
    found: dict[str, list[str]] = {}
    for split, (names, _) in _SPLITS.items():
        ids = next((content[n] for n in names if n in content), None) if content else None
        if not isinstance(ids, list):
            raise DataError(f"{path} has no list {names[0]!r} of film ids. Fetch it again.")
        found[split] = [str(name) for name in ids]
    return found


def _posters(root: Path, films: Path) -> Path:
    """The folder of the posters: that of the films' data, unless it holds none."""
    apart = next((root / path for path in _POSTERS if (root / path).is_dir()), None)
    own = any(next(films.glob(f"*{suffix}"), None) for suffix in _SUFFIXES)
    return films if own or apart is None else apart


def _read(
    root: Path, films: Path, posters: Path, ids: Iterable[str], findings: Findings
) -> Iterator[Row]:
    for name in ids:
        row = _row(films / f"{name}.json", findings)
        if row is not None:
            poster = next(
                (p for s in _SUFFIXES if (p := posters / f"{name}{s}").exists()),
                posters / f"{name}{_SUFFIXES[0]}",
            )
            yield {"id": name, "image": poster.relative_to(root).as_posix(), **row}


def _row(path: Path, findings: Findings) -> Row | None:
    """Text and label of a film; None if it is left out."""
    try:
        film: dict[str, Any] = json.loads(read_text(path, findings))
        plots, genres = film.get("plot") or "", film["genres"]
        plot = plots if isinstance(plots, str) else max(plots, key=len)  # the first of equals
    except FileNotFoundError:
        findings.add("film data missing", "dropped", path.name)
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        findings.add("film data unreadable", "dropped", path.name)
        return None
    tagged = [genre for genre in genres if genre in _LEFT_OUT]
    if tagged:
        findings.add(f"tagged {tagged[0]}", "dropped, as published", path.stem)
        return None
    for genre in genres:
        if genre not in MMIMDB.labels:
            findings.add(f"genre {genre}, none of the 23", "genre left out", path.stem)
    label = [genre for genre in genres if genre in MMIMDB.labels]
    if not label:
        findings.add("no genre of the 23", "dropped", path.stem)
        return None
    return {"text": plot.strip(), "label": label}
