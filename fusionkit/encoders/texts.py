"""Text preprocessing: strings to token ids, padded to the longest of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from fusionkit.encoders.base import Inputs
from fusionkit.encoders.transformers_weights import fetch
from fusionkit.encoders.weights import locate
from fusionkit.errors import ConfigError, EncoderError, WeightsError

MAX_LENGTH = 512  # what BERT was trained on; longer texts must be asked for

_LEAST = 3  # positions for a text: a word, and a token at either end

_REMEDY = (
    "Give a folder that holds a tokenizer (tokenizer.json or vocab.txt) with `tokenizer: PATH`."
)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a hub name, a local folder, or ``fusionkit/NAME``.

    Raises:
        WeightsError: There is none.
    """
    tokenizer = fetch(AutoTokenizer.from_pretrained, locate(name), "a tokenizer", _REMEDY)
    # For a folder without vocabulary transformers returns one of special tokens only.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise WeightsError(f"The tokenizer of {name!r} has no vocabulary. {_REMEDY}")
    return tokenizer


def make_preprocessor(
    name: str,
    max_length: int | None,
    vocab_size: int,
    positions: int = MAX_LENGTH,
    special_tokens: bool = True,
    reserved: int = 0,
) -> TextPreprocessor:
    """A preprocessor that fits a model.

    Args:
        name: Hub name or local folder of the tokenizer.
        max_length: Longer texts are cut; None for the least of what the tokenizer states, what
            the model has positions for, and 512.
        vocab_size: Rows of the model's embedding table.
        positions: How many tokens the model takes.
        special_tokens: Whether to add [CLS], [SEP] and the like.
        reserved: How many of the positions are kept for further tokens.

    Raises:
        WeightsError: There is no such tokenizer.
        ConfigError: The tokenizer has more tokens than the model has embeddings, or further
            tokens leave no room for words.
    """
    tokenizer = load_tokenizer(name)
    if len(tokenizer) > vocab_size:
        raise ConfigError(
            f"The tokenizer {name!r} has {len(tokenizer)} tokens, the model embeds {vocab_size}. "
            f"Set `tokenizer` to the one that belongs to the model."
        )
    length = max_length or min(tokenizer.model_max_length, positions, MAX_LENGTH)
    return TextPreprocessor(tokenizer, beside(reserved, length, positions), special_tokens)


def beside(reserved: int, length: int, positions: int) -> int:
    """Where texts are cut if some positions are kept for further tokens.

    Raises:
        ConfigError: Nothing is left for words.
    """
    if not reserved:
        return length
    if positions - reserved < _LEAST:
        raise ConfigError(
            f"{reserved} further tokens leave {max(positions - reserved, 0)} of the model's "
            f"{positions} positions for a text; give fewer."
        )
    return min(length, positions - reserved)


def tokens_of(inputs: Inputs, encoder: str) -> tuple[Tensor, Tensor]:
    """``input_ids`` (B, L) and the mask (B, L) bool, True = real token.

    Raises:
        EncoderError: One of them is missing.
    """
    if not {"input_ids", "attention_mask"} <= set(inputs):
        raise EncoderError(
            f"{encoder} takes inputs['input_ids'] and inputs['attention_mask'], given "
            f"{sorted(inputs)}; collate them with its preprocessor()."
        )
    return inputs["input_ids"], inputs["attention_mask"].bool()


class TextPreprocessor:
    """Texts to ``{"input_ids": (B, L), "attention_mask": (B, L) bool, True = real token}``.

    Padding is on the right, whatever the tokenizer's own side is. A missing text (None) is an
    empty one; texts without any token become one padded position.
    """

    def __init__(self, tokenizer: Any, max_length: int, special_tokens: bool = True) -> None:
        """Keep a tokenizer of transformers and how to use it.

        Args:
            tokenizer: A tokenizer of transformers.
            max_length: Longer texts are cut, special tokens included in the count.
            special_tokens: Whether to add [CLS], [SEP] and the like.
        """
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.special_tokens = special_tokens
        # GPT-2 and Llama have no padding token; what is padding is masked, whatever its id.
        self.pad_id: int = next(
            token
            for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
            if token is not None
        )
        if tokenizer.is_fast:
            # Some tokenizer files fix a length of their own.
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.enable_truncation(
                max_length, direction=tokenizer.truncation_side
            )

    def __call__(self, raw: Any) -> dict[str, Tensor]:
        """One text to ``{"input_ids": (L,)}``.

        Raises:
            EncoderError: Not a text.
        """
        return {"input_ids": torch.tensor(self._encode(raw), dtype=torch.long)}

    def length(self, raw: Any) -> int:
        """Tokens of one text, cut.

        Raises:
            EncoderError: Not a text.
        """
        return len(self._encode(raw))

    def count_tokens(self, raw: str | None) -> int:
        """How many tokens a text has before it is cut, special ones included."""
        text = raw or ""
        if not self.tokenizer.is_fast:
            return len(self.tokenizer.encode(text, add_special_tokens=self.special_tokens))
        backend = self.tokenizer.backend_tokenizer
        encoding = backend.encode(text, add_special_tokens=self.special_tokens)
        extra = backend.num_special_tokens_to_add(False) if self.special_tokens else 0
        return len(encoding.ids) + sum(len(rest.ids) - extra for rest in encoding.overflowing)

    def _encode(self, raw: Any) -> list[int]:
        if not isinstance(raw, str | None):
            raise EncoderError(
                f"A text encoder takes a str (or None for no text), given "
                f"{type(raw).__name__}: {str(raw)[:60]!r}. Check which column holds the text."
            )
        text = raw or ""
        if self.tokenizer.is_fast:
            # Not tokenizer(text): that is a batch of one, which starts a thread pool and makes
            # data workers that are forked later warn about it.
            backend = self.tokenizer.backend_tokenizer
            ids: list[int] = backend.encode(text, add_special_tokens=self.special_tokens).ids
        else:
            ids = self.tokenizer.encode(
                text,
                add_special_tokens=self.special_tokens,
                truncation=True,
                max_length=self.max_length,
            )
        return ids

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Rows to a batch, padded to its longest."""
        ids = [row["input_ids"] for row in rows]
        lengths = torch.tensor([len(row) for row in ids])
        padded = pad_sequence(ids, batch_first=True, padding_value=self.pad_id)
        if padded.shape[1] == 0:
            padded = padded.new_full((len(ids), 1), self.pad_id)
        return {
            "input_ids": padded,
            "attention_mask": torch.arange(padded.shape[1]) < lengths[:, None],
        }


def check_length(words: int, further: int, positions: int) -> None:
    """Check that texts fit a model's positions.

    Args:
        words: Tokens of the longest text.
        further: Tokens that a fusion adds.
        positions: How many the model has.

    Raises:
        EncoderError: They do not.
    """
    if words + further <= positions:
        return
    if not further:
        raise EncoderError(
            f"Texts of {words} tokens, but the model has {positions} positions; "
            f"use this encoder's preprocessor, which cuts them."
        )
    raise EncoderError(
        f"Texts of {words} tokens and {further} further ones, but the model has {positions} "
        f"positions; set the encoder's max_length to {positions - further}, so that texts are cut."
    )
