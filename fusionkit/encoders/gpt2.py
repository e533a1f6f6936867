"""Causal language models of transformers: GPT-2, Llama, Mistral, Qwen and kin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_sliding_window_causal_mask

from fusionkit.encoders.attention import PromptRows, hide_tokens, parts_of
from fusionkit.encoders.base import (
    ExtraTokens,
    Features,
    Inputs,
    MainEncoder,
    Modality,
    TokenState,
)
from fusionkit.encoders.sequences import all_real, append_rows, insert_rows, masked_mean
from fusionkit.encoders.state import split_one
from fusionkit.encoders.texts import (
    TextPreprocessor,
    check_length,
    make_preprocessor,
    tokens_of,
)
from fusionkit.encoders.transformers_attention import causal_mask
from fusionkit.encoders.transformers_weights import architecture, build
from fusionkit.encoders.weights import locate
from fusionkit.errors import ConfigError, suggest


@dataclass(frozen=True)
class _Layout:
    """Where a family keeps its parts, as dotted paths; "" for a part that it lacks.

    Attributes:
        layers: The list of layers, in the model.
        positions: The table of learned positions, in the model; "" for rotary ones.
        dropout: What drops parts of the embeddings, in the model.
        prompt_norm: The norm before the attention, in a layer; "" for post-norm layers.
        final_norm: The norm after the last layer, in the model.
    """

    layers: str = "layers"
    positions: str = ""
    dropout: str = ""
    prompt_norm: str = "input_layernorm"
    final_norm: str = "norm"


# By transformers' model_type; each is compared with upstream's own forward in the tests.
LAYOUTS: Mapping[str, _Layout] = {
    "gemma": _Layout(),
    "gemma3_text": _Layout(),
    "gpt2": _Layout("h", "wpe", "drop", "ln_1", "ln_f"),
    "gpt_neox": _Layout(dropout="emb_dropout", final_norm="final_layer_norm"),
    "llama": _Layout(),
    "mistral": _Layout(),
    "olmo2": _Layout(prompt_norm=""),
    "opt": _Layout(
        "decoder.layers",
        positions="decoder.embed_positions",
        prompt_norm="self_attn_layer_norm",
        final_norm="decoder.final_layer_norm",
    ),
    "phi": _Layout(dropout="embed_dropout", final_norm="final_layernorm"),
    "phi3": _Layout(),
    "qwen2": _Layout(),
    "qwen3": _Layout(),
    "smollm3": _Layout(),
}

_DISTANCES = "its attention scores depend on distances, which prompts do not have"
_OWN_ATTENTION = "its layers keep their attention to themselves and hand no prompts down to it"
_BOTH_WAYS = "it reads both ways; gpt2 takes language models that read from left to right"
_REFUSED = {
    **dict.fromkeys(("bloom", "mpt"), _DISTANCES),
    **dict.fromkeys(("codegen", "falcon", "gpt_neo", "gptj"), _OWN_ATTENTION),
    **dict.fromkeys(("mamba", "mamba2", "rwkv"), "it has no attention"),
    "gemma2": "its attention caps the scores, which scaled_dot_product_attention cannot",
    "gpt_oss": "its attention has learned sinks, which scaled_dot_product_attention cannot",
    **dict.fromkeys(
        ("albert", "bert", "distilbert", "electra", "modernbert", "roberta", "xlm-roberta"),
        f"{_BOTH_WAYS}. Use the encoder `bert` for it",
    ),
}

# With these a token's rotation depends on how long the longest text of its batch is.
_ROTATIONS_BY_LENGTH = ("dynamic", "longrope")


class CausalLM(MainEncoder):
    """Any causal language model in :data:`LAYOUTS`, prompted in its keys and values.

    Without prompts the tokens equal upstream's ``last_hidden_state``; the head that predicts the
    next token is not built. Prompts come before the first token: every token sees them, through
    every sliding window too. They have no position, so where positions rotate keys (all families
    but GPT-2 and OPT), theirs stay as they are. LayerDrop (OPT) is off.

    The first position always counts as real: a text without tokens, which GPT-2 makes of "", is
    read as one padding token that sees the prompts.
    """

    modality: ClassVar[Modality] = "text"
    takes_parts: ClassVar[bool] = True

    backbone: Any  # a PreTrainedModel: its parts differ from family to family

    def __init__(
        self,
        model: str | None = None,
        weights: str = "pretrained",
        tokenizer: str | None = None,
        max_length: int | None = None,
        pooling: Literal["last", "mean"] = "last",
        config: dict[str, Any] | None = None,
    ) -> None:
        """Build the encoder.

        Args:
            model: Hub name, local folder, or ``fusionkit/NAME``; gpt2 if neither it nor
                ``config`` is given.
            weights: ``pretrained`` (those of ``model``), ``random``, or a local file or folder.
            tokenizer: Hub name or local folder; that of ``model`` if not given.
            max_length: Longer texts are cut; by default at the least of what the tokenizer
                states, what the model has positions for, and 512.
            pooling: ``last`` real token (GPT-2 in arXiv 2312.03734), or the ``mean`` of the real
                tokens.
            config: A net of one's own instead of ``model``: a transformers config with
                ``model_type``; its weights are ``random`` or a path.

        Raises:
            ConfigError: Both ``model`` and ``config``, or a family that cannot be prompted.
            WeightsError: The weights were not found or do not fit.
        """
        super().__init__()
        found, model = architecture(model, weights, config, default="gpt2")
        self._layout = _layout_of(found)
        self.backbone = build(found, weights, None if model is None else locate(model))
        self.pooling = pooling
        self.max_length = max_length
        self._tokenizer = tokenizer or model
        if max_length is not None and max_length > self.positions:
            raise ConfigError(
                f"max_length {max_length} is more than the {self.positions} positions of "
                f"{model or found.model_type!r}."
            )

    @property
    def out_dim(self) -> int:
        return int(self.backbone.config.hidden_size)

    @property
    def causal(self) -> bool:
        return True

    @property
    def takes_tokens(self) -> bool:
        return True

    @property
    def takes_queries(self) -> bool:
        return bool(self._layout.positions)  # rotary keys would need positions

    @property
    def layer_widths(self) -> tuple[int, ...]:
        return (self.out_dim,) * len(self.layers)

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.backbone.get_submodule(self._layout.layers))

    @property
    def positions(self) -> int:
        """How many tokens a text may have."""
        return int(self.backbone.config.max_position_embeddings)

    def embed(self, inputs: Inputs) -> TokenState:
        ids, keep = tokens_of(inputs, "CausalLM")
        check_length(ids.shape[1], 0, self.positions)
        return self._state(self.backbone.get_input_embeddings()(ids), keep)

    def embed_with(self, inputs: Inputs, extra: ExtraTokens) -> tuple[TokenState, int]:
        """Further tokens come before all words, which see them, and are numbered like words."""
        ids, keep = tokens_of(inputs, "CausalLM")
        rows = extra.rows
        check_length(ids.shape[1], rows.shape[1], self.positions)
        words = insert_rows(self.backbone.get_input_embeddings()(ids), rows, 0)
        keep = insert_rows(_some_token(keep), all_real(rows), 0)
        state = self._state(words, keep)
        length = words.shape[1]
        for own in state.cache.values():
            own["attention_mask"] = hide_tokens(
                own["attention_mask"], extra.visible, 0, length, self.causal, extra.blind
            )
        return state, 0

    def _state(self, tokens: Tensor, keep: Tensor) -> TokenState:
        """What enters layer 0, from word embeddings (B, L, D)."""
        keep = _some_token(keep)
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
        if self._layout.positions:
            table = self.backbone.get_submodule(self._layout.positions)
            # OPT's table counts positions from the mask if it is not given any.
            opt = self.backbone.config.model_type == "opt"
            tokens = tokens + (table(keep, position_ids=places) if opt else table(places))
        if self._layout.dropout:
            tokens = self.backbone.get_submodule(self._layout.dropout)(tokens)
        return TokenState(tokens, keep, cache=self._layer_arguments(tokens, keep, places))

    def resume(self, layer: int, tokens: Tensor, keep: Tensor | None) -> TokenState:
        assert keep is not None
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
        return TokenState(tokens, keep, cache=self._layer_arguments(tokens, keep, places))

    def _attention_types(self) -> list[str]:
        """``full_attention`` or ``sliding_attention`` for each layer."""
        config = self.backbone.config
        sliding = getattr(config, "sliding_window", None) is not None
        kinds = ["sliding_attention" if sliding else "full_attention"] * len(self.layers)
        return list(getattr(config, "layer_types", None) or kinds)

    def _layer_arguments(
        self, tokens: Tensor, keep: Tensor, places: Tensor
    ) -> dict[str, dict[str, Any]]:
        """What layers are called with beside their tokens, by their attention type."""
        config = self.backbone.config
        arguments: dict[str, dict[str, Any]] = {}
        for kind in sorted(set(self._attention_types())):
            if kind == "full_attention":
                mask = causal_mask(keep)
            else:
                mask = create_sliding_window_causal_mask(
                    config, tokens, attention_mask=keep, past_key_values=None
                )
            arguments[kind] = {"attention_mask": mask}
            if not self._layout.positions:
                kinds = (kind,) if config.model_type == "gemma3_text" else ()
                rotation = self.backbone.rotary_emb(tokens, places, *kinds)
                arguments[kind]["position_embeddings"] = rotation
        return arguments

    def run_layer(self, layer: int, state: TokenState, prompts: PromptRows | None) -> TokenState:
        block = self.layers[layer]
        arguments = dict(state.cache[self._attention_types()[layer]])
        if parts := parts_of(prompts):
            if self._layout.prompt_norm:
                parts = tuple(map(block.get_submodule(self._layout.prompt_norm), parts))
            arguments["prompts"] = parts
        return state.with_tokens(block(state.tokens, **arguments))

    def query(
        self, layer: int, state: TokenState, rows: Tensor, prompts: Tensor | None = None
    ) -> Tensor:
        block = self.layers[layer]
        assert state.keep is not None
        seen, keep = append_rows(state.tokens, state.keep, prompts)
        if self._layout.prompt_norm:
            seen = block.get_submodule(self._layout.prompt_norm)(seen)
        out: Tensor = block(rows, attention_mask=None, prompts=seen, prompts_keep=keep)
        return out

    @property
    def pools_apart(self) -> bool:
        return self.pooling == "last"

    def pooled_apart(self, state: TokenState) -> tuple[TokenState, TokenState]:
        assert state.keep is not None
        return split_one(state, state.keep.sum(dim=1) - 1)

    def readout(self, state: TokenState) -> Features:
        keep = state.keep
        assert keep is not None
        tokens = self.backbone.get_submodule(self._layout.final_norm)(state.tokens)
        if self.pooling == "mean":
            return Features(masked_mean(tokens, keep), tokens, keep)
        rows = torch.arange(len(tokens), device=tokens.device)  # padding is on the right
        return Features(tokens[rows, keep.sum(dim=1) - 1], tokens, keep)

    def preprocessor(self, train: bool) -> TextPreprocessor:
        if self._tokenizer is None:
            raise ConfigError("A net described by `config` needs `tokenizer: PATH` to read texts.")
        vocab_size = self.backbone.get_input_embeddings().num_embeddings
        return make_preprocessor(
            self._tokenizer,
            self.max_length,
            vocab_size,
            self.positions,
            reserved=self.reserved,
        )


def _some_token(keep: Tensor) -> Tensor:
    """``keep`` with the first token real: a text without any would have nothing to attend to."""
    return keep | (torch.arange(keep.shape[1], device=keep.device) == 0)


def _layout_of(config: Any) -> _Layout:
    kind = config.model_type
    if kind not in LAYOUTS:
        reason = _REFUSED.get(kind, "its attention is not known to take prompts")
        raise ConfigError(
            f"A {kind!r} model cannot be prompted here: {reason}.{suggest(kind, LAYOUTS)} "
            f"Families that work: {', '.join(LAYOUTS)}."
        )
    both_ways = getattr(config, "use_bidirectional_attention", False)
    if both_ways or not getattr(config, "is_causal", True):
        raise ConfigError(f"This {kind!r} model cannot be prompted here: {_BOTH_WAYS}.")
    if kind == "opt" and (
        not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size
    ):
        raise ConfigError(
            "This 'opt' model cannot be prompted here: it projects its embeddings or has its norms "
            "behind the attention, as opt-350m alone does. Take another size, such as "
            "facebook/opt-125m."
        )
    rotations = getattr(config, "rope_parameters", None) or {}
    for rotation in (rotations, *rotations.values()):  # Gemma 3 has one for each attention type
        name = rotation.get("rope_type") if isinstance(rotation, Mapping) else None
        if name in _ROTATIONS_BY_LENGTH:
            raise ConfigError(
                f"This {kind!r} model cannot be prompted here: with rope_type {name!r}, what a "
                f"text gives would depend on the longest text of its batch."
            )
    return LAYOUTS[kind]
