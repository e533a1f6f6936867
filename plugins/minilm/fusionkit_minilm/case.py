"""The contract case: real weights against transformers' own forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from fusionkit.encoders.attention import run_concatenated, widen_mask
from fusionkit.encoders.base import Inputs, MainEncoder, TokenState
from fusionkit.encoders.weights import load_file
from fusionkit.testing import Case, samples
from fusionkit_minilm import MiniLM, folder


def plain() -> Any:
    """Upstream's model in its own attention, in float64."""
    config = AutoConfig.from_pretrained(folder(), local_files_only=True)
    model = AutoModel.from_config(config, attn_implementation="eager", add_pooling_layer=False)
    # A buffer of old releases, and the pooler, which sentence-transformers does not use either.
    unused = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
    load_file(model, str(folder() / "model.safetensors"), without=unused)
    return model.double().eval()


def case() -> Case:
    """all-MiniLM-L6-v2 as it is."""
    model = plain()

    def upstream(backbone: torch.nn.Module, inputs: Inputs) -> Tensor:
        tokens = model(**inputs).last_hidden_state
        rows = zip(tokens, inputs["attention_mask"].bool(), strict=True)
        return torch.stack([row[keep].mean(dim=0) for row, keep in rows])

    def layer(encoder: MainEncoder, number: int, state: TokenState, prompts: Tensor) -> TokenState:
        assert state.keep is not None
        visible = widen_mask(state.keep[:, None, None], prompts.shape[1])
        assert visible is not None
        mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -torch.inf)

        def block(rows: Tensor) -> Tensor:
            return model.encoder.layer[number](rows, attention_mask=mask)

        return state.with_tokens(run_concatenated(block, state.tokens, prompts))

    return Case(MiniLM, samples("text"), upstream, layer, tuple(model.state_dict()))
