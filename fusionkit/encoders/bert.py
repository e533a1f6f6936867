"""Bidirectional text encoders of transformers: BERT and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_sliding_window_mask

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
from fusionkit.encoders.state import split_first
from fusionkit.encoders.texts import (
    TextPreprocessor,
    check_length,
    make_preprocessor,
    tokens_of,
)
from fusionkit.encoders.transformers_attention import padding_mask
from fusionkit.encoders.transformers_weights import architecture, build
from fusionkit.encoders.weights import locate
from fusionkit.errors import ConfigError, suggest


@dataclass(frozen=True)
class _Layout:
    """Where a family keeps its parts, as dotted paths.

    Attributes:
        layers: The list of layers, in the model.
        project: What widens the embeddings, in the model; may be absent.
        prompt_norm: The norm before the attention, in a layer; "" for post-norm layers.
        final_norm: The norm after the last layer, in the model; "" for none.
    """

    layers: str = "encoder.layer"
    project: str = ""
    prompt_norm: str = ""
    final_norm: str = ""


# By transformers' model_type; each is compared with upstream's own forward in the tests.
LAYOUTS: Mapping[str, _Layout] = {
    "albert": _Layout("encoder.albert_layer_groups", project="encoder.embedding_hidden_mapping_in"),
    "bert": _Layout(),
    "camembert": _Layout(),
    "data2vec-text": _Layout(),
    "distilbert": _Layout("transformer.layer"),
    "electra": _Layout(project="embeddings_project"),
    "ernie": _Layout(),
    "modernbert": _Layout("layers", prompt_norm="attn_norm", final_norm="final_norm"),
    "roberta": _Layout(),
    "roberta-prelayernorm": _Layout(prompt_norm="attention.LayerNorm", final_norm="LayerNorm"),
    "xlm-roberta": _Layout(),
    "xlm-roberta-xl": _Layout(
        prompt_norm="attention.self_attn_layer_norm", final_norm="encoder.LayerNorm"
    ),
}

_REFUSED = {
    "deberta": "its attention scores depend on relative positions, which prompts do not have",
    "deberta-v2": "its attention scores depend on relative positions, which prompts do not have",
    "mpnet": "its attention adds a bias for the relative position of every pair of tokens",
    **dict.fromkeys(
        ("gemma", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi", "phi3", "qwen2", "qwen3"),
        "it reads from left to right; bert takes encoders that read both ways. Use the encoder "
        "`gpt2` for it",
    ),
}


class Bert(MainEncoder):
    """Any bidirectional text encoder in :data:`LAYOUTS`, prompted in its keys and values.

    Without prompts the tokens equal upstream's ``last_hidden_state``. The pooler of upstream is
    not built. In ModernBERT, which rotates keys by their position, prompts stay unrotated and
    are visible through every local window.
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
        pooling: Literal["first", "mean"] = "first",
        config: dict[str, Any] | None = None,
    ) -> None:
        """Build the encoder.

        Args:
            model: Hub name, local folder, or ``fusionkit/NAME``; bert-base-uncased if neither it
                nor ``config`` is given.
            weights: ``pretrained`` (those of ``model``), ``random``, or a local file or folder.
            tokenizer: Hub name or local folder; that of ``model`` if not given.
            max_length: Longer texts are cut; by default at the least of what the tokenizer
                states, what the model has positions for, and 512.
            pooling: ``first`` token, or the ``mean`` of the real tokens.
            config: A net of one's own instead of ``model``: a transformers config with
                ``model_type``; its weights are ``random`` or a path.

        Raises:
            ConfigError: Both ``model`` and ``config``, or a family that cannot be
                prompted.
            WeightsError: The weights were not found or do not fit.
        """
        super().__init__()
        found, model = architecture(model, weights, config, default="bert-base-uncased")
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
    def takes_tokens(self) -> bool:
        # ALBERT and small ELECTRA widen their word embeddings only behind positions and norm.
        return self.backbone.get_input_embeddings().embedding_dim == self.out_dim

    @property
    def takes_queries(self) -> bool:
        return bool(self.backbone.config.model_type != "modernbert")  # rotary, and local windows

    @property
    def layer_widths(self) -> tuple[int, ...]:
        return (self.out_dim,) * len(self.layers)

    @property
    def layers(self) -> list[nn.Module]:
        """The layers in the order they run; ALBERT's shared ones once for each use."""
        layers = list(self.backbone.get_submodule(self._layout.layers).children())
        config = self.backbone.config
        if config.model_type != "albert":
            return layers
        uses = range(config.num_hidden_layers)
        groups = [layers[use * len(layers) // config.num_hidden_layers] for use in uses]
        return [layer for group in groups for layer in group.albert_layers]

    @property
    def positions(self) -> int:
        """How many tokens a text may have."""
        table = getattr(self.backbone.embeddings, "position_embeddings", None)
        if table is None:  # rotary
            return int(self.backbone.config.max_position_embeddings)
        # RoBERTa and kin count positions from behind that of padding.
        skipped = 0 if table.padding_idx is None else table.padding_idx + 1
        return int(table.num_embeddings - skipped)

    def embed(self, inputs: Inputs) -> TokenState:
        ids, keep = tokens_of(inputs, "Bert")
        check_length(ids.shape[1], 0, self.positions)
        return self._state(self.backbone.embeddings(input_ids=ids), keep)

    def embed_with(self, inputs: Inputs, extra: ExtraTokens) -> tuple[TokenState, int]:
        """Further tokens stand behind the first one and are numbered like words."""
        ids, keep = tokens_of(inputs, "Bert")
        rows, place = extra.rows, 1
        check_length(ids.shape[1], rows.shape[1], self.positions)
        words = insert_rows(self.backbone.get_input_embeddings()(ids), rows, place)
        keep = insert_rows(keep, all_real(rows), place)
        state = self._state(self.backbone.embeddings(input_ids=None, inputs_embeds=words), keep)
        length = words.shape[1]
        for own in state.cache.values():
            own["attention_mask"] = hide_tokens(
                own["attention_mask"], extra.visible, place, length, self.causal, extra.blind
            )
        return state, place

    def resume(self, layer: int, tokens: Tensor, keep: Tensor | None) -> TokenState:
        assert keep is not None
        return TokenState(tokens, keep, cache=self._layer_arguments(tokens, keep))

    def _state(self, tokens: Tensor, keep: Tensor) -> TokenState:
        """What enters layer 0, from what upstream's embeddings give."""
        if self._layout.project:
            tokens = _part(self.backbone, self._layout.project)(tokens)
        return TokenState(tokens, keep, cache=self._layer_arguments(tokens, keep))

    def _layer_arguments(self, tokens: Tensor, keep: Tensor) -> dict[str, dict[str, Any]]:
        """What layers are called with beside their tokens, by their attention type."""
        config = self.backbone.config
        arguments = {"full_attention": {"attention_mask": padding_mask(keep)}}
        if config.model_type != "modernbert":
            return arguments
        local = create_bidirectional_sliding_window_mask(config, tokens, attention_mask=keep)
        arguments["sliding_attention"] = {"attention_mask": local}
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        for kind, own in arguments.items():
            own["position_embeddings"] = self.backbone.rotary_emb(tokens, positions, kind)
        return arguments

    def run_layer(self, layer: int, state: TokenState, prompts: PromptRows | None) -> TokenState:
        block = self.layers[layer]
        arguments = dict(state.cache[getattr(block, "attention_type", "full_attention")])
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
        return self.pooling == "first"

    def pooled_apart(self, state: TokenState) -> tuple[TokenState, TokenState]:
        return split_first(state, 1)

    def readout(self, state: TokenState) -> Features:
        tokens, keep = state.tokens, state.keep
        assert keep is not None
        if self._layout.final_norm:
            tokens = self.backbone.get_submodule(self._layout.final_norm)(tokens)
        pooled = tokens[:, 0] if self.pooling == "first" else masked_mean(tokens, keep)
        return Features(pooled, tokens, keep)

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


def _part(module: nn.Module, path: str) -> nn.Module:
    """A submodule, or the identity where a model of the family does without."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return nn.Identity()


def _layout_of(config: Any) -> _Layout:
    kind = config.model_type
    if kind not in LAYOUTS:
        reason = _REFUSED.get(kind, "its attention is not known to take prompts")
        raise ConfigError(
            f"A {kind!r} model cannot be prompted here: {reason}.{suggest(kind, LAYOUTS)} "
            f"Families that work: {', '.join(LAYOUTS)}."
        )
    if getattr(config, "is_decoder", False):
        raise ConfigError(f"This {kind!r} config has is_decoder: true; an encoder sees both sides.")
    return LAYOUTS[kind]
