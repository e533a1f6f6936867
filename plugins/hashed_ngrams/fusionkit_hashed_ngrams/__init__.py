"""Hashed character n-grams: a text complement of fusionkit without vocabulary or weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from fusionkit.encoders.base import ComplementEncoder, Features, Inputs, Modality
from fusionkit.encoders.weights import building_on_meta
from fusionkit.errors import ConfigError, EncoderError


@dataclass(frozen=True)
class NgramPreprocessor:
    """Texts to ``{"ngrams": (B, L), "keep": (B, L) bool, True = an n-gram}``."""

    buckets: int
    shortest: int
    longest: int
    max_length: int

    def __call__(self, raw: Any) -> dict[str, Tensor]:
        """One text, or None for none, to ``{"ngrams": (L,)}``."""
        if not isinstance(raw, str | None):
            raise EncoderError(f"hashed_ngrams takes a str or None, given {type(raw).__name__}.")
        ids = [self._bucket(ngram) for ngram in self._ngrams(raw or "")][: self.max_length]
        return {"ngrams": torch.tensor(ids, dtype=torch.long)}

    def _ngrams(self, text: str) -> list[str]:
        words = [f" {word} " for word in text.casefold().split()]
        lengths = range(self.shortest, self.longest + 1)
        return [w[i : i + n] for w in words for n in lengths for i in range(len(w) - n + 1)]

    def _bucket(self, ngram: str) -> int:
        return crc32(ngram.encode("utf-8", "replace")) % self.buckets  # hash() differs by process

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Rows to a batch, padded to its longest, one position at least."""
        lengths = torch.tensor([len(row["ngrams"]) for row in rows])
        ngrams = pad_sequence([row["ngrams"] for row in rows], batch_first=True)
        if ngrams.shape[1] == 0:
            ngrams = ngrams.new_zeros(len(rows), 1)
        return {"ngrams": ngrams, "keep": torch.arange(ngrams.shape[1]) < lengths[:, None]}


class HashedNgrams(ComplementEncoder):
    """Sum of a random direction for each n-gram, of length 1; zeros for an empty text."""

    modality: ClassVar[Modality] = "text"

    backbone: nn.Embedding

    def __init__(
        self,
        dim: int = 256,
        buckets: int = 2**15,
        shortest: int = 3,
        longest: int = 5,
        max_length: int = 2048,
        seed: int = 0,
    ) -> None:
        """Draw the directions.

        Args:
            dim: Width of the feature.
            buckets: Rows of the table.
            shortest: Characters in the shortest n-gram, spaces around a word included.
            longest: Characters in the longest.
            max_length: N-grams that are read of a text.
            seed: Of the directions; the global random state is neither read nor changed.
        """
        super().__init__()
        if not 1 <= shortest <= longest:
            raise ConfigError(f"No n-gram has {shortest} to {longest} characters.")
        self._preprocessor = NgramPreprocessor(buckets, shortest, longest, max_length)
        with torch.device("meta"):
            self.backbone = nn.Embedding(buckets, dim)
        if not building_on_meta():
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randn(buckets, dim, generator=generator, device="cpu") / dim**0.5
            self.backbone.weight = nn.Parameter(rows.to(torch.get_default_device()))

    @property
    def out_dim(self) -> int:
        return self.backbone.embedding_dim

    def encode(self, inputs: Inputs) -> Features:
        keep = inputs["keep"].bool()
        tokens = self.backbone(inputs["ngrams"])
        summed = (tokens * keep.unsqueeze(-1)).sum(dim=1)
        return Features(F.normalize(summed, dim=-1), tokens, keep)

    def preprocessor(self, train: bool) -> NgramPreprocessor:
        return self._preprocessor
