"""Texts: lengths against the encoder's limit, empty ones, near duplicates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

from fusionkit.doctor.digests import digest_text
from fusionkit.doctor.findings import Finding, count, percent
from fusionkit.doctor.near import group
from fusionkit.doctor.study import FieldStudy, Reader, Study
from fusionkit.doctor.values import Value

_SHOWN = 60  # characters

_LETTERS = 5  # of a shingle
_LEAST = 100  # shingles: in shorter texts, one sentence mostly, one word makes the difference
_PERMUTATIONS = 128
_PIECES = 16  # of 8 values each: of pairs as alike as this, 99.99 % have one in common
_ALIKE = 0.9  # share of shingles that both have, of those that either has

_MUCH = 0.05  # share of texts that are cut from which on it is a warning


class Facts(NamedTuple):
    """Words, and tokens as each reader counts them, None where it does not."""

    words: int
    tokens: tuple[int | None, ...]


class Text(Value):
    """A text."""

    def shown(self) -> str:
        text = str(self.raw)
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

    def digest(self) -> bytes:
        return digest_text(self.raw)

    def facts(self, readers: Sequence[Reader]) -> Facts:
        return Facts(len(self.raw.split()), tuple(_tokens(reader, self.raw) for reader in readers))

    def near(self) -> bytes:
        """(128) values of a MinHash; none of a short text."""
        text = " ".join(re.findall(r"\w+", self.raw.casefold()))
        shingles = {text[i : i + _LETTERS] for i in range(len(text) - _LETTERS + 1)}
        if len(shingles) < _LEAST:
            return b""
        made = MinHash(_PERMUTATIONS)
        made.update_batch([shingle.encode() for shingle in shingles])
        return made.hashvalues.astype(np.uint32).tobytes()


def group_texts(study: FieldStudy) -> None:
    """Find the groups of nearly equal texts."""
    digests = list(study.near)
    if len(digests) < 2:
        return
    values = np.frombuffer(b"".join(study.near.values()), np.uint32).reshape(len(digests), -1)

    def close(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
        near: NDArray[np.bool_] = (values[a] == values[b]).mean(axis=1) >= _ALIKE
        return near

    pieces = (np.ascontiguousarray(piece) for piece in np.array_split(values, _PIECES, axis=1))
    study.groups = group(digests, (_keys(piece) for piece in pieces), close)


def _keys(piece: NDArray[np.uint32]) -> NDArray[Any]:
    """(n,) numbers that are equal where rows of (n, 8) are."""
    row = piece.view(np.dtype((np.void, piece.shape[1] * piece.itemsize))).reshape(-1)
    number: NDArray[Any] = np.unique(row, return_inverse=True)[1]
    return number


def _tokens(reader: Reader, text: str) -> int | None:
    tally = getattr(reader.preprocessor, "count_tokens", None)  # plug-ins may have none
    return None if tally is None else int(tally(text))


def describe(facts: Sequence[Facts]) -> str:
    """Lengths in a line."""
    if not facts:
        return ""
    words = np.array([f.words for f in facts])
    text = f"{np.median(words):.0f} words (median), at most {words.max():,}"
    tokens = [max((t for t in f.tokens if t is not None), default=0) for f in facts]
    return text + (f"; at most {max(tokens):,} tokens" if max(tokens) else "")


def findings(study: Study, name: str) -> Iterator[Finding]:
    """What is the matter with the texts of a field."""
    field = study.fields[name]
    blank = [
        study.place(split, index, name)
        for split, column in field.columns.items()
        for index, facts in enumerate(column.facts)
        if facts is not None and not facts.words
    ]
    if blank:
        roles = ", ".join(dict.fromkeys(reader.role for reader in field.readers))
        yield Finding(
            "note",
            "blank",
            f"Field {name!r}: {count(len(blank), 'text')} without a word",
            f"An empty text is a text. To have a learned stand-in instead: missing.allow: "
            f"[{roles}].",
            name,
            tuple(blank),
        )
    for number, reader in enumerate(field.readers):
        if reader.preprocessor is None:
            continue
        limit = getattr(reader.preprocessor, "max_length", None)
        if limit is not None:
            yield from _cut(study, name, number, reader, int(limit))


def _cut(study: Study, name: str, number: int, reader: Reader, limit: int) -> Iterator[Finding]:
    longer, total, longest = [], 0, 0
    for split, column in study.fields[name].columns.items():
        for index, facts in enumerate(column.facts):
            tokens = None if facts is None else facts.tokens[number]
            total += tokens is not None
            if tokens is not None and tokens > limit:
                longest = max(longest, tokens)
                longer.append(study.place(split, index, name, f"{tokens:,} tokens"))
    if longer:
        yield Finding(
            "warning" if len(longer) >= _MUCH * total else "note",
            "cut",
            f"Field {name!r}: {percent(len(longer), total)} of the texts are longer than the "
            f"{limit:,} tokens that {reader.who} reads, the longest has {longest:,}",
            "What follows is not seen. Raise the encoder's max_length if it has positions for "
            "more, or put what matters first.",
            name,
            tuple(longer),
        )
