"""What a data set is: samples of named fields with a target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fusionkit.registry import API_VERSION

Split = Literal["train", "val", "test", "predict"]
Task = Literal["single_label", "multi_label", "regression"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a data set.

    Attributes:
        id: Names the row in error messages and prediction tables.
        fields: Raw value by field name: an image or its path, a text, ...; None, or no such key,
            where the sample lacks the field.
        target: Class index, sequence of class indices (multi-label) or number; None if unknown.
        origin: Where the row stands, for error messages: ``"train.csv, row 17"``.
    """

    id: str
    fields: Mapping[str, Any]
    target: int | Sequence[int] | float | None
    origin: str


class Stream(ABC):
    """The samples of a split that are read one after the other, such as those in shards.

    Picklable; it holds no sample. Going through it reads all of it, in the order it is stored in.

    Attributes:
        length: Samples of a training epoch; None for all there are, whose number nobody knows.
    """

    length: int | None = None

    @abstractmethod
    def read(self, part: int, parts: int, shuffle: str | None) -> Iterator[Sample]:
        """The samples of one of several parts, which together are all of them, each once.

        Args:
            part: Which, 0 .. parts-1.
            parts: How many there are: as many as there are readers.
            shuffle: Seeds a random order, which is then the same on any machine; None for the
                order that the samples are stored in.

        Raises:
            DataError: What is stored cannot be read, or is no sample of this data set.
        """

    def __iter__(self) -> Iterator[Sample]:
        return self.read(0, 1, None)


Samples = Sequence[Sample] | Stream  # one split


class Dataset(ABC):
    """A source of samples, split by split.

    Constructing one opens nothing: ``fields``, ``task`` and, where the config states them,
    ``classes`` are known before any file exists, so a config can be checked without its data.

    Attributes:
        task: What is predicted.
        fields: Modality by field name, in order.
        augment: What image encoders do to training images unless the config says; ``none`` where a
            flip or another colour may change the label.
    """

    api_version: ClassVar[int] = API_VERSION
    augment: ClassVar[Literal["none", "crop", "randaugment"]] = "randaugment"  # section 4.1

    task: Task
    fields: Mapping[str, str]

    @property
    @abstractmethod
    def classes(self) -> Sequence[str] | None:
        """Class names in index order; None for regression. May read the training split.

        Raises:
            DataError: They are not declared and the training split cannot be read.
        """

    @abstractmethod
    def split(self, name: Split) -> Samples:
        """The samples of one split; empty if there is none. Cheap to index, or a stream; picklable.

        Raises:
            DataError: Missing file or column, label not seen in training, ...
        """

    @property
    def outputs(self) -> int:
        """Width of the prediction: number of classes, or 1 for regression."""
        classes = self.classes
        return 1 if classes is None else len(classes)
