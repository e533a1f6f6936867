"""From a sample to what is kept of it; runs in worker processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader, Dataset as TorchDataset, IterableDataset, get_worker_info

from fusionkit.data.base import Sample
from fusionkit.data.missing import is_empty, is_unreadable
from fusionkit.doctor.audio import Sound
from fusionkit.doctor.digests import digest_value
from fusionkit.doctor.images import Picture
from fusionkit.doctor.study import Fault, Reader, Row, Seen
from fusionkit.doctor.tables import Cells, Numbers
from fusionkit.doctor.texts import Text
from fusionkit.doctor.values import Value
from fusionkit.errors import FusionkitError

_CHUNK = 64  # samples that a worker hands over at once

_VALUES: Mapping[str, type[Value]] = {
    "image": Picture,
    "text": Text,
    "audio": Sound,
    "table": Cells,
    "vector": Numbers,
}


@dataclass(frozen=True, slots=True)
class Examiner:
    """A sample to a :class:`Row`; never raises, as every sample is to be seen.

    Attributes:
        fields: Modality and readers of each field in use.
        met: Field and digest of what this process has met: what finds near duplicates is made
            once of each.
    """

    fields: Mapping[str, tuple[str, Sequence[Reader]]]
    met: set[tuple[str, bytes]] = field(default_factory=set)

    def __call__(self, sample: Sample) -> Row:
        """What is kept of one sample."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries warn of odd files; faults say what matters
            seen = {
                name: self.look(name, sample.fields.get(name), modality, readers)
                for name, (modality, readers) in self.fields.items()
            }
        return Row(sample.id, sample.origin, sample.target, seen)

    def look(self, name: str, raw: Any, modality: str, readers: Sequence[Reader]) -> Seen:
        """What is kept of one value."""
        if raw is None:
            return Seen(absent=True, empty=True)
        empty = is_empty(raw)
        if empty and all(reader.may_lack for reader in readers):
            return Seen(empty=True)
        value = _VALUES.get(modality, Value)(raw)
        shown = value.shown()
        faults = tuple(fault for reader in readers for fault in _attempt(reader, value))
        if faults:
            return Seen(shown, empty=empty, faults=faults)
        try:
            digest, facts = value.digest(), value.facts(readers)
            near = b"" if (name, digest) in self.met else value.near()
            self.met.add((name, digest))
        except Exception:  # noqa: BLE001  # a plug-in's own kind of value, which its encoder can read
            return Seen(shown, empty=empty, digest=digest_value(raw))
        return Seen(shown, empty=empty, digest=digest, near=near, facts=facts)


def _attempt(reader: Reader, value: Value) -> Iterator[Fault]:
    try:
        value.read(reader)
    except Exception as error:  # noqa: BLE001  # whatever it is, training stops at it
        ours = isinstance(error, FusionkitError)
        reason = str(error) if ours else f"{type(error).__name__}: {error}"
        yield Fault(reader.who, reason, not (reader.lenient and is_unreadable(error)))


class _Examined(TorchDataset[Row]):
    def __init__(self, samples: Sequence[Sample], examine: Examiner) -> None:
        self.samples, self.examine = samples, examine

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Row:
        try:
            sample = self.samples[index]
        except Exception as error:  # noqa: BLE001  # as above
            return Row(str(index + 1), f"row {index + 1}", None, {}, str(error))
        return self.examine(sample)


class _ExaminedStream(IterableDataset[Row]):
    """A split that is read from its beginning to its end, each worker its part."""

    def __init__(self, samples: Any, examine: Examiner) -> None:
        self.samples, self.examine = samples, examine

    def __iter__(self) -> Iterator[Row]:
        worker = get_worker_info()
        part, parts = (0, 1) if worker is None else (worker.id, worker.num_workers)
        try:
            for sample in self.samples.read(part, parts, None):
                yield self.examine(sample)
        except Exception as error:  # noqa: BLE001  # what follows in this part is not to be had
            yield Row("", "", None, {}, f"{error} What follows it was not read.")


def walk(samples: Any, examine: Examiner, workers: int) -> Iterator[list[Row]]:
    """What is kept of every sample, some at a time, in order.

    Args:
        samples: One split: a sequence of samples, or a stream of them.
        examine: What looks at them.
        workers: Processes that do.
    """
    streamed = not hasattr(samples, "__getitem__")
    data: Any = (_ExaminedStream if streamed else _Examined)(samples, examine)
    if not streamed:
        workers = min(workers, len(samples) // (2 * _CHUNK))  # a process costs more than few rows
    yield from DataLoader(data, batch_size=_CHUNK, num_workers=workers, collate_fn=list)
