"""Contract cases of causal language models, one for each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import TEXTS, WORDS, shaken
from tokenizers import Tokenizer, processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedTokenizerFast

from fusionkit.encoders.attention import run_concatenated
from fusionkit.encoders.base import TokenState
from fusionkit.encoders.gpt2 import CausalLM
from fusionkit.testing import Case

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
WINDOWS = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}

# The contract's texts have up to eight words, so that windows of three cut some off.
NETS: dict[str, dict[str, Any]] = {
    "gemma": {**GROUPED, "head_dim": 8},
    "gemma3_text": {**GROUPED, **WINDOWS, "head_dim": 8},
    "gpt2": {**GPT2, "bos_token_id": 1, "eos_token_id": 1},
    "gpt_neox": SIZES,
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 3},
    "olmo2": GROUPED,
    "opt": {**{k: v for k, v in SIZES.items() if k != "intermediate_size"}, "ffn_dim": 24},
    "phi": {**GROUPED, "qk_layernorm": True},
    "phi3": {**GROUPED, "sliding_window": 3},
    "qwen2": {**GROUPED, **WINDOWS, "use_sliding_window": True},
    "qwen3": {**GROUPED, **WINDOWS, "use_sliding_window": True, "head_dim": 8},
    "smollm3": {**GROUPED, "no_rope_layers": [0, 1]},
}
EXACT = {"gpt2", "gpt_neox", "opt", "phi"}  # others have a norm that computes in float32


def plain_model(backbone: Any) -> Any:
    """Upstream's own model in its own attention, with the weights of ``backbone``."""
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    plain = AutoModel.from_config(config, attn_implementation="sdpa").double().eval()
    plain.load_state_dict(backbone.state_dict())
    return plain


def last_token(backbone: nn.Module, inputs: Any) -> Tensor:
    """Row by row without padding or mask; a text without tokens is one padding token."""
    plain = plain_model(backbone)
    lengths = inputs["attention_mask"].sum(dim=1).clamp(min=1)
    rows = zip(inputs["input_ids"], lengths, strict=True)
    return torch.cat([plain(ids[None, :n]).last_hidden_state[:, -1] for ids, n in rows])


def concatenated_layer(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    """Upstream's layer on [prompts, tokens], its mask and the prompts' rotation made by hand."""
    plain = plain_model(encoder.backbone)
    config, n, length = plain.config, prompts.shape[1], state.tokens.shape[1]
    kind = (getattr(config, "layer_types", None) or {layer: "by window"})[layer]
    reach = getattr(config, "sliding_window", None) if kind != "full_attention" else None
    distance = torch.arange(length)[:, None] - torch.arange(length)
    visible = (distance >= 0) & (distance < (reach or length)) & state.keep[:, None, None]
    options: dict[str, Any] = {"attention_mask": F.pad(visible, (n, 0, n, 0), value=True)}
    if hasattr(plain, "rotary_emb"):
        kinds = (kind,) if config.model_type == "gemma3_text" else ()
        cos, sin = plain.rotary_emb(state.tokens, torch.arange(length)[None], *kinds)
        rotation = F.pad(cos, (0, 0, n, 0), value=1.0), F.pad(sin, (0, 0, n, 0))
        options["position_embeddings"] = rotation
    inner = plain.decoder if config.model_type == "opt" else plain
    block = (inner.h if config.model_type == "gpt2" else inner.layers)[layer]
    return state.with_tokens(
        run_concatenated(lambda rows: block(rows, **options), state.tokens, prompts)
    )


def without_special_tokens(folder: str) -> str:
    """The tokenizer as GPT-2's is: "" has no tokens, and there is no padding token."""
    plain = Path(folder, "plain")
    if not plain.exists():
        backend = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        backend.post_processor = processors.Sequence([])
        names = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
        PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(plain)
    return str(plain)


def causal(kind: str, tokenizer: str) -> Case:
    config = {"model_type": kind, "vocab_size": len(WORDS), **NETS[kind]}
    folder = without_special_tokens(tokenizer)

    def make() -> CausalLM:
        return shaken(CausalLM(config=dict(config), weights="random", tokenizer=folder))

    keys = plain_model(make().double().backbone).state_dict()
    tolerance = 1e-10 if kind in EXACT else 1e-6
    return Case(make, TEXTS, last_token, concatenated_layer, tuple(keys), tolerance)


def of_family(kind: str) -> Callable[[str], Case]:
    return lambda tokenizer: causal(kind, tokenizer)


CASES: dict[str, dict[str, Callable[[str], Case]]] = {
    "gpt2": {kind: of_family(kind) for kind in NETS}
}
