"""Contract cases of text encoders that read both ways, and of bags of words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import TEXTS, WORDS, shaken
from torch import Tensor, nn
from transformers import AutoModel

from fusionkit.encoders.attention import run_concatenated, widen_mask
from fusionkit.encoders.base import TokenState
from fusionkit.encoders.bert import Bert
from fusionkit.encoders.bow import BagOfWords
from fusionkit.testing import Case


def plain_transformer(backbone: Any) -> Any:
    """Upstream's own model in its own attention, with the weights of ``backbone``."""
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    pooler = {} if config.model_type == "distilbert" else {"add_pooling_layer": False}
    plain = AutoModel.from_config(config, attn_implementation="eager", **pooler).double().eval()
    plain.load_state_dict(backbone.state_dict())
    return plain


def first_token(backbone: nn.Module, inputs: Any) -> Tensor:
    return plain_transformer(backbone)(**inputs).last_hidden_state[:, 0]


def concatenated_bert(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    plain = plain_transformer(encoder.backbone)
    layers = plain.transformer if plain.config.model_type == "distilbert" else plain.encoder
    visible = widen_mask(state.keep[:, None, None], prompts.shape[1])
    mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -torch.inf)

    def block(rows: Tensor) -> Tensor:
        return layers.layer[layer](rows, attention_mask=mask)

    return state.with_tokens(run_concatenated(block, state.tokens, prompts))


BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}


def bert(kind: str, tokenizer: str, sizes: dict[str, int]) -> Case:
    config = {"model_type": kind, "vocab_size": len(WORDS), "pad_token_id": 0, **sizes}

    def make() -> Bert:
        return shaken(Bert(config=dict(config), weights="random", tokenizer=tokenizer))

    keys = plain_transformer(make().double().backbone).state_dict()
    return Case(make, TEXTS, first_token, concatenated_bert, tuple(keys))


def bow(tokenizer: str) -> Case:
    def mean(table: Any, inputs: Any) -> Tensor:
        pairs = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        empty = torch.zeros(table.embedding_dim, dtype=torch.float64)
        rows = [table.weight[ids[keep]] for ids, keep in pairs]
        return torch.stack([row.mean(0) if len(row) else empty for row in rows])

    return Case(lambda: BagOfWords(tokenizer, dim=8), TEXTS, mean, upstream_keys=("weight",))


CASES: dict[str, dict[str, Callable[[str], Case]]] = {
    "bert": {
        "bert": lambda tokenizer: bert("bert", tokenizer, BERT),
        "roberta": lambda tokenizer: bert("roberta", tokenizer, BERT),
        "distilbert": lambda tokenizer: bert("distilbert", tokenizer, DISTILBERT),
    },
    "bow": {"words": bow},
}
