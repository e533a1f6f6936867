"""Recordings: durations, rates, silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusionkit.doctor.findings import Finding, count, percent
from fusionkit.doctor.study import Reader, Study
from fusionkit.doctor.values import Value
from fusionkit.encoders.audio import load_audio
from fusionkit.encoders.files import is_file, local_path, open_file
from fusionkit.registry import require

_HEARD = 60.0  # seconds that are looked through for sound
_SILENT = 1e-4  # of full scale, -80 dB
_SHORT = 0.1  # seconds
_MUCH = 0.05  # share of recordings that are cut from which on it is a warning


class Facts(NamedTuple):
    """Length, samples per second, and whether nothing is to be heard in the first minute."""

    seconds: float
    rate: int
    silent: bool


class Sound(Value):
    """A recording."""

    def facts(self, readers: Sequence[Reader]) -> Facts:
        if is_file(self.raw):
            file = local_path(self.raw) or open_file(self.raw)
            known = require("soundfile", "audio").info(file)
            seconds, rate = float(known.duration), int(known.samplerate)
        else:
            is_mapping = isinstance(self.raw, Mapping)
            array, rate = (self.raw["array"], self.raw["sampling_rate"]) if is_mapping else self.raw
            seconds = max(np.shape(array)) / rate
        heard = load_audio(self.raw, rate, _HEARD)
        return Facts(seconds, int(rate), bool(np.abs(heard).max() < _SILENT))


def describe(facts: Sequence[Facts]) -> str:
    """Durations and rates in a line."""
    if not facts:
        return ""
    seconds = np.array([f.seconds for f in facts])
    rates = Counter(f.rate for f in facts).most_common()
    listed = ", ".join(f"{rate / 1000:g} kHz" for rate, _ in rates[:3])
    more = f" and {len(rates) - 3} more rates" if len(rates) > 3 else ""
    return (
        f"{np.median(seconds):.2g} s (median), {seconds.min():.2g} to {seconds.max():.2g} s; "
        f"{listed}{more}"
    )


def findings(study: Study, name: str) -> Iterator[Finding]:
    """What is the matter with the recordings of a field."""
    field = study.fields[name]
    silent, short = [], []
    for split, column in field.columns.items():
        for index, facts in enumerate(column.facts):
            if facts is not None and facts.silent:
                silent.append(study.place(split, index, name))
            elif facts is not None and facts.seconds < _SHORT:
                short.append(study.place(split, index, name, f"{facts.seconds:.3f} s"))
    if silent:
        yield Finding(
            "warning",
            "blank",
            f"Field {name!r}: {count(len(silent), 'recording')} without a sound",
            "They say nothing: leave their cells empty, or remove the rows.",
            name,
            tuple(silent),
        )
    if short:
        yield Finding(
            "note",
            "short",
            f"Field {name!r}: {count(len(short), 'recording')} shorter than {_SHORT:g} s",
            "Listen to some.",
            name,
            tuple(short),
        )
    yield from _fit(study, name)


def _fit(study: Study, name: str) -> Iterator[Finding]:
    facts = study.fields[name].measured()
    for reader in study.fields[name].readers:
        limit = getattr(reader.preprocessor, "max_seconds", None)
        longer = [f.seconds for f in facts if limit is not None and f.seconds > limit + 0.01]
        if longer:
            yield Finding(
                "warning" if len(longer) >= _MUCH * len(facts) else "note",
                "cut",
                f"Field {name!r}: {percent(len(longer), len(facts))} of the recordings are longer "
                f"than the {limit:.3g} s that {reader.who} hears, the longest has "
                f"{max(longer):.4g} s",
                "What follows is not heard. Set max_seconds where the encoder has it, or divide "
                "the recordings.",
                name,
            )
        rate: int = getattr(reader.preprocessor, "rate", 0)
        low = sum(f.rate < rate for f in facts)
        if low:
            yield Finding(
                "note",
                "resampled",
                f"Field {name!r}: {percent(low, len(facts))} of the recordings have a lower rate "
                f"than the {rate / 1000:g} kHz that {reader.who} takes",
                "They are resampled; what they lack in high frequencies stays lacking.",
                name,
            )
