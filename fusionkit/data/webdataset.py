"""Samples in shards of WebDataset's format: data that fit no disk."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from fusionkit.data.base import Dataset, Sample, Samples, Split, Stream, Task
from fusionkit.data.cells import label_name
from fusionkit.data.labels import read_label
from fusionkit.data.rows import Modality
from fusionkit.data.shards import Files, find_shards, read_shard
from fusionkit.encoders.files import base_name
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.registry import require

_INITIAL = 100  # samples in the buffer ahead of the first that leaves it: webdataset's own
_SHOWN = 20  # classes in a message
_DECODED_LATER = ("image", "audio", "video", "other")  # by their encoder, in a data worker


@dataclass(frozen=True, slots=True)
class ShardField:
    """Where in a sample's files a field is.

    Args:
        ext: Extension of the file, without the first dot; of several, the first that a sample has.
        key: Key in a .json, of keys within each other joined by dots; null for the whole file.
        modality: What the field is; null for a field named after its modality.
        columns: Keys in a .json that are the columns of a field of modality table; null for all.
    """

    ext: str | list[str]
    key: str | None = None
    modality: Modality | None = None
    columns: list[str] | None = None

    @property
    def exts(self) -> list[str]:
        """The extensions, as they are in a sample: lower case."""
        listed = [self.ext] if isinstance(self.ext, str) else self.ext
        return [ext.removeprefix(".").lower() for ext in listed]

    def find(self, files: Files) -> tuple[str, bytes] | None:
        """The first of the files that the sample has, with its extension."""
        return next(((ext, files[ext]) for ext in self.exts if ext in files), None)


class WebDataset(Dataset):
    """Samples in tar files ("shards"), read one after the other and never all at once.

    A sample is the files that share a name up to the first dot: 0001.jpg, 0001.txt, 0001.cls.
    Each process and each data worker reads shards of its own. In training, the order of the shards
    and what a buffer holds are shuffled, anew in each epoch. A sample that has no file of a field
    lacks it.

    Args:
        shards: By split: {train: "data/train-{000000..000099}.tar", val: ..., test: ...}. A path,
            with a range or a ``*``, a URL of any protocol that fsspec knows (s3, gs, https,
            hf, ...), or a list of these.
        fields: Extension by field: {image: jpg, text: txt}; [jpg, png] for the first that a sample
            has. {ext: json, key: caption} for a key in a .json. A field that is not named after its
            modality takes {ext: ..., modality: ...}.
        label: Extension of the label, or {ext: json, key: ...}; .cls holds a number of a class,
            from 0, everything else a class name. null for shards without labels.
        task: single_label, multi_label (a list in a .json, or text with a separator) or regression.
        classes: Class names in order; needed, as a stream is not read to find them. None for
            regression.
        separator: Between the labels of one text.
        samples_per_epoch: Samples of a training epoch, in full batches: shards are begun again
            where they have fewer, and left where they have more. null for all, once. A cosine
            schedule and several devices need it.
        buffer: Samples that each data worker holds to shuffle them.
    """

    def __init__(
        self,
        shards: dict[str, str | list[str]],
        fields: dict[str, str | list[str] | ShardField],
        label: str | ShardField | None = None,
        task: Task = "single_label",
        classes: list[str | int | bool] | None = None,
        separator: str = "|",
        samples_per_epoch: int | None = None,
        buffer: int = 1000,  # webdataset's own
    ) -> None:
        self.task: Task = task
        self._shards = dict(shards)
        self._fields = {name: _parse(name, spec) for name, spec in fields.items()}
        self.fields = {name: str(spec.modality) for name, spec in self._fields.items()}
        self._label = None if label is None else _spec(label)
        names = None if classes is None else [label_name(name) or "" for name in classes]
        self._classes = names
        self._separator = separator
        self._length = samples_per_epoch
        self._buffer = buffer
        self._found: dict[str, tuple[str, ...]] = {}
        self._check()

    def _check(self) -> None:
        """Raise ConfigError for arguments that contradict each other."""
        names, splits = self._classes, set(self._shards)
        wrong = [
            (not self._fields, "`fields` is empty; name at least one."),
            (
                not splits or bool(splits - {"train", "val", "test"}),
                f"`shards` has the keys {sorted(splits)}; give train, val and test.",
            ),
            (
                names is None and self.task != "regression",
                "`classes` is needed: a stream is not read to find them. List the names in order.",
            ),
            (
                names is not None and self.task == "regression",
                "`classes` does not go with task: regression; leave it out.",
            ),
            (
                names is not None and len(set(names)) < len(names),
                f"`classes` names one twice: {names}.",
            ),
            (
                self._length is not None and self._length < 1,
                f"`samples_per_epoch` is {self._length}; it must be at least 1.",
            ),
            (self._buffer < 1, f"`buffer` is {self._buffer}; it must be at least 1."),
        ]
        for found, message in wrong:
            if found:
                raise ConfigError(f"WebDataset: {message}")

    @property
    def classes(self) -> Sequence[str] | None:
        return self._classes

    def split(self, name: Split) -> Samples:
        if name == "predict":
            raise ConfigError("WebDataset: give `fusionkit predict` a table with the same fields.")
        if name not in self._shards:
            if name == "train":
                raise DataError("`shards` names none to train on. Add train: to it.")
            return []
        if self._label is None:
            raise DataError(
                "`label` is not set, but training and testing need it. Name its extension."
            )
        if name not in self._found:
            self._found[name] = find_shards(self._shards[name])
        numbers = {label: number for number, label in enumerate(self._classes or ())}
        made = _Maker(self._fields, self._label, self.task, numbers, self._separator)
        length = self._length if name == "train" else None
        return Shards(self._found[name], made, self._buffer, length)


@dataclass(frozen=True, slots=True)
class _Maker:
    """Files into samples."""

    fields: Mapping[str, ShardField]
    label: ShardField
    task: Task
    classes: Mapping[str, int]  # their numbers
    separator: str

    def sample(self, shard: str, key: str, files: Files) -> Sample:
        origin = f"{base_name(shard)}, sample {key}"
        values = {}
        for name, field in self.fields.items():
            found = field.find(files)
            values[name] = None if found is None else _value(origin, name, field, *found)
        if any(value is None for value in values.values()):
            origin = f"{origin} (it has {', '.join(sorted(files))})"
        return Sample(key, values, self._target(origin, files), origin)

    def _target(self, origin: str, files: Files) -> Any:
        found = self.label.find(files)
        if found is None:
            raise DataError(
                f"{origin} has no label: none of {', '.join(self.label.exts)} is among its files, "
                f"{', '.join(sorted(files))}. Correct `label`, or write the shard again."
            )
        ext, content = found
        value = _json(origin, self.label, content) if ext == "json" else _text(origin, ext, content)
        if isinstance(value, str):
            value = value.strip()
        try:
            label = read_label(value, self.task, self.separator)
        except DataError as error:
            raise DataError(f"{origin}: the label in .{ext} {error}") from None
        if isinstance(label, float):
            return label
        names = label if isinstance(label, tuple) else (label,)
        indices = sorted({self._index(origin, ext, name) for name in names})
        return tuple(indices) if isinstance(label, tuple) else indices[0]

    def _index(self, origin: str, ext: str, name: str) -> int:
        if ext == "cls" and name.isdecimal():
            if int(name) < len(self.classes):
                return int(name)
            raise DataError(
                f"{origin}: .cls says class {name}, but `classes` names {len(self.classes)}, which "
                f"are 0 to {len(self.classes) - 1}. Correct `classes`."
            )
        if name in self.classes:
            return self.classes[name]
        known = ", ".join(list(self.classes)[:_SHOWN])
        if len(self.classes) > _SHOWN:
            known += f" and {len(self.classes) - _SHOWN} more"
        raise DataError(
            f"{origin}: label {name!r} is not among the declared classes: {known}."
            f"{suggest(name, self.classes)} Correct it, or add it to `classes`."
        )


@dataclass(frozen=True, slots=True)
class Shards(Stream):
    """The samples in some shards.

    Where there are fewer shards than parts, those of one shard are divided, so that several
    readers read the same one.

    Attributes:
        names: Paths or URLs.
        maker: Makes a sample of its files.
        buffer: How many samples are held to shuffle them.
        length: See :class:`~fusionkit.data.base.Stream`.
    """

    names: tuple[str, ...]
    maker: _Maker
    buffer: int
    length: int | None = None

    def read(self, part: int, parts: int, shuffle: str | None) -> Iterator[Sample]:
        names = list(self.names)
        if shuffle is not None:
            random.Random(shuffle).shuffle(names)
        samples = self._read(names, part, parts)
        if shuffle is None:
            return samples
        webdataset = require("webdataset", "webdataset")
        rng = random.Random(f"{shuffle} {part} {parts}")
        shuffled: Iterator[Sample] = webdataset.shuffle(self.buffer, initial=_INITIAL, rng=rng)(
            samples
        )
        return shuffled

    def _read(self, names: Sequence[str], part: int, parts: int) -> Iterator[Sample]:
        step, first = 1, 0
        if len(names) < parts:  # readers of one shard take turns
            step = len(range(part % len(names), parts, len(names)))
            first, names = part // len(names), [names[part % len(names)]]
        else:
            names = names[part::parts]
        for name in names:
            empty = True
            for number, (key, files) in enumerate(read_shard(name)):
                empty = False
                if number % step == first:
                    yield self.maker.sample(name, key, files)
            if empty:
                raise DataError(f"{name} holds no samples. Remove it from `shards`.")


def _spec(stated: Any) -> ShardField:
    if isinstance(stated, ShardField):
        return stated
    if isinstance(stated, Mapping):  # a config's own mapping, not yet made a ShardField
        return ShardField(**stated)
    return ShardField(stated)


def _parse(name: str, stated: Any) -> ShardField:
    """A field as the config states it, checked and with its modality."""
    spec = _spec(stated)
    modality = spec.modality or name
    if modality not in get_args(Modality):
        raise ConfigError(
            f"Field {name!r}: {modality!r} is no modality. Write {name}: {{ext: ..., modality: "
            f"...}} of {', '.join(get_args(Modality))}."
        )
    in_json = spec.exts == ["json"]
    if (spec.key is not None or spec.columns is not None) and not in_json:
        raise ConfigError(f"Field {name!r}: `key` and `columns` are those of a .json; ext: json.")
    if modality in _DECODED_LATER and in_json:
        raise ConfigError(f"Field {name!r}: {modality} is a file of its own, not in a .json.")
    if modality == "table" and not in_json:
        raise ConfigError(f"Field {name!r}: a table is in a .json; write ext: json.")
    if modality == "vector" and not in_json and spec.exts != ["npy"]:
        raise ConfigError(f"Field {name!r}: a vector is a .npy or a list in a .json.")
    if spec.columns is not None and modality != "table":
        raise ConfigError(f"Field {name!r}: only a table has `columns`; {modality} takes `key`.")
    return ShardField(spec.ext, spec.key, modality, spec.columns)  # type: ignore[arg-type]


def _value(origin: str, name: str, field: ShardField, ext: str, content: bytes) -> Any:
    """The raw value of a field."""
    if field.modality in _DECODED_LATER or ext == "npy":
        return content
    if ext != "json":
        return _text(origin, ext, content)
    value = _json(origin, field, content)
    if value is None:
        return None
    expected: Any = {"text": str, "table": Mapping, "vector": list}[str(field.modality)]
    if not isinstance(value, expected):
        where = ".json" if field.key is None else f"key {field.key!r} of .json"
        raise DataError(
            f"{origin}: field {name!r}: {where} is {type(value).__name__}, no {field.modality}. "
            f"Correct `fields`, or write the shard again."
        )
    if field.columns is not None:
        return {column: value.get(column) for column in field.columns}
    return value


def _text(origin: str, ext: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{origin}: .{ext} is no UTF-8: {error}. Write the shard again.") from error


def _json(origin: str, field: ShardField, content: bytes) -> Any:
    """What a .json holds under the field's key, None where there is no such key."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DataError(f"{origin}: .json is no JSON: {error}. Write the shard again.") from error
    for key in field.key.split(".") if field.key else ():
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
