"""MUStARD: is it meant sarcastically, by words, voice and face?"""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from fusionkit.data.clips import extract_sound
from fusionkit.data.messy import read_json
from fusionkit.data.prepare import (
    FOLDER,
    Count,
    Findings,
    Piece,
    Prepared,
    Row,
    Track,
    check_any,
    find_all,
    open_folder,
    silent,
    to_table,
    write_index,
)
from fusionkit.data.published import Published
from fusionkit.data.rows import FieldSpec
from fusionkit.errors import DataError

_PAGE = "https://github.com/soujanyaporia/MUStARD"
_TEXTS = Piece(
    "sarcasm_data.json",
    "what is said, by whom and how",
    f"data/sarcasm_data.json of {_PAGE}",
    ("data/sarcasm_data.json",),
)
_CLIPS = Piece(
    "utterances_final",
    "the clips, ID.mp4",
    f"mmsd_raw_data.zip, linked at {_PAGE}",
    (
        "mmsd_raw_data/utterances_final",
        "videos/utterances_final",
        "data/videos/utterances_final",
        "raw_videos/mmsd_raw_data/utterances_final",
    ),
)
_FOLDS = Piece(
    "split_indices.p",
    "the five folds of the speaker-dependent setting",
    f"data/split_indices.p of {_PAGE}",
    ("data/split_indices.p",),
)
_COLUMNS = ("id", "text", "context", "speaker", "show", "audio", "video", "label", "split")
_HELD_OUT_SHOW = "FRIENDS"  # the test split of the speaker-independent setting
_N_FOLDS = 5

# All that arrays are made of; a pickle that asks for anything else is refused.
_ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class Mustard(Published):
    """MUStARD: is an utterance of a television series meant sarcastically?

    Castro et al., ACL 2019, arXiv 1906.01815. Fields: text, audio and video. Validation is a tenth
    of the training rows, drawn by class, with a fixed seed; the authors have none. Run
    ``fusionkit data prepare mustard`` once.

    Args:
        root: Folder with the official files.
        setting: speaker_independent: Friends is the test split, the other series train. Or one of
            the authors' five folds of the speaker-dependent setting, its test split.
        context: Whether the text begins with what was said before the utterance.
        more_fields: Further fields, as of ``table``, over the columns id, text, context, speaker,
            show, audio, video and label; paths are relative to ``root``.
    """

    name: ClassVar[str] = "mustard"
    labels: ClassVar[tuple[str, ...]] = ("sincere", "sarcastic")

    def __init__(
        self,
        root: str,
        setting: Literal[
            "speaker_independent", "fold_1", "fold_2", "fold_3", "fold_4", "fold_5"
        ] = "speaker_independent",
        context: bool = False,
        more_fields: dict[str, str | FieldSpec] | None = None,
    ) -> None:
        fields = {
            "text": "{context}{text}" if context else "text",
            "audio": "audio",
            "video": "video",
        }
        super().__init__(root, setting, fields, more_fields, split="split")

    @classmethod
    def prepare(cls, root: Path, keep_incomplete: bool = False, track: Track = silent) -> Prepared:
        texts, folder = find_all(cls.name, root, [_TEXTS, _CLIPS])
        open_folder(root)
        findings = Findings()
        rows = _read(texts, findings)
        sound = root / FOLDER / "audio"
        clips = {folder / f"{row['id']}.mp4": sound / f"{row['id']}.wav" for row in rows}
        problems = extract_sound(clips, track)
        outcome = "kept without it" if keep_incomplete else "dropped"
        for row, (clip, wav) in zip(rows, clips.items(), strict=True):
            problem = problems.get(clip)
            if problem:
                findings.add(f"clip {problem}", outcome, clip.name)
            seen = problem in (None, "without sound")
            row["video"] = clip.relative_to(root).as_posix() if seen else None
            row["audio"] = None if problem else wav.relative_to(root).as_posix()
        divisions, remarks = _divisions(root, rows)
        tables, counts = {}, []
        for file, (division, published) in divisions.items():
            kept = [
                {**row, "split": split}
                for row, split in zip(rows, division, strict=True)
                if keep_incomplete or row["audio"]
            ]
            check_any(cls.name, [row for row in kept if row["split"] == "train"], findings)
            tables[file] = to_table(kept, _COLUMNS)
            for split in ("train", "test"):
                size = sum(row["split"] == split for row in kept)
                name = f"{file}: {split}"
                counts.append(Count(name, division.count(split), size, published[split]))
        report = Prepared(root / FOLDER, counts, findings, remarks)
        write_index(root, cls.name, tables, report)
        return report

    def _absent(self, path: Path, command: str) -> str:
        if path.stem == "speaker_independent":
            return super()._absent(path, command)
        return (
            f"{self._root} was prepared without {_FOLDS.path}, {_FOLDS.what} ({_FOLDS.source}). "
            f"Put it at {(self._root / _FOLDS.path).absolute()} and run: {command}; or set "
            f"data.setting: speaker_independent."
        )


