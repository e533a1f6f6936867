"""Bag of words: the mean of word embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from fusionkit.encoders.base import ComplementEncoder, Features, Inputs, Modality
from fusionkit.encoders.sequences import masked_mean
from fusionkit.encoders.texts import (
    TextPreprocessor,
    load_tokenizer,
    make_preprocessor,
    tokens_of,
)
from fusionkit.encoders.transformers_weights import build, read_config
from fusionkit.encoders.weights import locate
from fusionkit.errors import ConfigError

DIM = 256


class BagOfWords(ComplementEncoder):
    """Mean of the embeddings of a text's tokens; zeros for an empty text.

    Special tokens ([CLS], [SEP], padding) are never made, so they do not count; unknown words
    do. With ``init_from: bert-base-uncased`` this is the BoW of Table 4 of arXiv 2312.03734.
    """

    modality: ClassVar[Modality] = "text"

    backbone: nn.Embedding

    def __init__(
        self,
        tokenizer: str = "bert-base-uncased",
        dim: int | None = None,
        init_from: str | None = None,
        max_length: int | None = None,
    ) -> None:
        """Build the table.

        Args:
            tokenizer: Hub name or local folder. The table has a row for each of its tokens: for
                a local folder they are counted, for a hub name its model's config states them.
            dim: Width of random embeddings, 256 by default.
            init_from: Hub name or local folder of a BERT-like model whose word embeddings
                initialise the table, and state its width.
            max_length: Longer texts are cut, by default at 512 tokens.

        Raises:
            ConfigError: ``dim`` is not the width of ``init_from``.
            WeightsError: The tokenizer or the model was not found.
        """
        super().__init__()
        self.tokenizer = tokenizer
        self.max_length = max_length
        if init_from is None:
            self.backbone = nn.Embedding(_count_tokens(tokenizer), dim or DIM)
            return
        model: Any = build(read_config(init_from, "pretrained"), "pretrained", locate(init_from))
        self.backbone = model.get_input_embeddings()
        if dim not in (None, self.out_dim):
            raise ConfigError(
                f"dim is {dim}, but the word embeddings of {init_from!r} are {self.out_dim} wide; "
                f"leave dim out."
            )

    @property
    def out_dim(self) -> int:
        return self.backbone.embedding_dim

    def encode(self, inputs: Inputs) -> Features:
        ids, keep = tokens_of(inputs, "BagOfWords")
        tokens = self.backbone(ids)
        return Features(masked_mean(tokens, keep), tokens, keep)

    def preprocessor(self, train: bool) -> TextPreprocessor:
        rows = self.backbone.num_embeddings
        return make_preprocessor(self.tokenizer, self.max_length, rows, special_tokens=False)


def _count_tokens(tokenizer: str) -> int:
    if Path(locate(tokenizer)).is_dir():
        return len(load_tokenizer(tokenizer))
    return int(read_config(tokenizer, "random").vocab_size)  # needs no network if well known
