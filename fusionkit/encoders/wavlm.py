"""WavLM of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from fusionkit.encoders.attention import PromptRows, project_parts, split_heads, widen_mask
from fusionkit.encoders.base import TokenState
from fusionkit.encoders.wav2vec2 import TransformersSpeech


class GatedAttention(WavLMAttention):  # type: ignore[misc]
    """Upstream's attention (section 3.1 of the paper) with prompts.

    Upstream hands the weights of its projections to a function of torch; here they are called,
    so that LoRA reaches them, and the biases are kept once instead of once a row.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        position_bias: Tensor | None = None,
        index: int = 0,
        prompts: tuple[Tensor, ...] = (),
    ) -> tuple[Tensor, None, Tensor]:
        """Attend.

        Args:
            hidden_states: (B, L, D).
            attention_mask: (B, L) bool, True = real token.
            position_bias: (heads, L, L), None in the first layer.
            index: Upstream passes the number of the layer.
            prompts: Parts of (B or 1, n_j, D), through the block's first norm if it has one.

        Returns:
            (B, L, D), None for the attention weights, and the biases.
        """
        length = hidden_states.shape[1]
        if position_bias is None:
            position_bias = self.compute_bias(length, length)
        halves = self.gru_rel_pos_linear(split_heads(hidden_states, self.head_dim))
        halves = halves.unflatten(-1, (2, 4)).sum(-1).sigmoid()
        gate_a, gate_b = halves.chunk(2, dim=-1)
        gate = gate_a * (gate_b * self.gru_rel_pos_const - 1.0) + 2.0  # (B, heads, L, 1)
        bias = (gate * position_bias).masked_fill(~attention_mask[:, None, None], -torch.inf)

        keys, values = project_parts(
            (*prompts, hidden_states), self._keys_and_values, len(hidden_states)
        )
        query = split_heads(self.q_proj(hidden_states), self.head_dim)
        key = split_heads(torch.cat(keys, dim=1), self.head_dim)
        value = split_heads(torch.cat(values, dim=1), self.head_dim)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=widen_mask(bias.to(query.dtype), key.shape[2] - length),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(out.transpose(1, 2).flatten(2)), None, position_bias

    def _keys_and_values(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.k_proj(rows), self.v_proj(rows)


class WavLM(TransformersSpeech):
    """WavLM (arXiv 2110.13900): wav2vec 2.0 with a gated bias for relative positions.

    Prompts are extra keys and values with zero bias: they have no position. The first layer
    makes the table of the biases, later ones gate it anew.
    """

    model_type = "wavlm"
    default_model = "microsoft/wavlm-base-plus"
    attention = GatedAttention

    def layer_cache(self, tokens: Tensor, keep: Tensor) -> None:
        """No biases yet."""

    def resume(self, layer: int, tokens: Tensor, keep: Tensor | None) -> TokenState:
        length = tokens.shape[1]
        first: Any = self.layers[0]  # the only one that has the table
        bias = first.attention.compute_bias(length, length)
        return TokenState(tokens, keep, cache=bias)

    def run_layer(self, layer: int, state: TokenState, prompts: PromptRows | None) -> TokenState:
        rows = self.prompt_rows(layer, prompts)
        tokens, bias = self.layers[layer](
            state.tokens, attention_mask=state.keep, position_bias=state.cache, prompts=rows
        )
        return TokenState(tokens, state.keep, cache=bias)
