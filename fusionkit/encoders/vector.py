"""Features that were computed before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionkit.encoders.base import ComplementEncoder, Features, Inputs, Modality
from fusionkit.encoders.files import file_name, is_file, open_file
from fusionkit.encoders.sequences import masked_mean, pad
from fusionkit.encoders.standardize import Standardizer
from fusionkit.errors import ConfigError, DataError, EncoderError


class Vector(ComplementEncoder):
    """A vector, or a sequence of vectors, as it is in the data; nothing is trained.

    What a fusion needs of a sequence in one vector is its mean.
    """

    modality: ClassVar[Modality] = "vector"

    def __init__(self, dim: int, standardize: bool = True) -> None:
        """Set up the scaling.

        Args:
            dim: Width of the vectors.
            standardize: Whether each dimension gets mean 0 and standard deviation 1 over the
                training split.

        Raises:
            ConfigError: ``dim`` is less than 1.
        """
        super().__init__()
        if dim < 1:
            raise ConfigError(f"The encoder vector has dim {dim}; give the width of the vectors.")
        self.dim = dim
        self.backbone = Standardizer(dim) if standardize else nn.Identity()

    @property
    def out_dim(self) -> int:
        return self.dim

    def encode(self, inputs: Inputs) -> Features:
        vectors, keep = inputs["vectors"], inputs["keep"]
        if vectors.ndim != 3 or vectors.shape[2] != self.dim:
            raise EncoderError(
                f"vector takes inputs['vectors'] of shape (B, T, {self.dim}), given "
                f"{tuple(vectors.shape)}; collate them with its preprocessor()."
            )
        tokens = self.backbone(vectors)
        return Features(masked_mean(tokens, keep), tokens, keep)

    def preprocessor(self, train: bool) -> VectorPreprocessor:
        return VectorPreprocessor(self.dim)

    def fit_statistics(self, values: Iterable[Any]) -> None:
        if isinstance(self.backbone, Standardizer):
            self.backbone.fit(load_vectors(value, self.dim) for value in values)


class VectorPreprocessor:
    """Numbers or a ``.npy`` file, (dim,) or (T, dim), to a row (T, dim) float32.

    Args:
        dim: Width of the vectors.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, raw: Any) -> Tensor:
        """One value to a row.

        Raises:
            DataError: See :func:`load_vectors`.
        """
        return torch.from_numpy(load_vectors(raw, self.dim)).float()

    def length(self, raw: Any) -> int:
        """Vectors in the sequence.

        Raises:
            DataError: See :func:`load_vectors`.
        """
        return len(load_vectors(raw, self.dim))

    def collate(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Rows to ``{"vectors": (B, T, dim), "keep": (B, T) bool}``."""
        vectors, keep = pad(rows)
        return {"vectors": vectors, "keep": keep}


def load_vectors(raw: Any, dim: int) -> NDArray[np.float64]:
    """(T, dim) finite numbers of a list, an array, a tensor or a ``.npy`` file.

    Raises:
        DataError: The file cannot be read, or it is not this many finite numbers.
    """
    if is_file(raw):
        try:
            with open_file(raw) as file:
                raw = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"The vector {file_name(raw)} cannot be read: {error}") from error
    try:
        found = np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"A vector is a list of {dim} numbers or an array: {error}.") from error
    vectors = np.atleast_2d(found)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise DataError(
            f"The vector has shape {found.shape}, but the encoder's dim is {dim}. Set dim to the "
            f"width of your vectors, and repair or remove those of another width."
        )
    if not len(vectors) or not np.isfinite(vectors).all():
        wrong = np.argwhere(~np.isfinite(vectors))
        where = f"holds {vectors[tuple(wrong[0])]} in dimension {wrong[0, 1]}" if len(wrong) else ""
        raise DataError(
            f"The vector {where or 'is a sequence of none'}. Repair it or remove the row."
        )
    return vectors