def _read(path: Path, findings: Findings) -> list[Row]:
    """A row for each utterance, in the order of the file, which the folds count by."""
    content = read_json(path, findings)
    if not isinstance(content, dict):
        raise DataError(f"{path} is no mapping of utterances by id. Fetch it again: {_PAGE}.")
    rows = []
    for name, said in content.items():
        try:
            text, before, sarcasm = said["utterance"], said["context"], said["sarcasm"]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path}: {name!r} lacks {error}. Fetch the file again: {_PAGE}."
            ) from error
        # An apostrophe of the old Macintosh encoding, read as Latin-1 before it was published.
        if "\u00d5" in text + "".join(before):
            findings.add("\u00d5 for an apostrophe", "repaired", name)
        show = said.get("show")
        if not show:
            findings.add("no series", "taken from the id", name)
            show = _HELD_OUT_SHOW if name.startswith("2_") else "OTHER"
        row = {
            "id": name,
            "text": _repair(text),
            "context": "".join(f"{_repair(sentence)}\n" for sentence in before),
            "speaker": said.get("speaker") or "",
            "show": show,
            "label": Mustard.labels[bool(sarcasm)],
        }
        if not row["text"]:
            findings.add("text empty", "kept", name)
        rows.append(row)
    return rows


def _repair(text: str) -> str:
    return " ".join(text.replace("\u00d5", "'").split())


def _divisions(
    root: Path, rows: Sequence[Row]
) -> tuple[dict[str, tuple[list[str], Mapping[str, str]]], list[str]]:
    """``"train"`` or ``"test"`` of each row with the published counts, by file; and remarks."""
    independent = ["test" if row["show"] == _HELD_OUT_SHOW else "train" for row in rows]
    divisions: dict[str, tuple[list[str], Mapping[str, str]]] = {
        "speaker_independent": (independent, {"train": "334", "test": "356"})
    }
    path = _FOLDS.find(root)
    if path is None:
        return divisions, [
            f"{_FOLDS.path} was not found: data.setting: fold_1 to fold_5 cannot be used. It is "
            f"{_FOLDS.source} and belongs at {(root / _FOLDS.path).absolute()}."
        ]
    for number, test in enumerate(_read_folds(path, len(rows)), start=1):
        fold = ["test" if place in test else "train" for place in range(len(rows))]
        divisions[f"fold_{number}"] = (fold, {"train": "552", "test": "138"})
    return divisions, []


class _Unpickler(pickle.Unpickler):
    """Reads arrays and nothing else: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ARRAYS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _read_folds(path: Path, rows: int) -> list[set[int]]:
    """Rows of the test split of each fold."""
    try:
        with path.open("rb") as file:
            folds = _Unpickler(file, encoding="latin1").load()
        found = [
            (set(np.asarray(train).tolist()), set(np.asarray(test).tolist()))
            for train, test in folds
        ]
        fits = len(found) == _N_FOLDS and all(
            train | test == set(range(rows)) and not train & test for train, test in found
        )
        if not fits:
            raise ValueError(f"it does not divide {rows} utterances in {_N_FOLDS} folds")
    # What a pickle raises that is none, or another one.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be used: {error}. Fetch it and sarcasm_data.json again, both from "
            f"{_PAGE}; without it, the speaker-independent setting can be prepared."
        ) from error
    return [test for _, test in found]
