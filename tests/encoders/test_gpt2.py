"""Causal language models; the whole contract over each family is in cases_causal.py."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from cases_causal import CASES, EXACT, NETS
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from fusionkit.encoders import transformers_known, transformers_weights
from fusionkit.encoders.attention import split_heads
from fusionkit.encoders.bert import LAYOUTS as BOTH_WAYS, Bert
from fusionkit.encoders.gpt2 import LAYOUTS, CausalLM
from fusionkit.encoders.texts import load_tokenizer
from fusionkit.encoders.transformers_attention import project_prompts
from fusionkit.errors import ConfigError, EncoderError, WeightsError

KEEP = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] + [0] * 8], dtype=torch.bool)


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def net(kind="gpt2", **changes):
    return {"model_type": kind, "vocab_size": 50, **NETS[kind], **changes}


def make(kind="gpt2", changes=None, **options):
    encoder = CausalLM(config=net(kind, **(changes or {})), weights="random", **options)
    for parameter in encoder.parameters():  # upstream's zero biases would hide mistakes
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def batch(keep=KEEP):
    ids = torch.randint(3, 50, keep.shape).masked_fill(~keep, 0)
    return {"input_ids": ids, "attention_mask": keep}


def rows(encoder, n=2, rows_in_batch=3):
    return [
        torch.randn(rows_in_batch, n, width, requires_grad=True) for width in encoder.layer_widths
    ]


def given(prompts):
    return lambda layer, state: prompts[layer]


def upstream(encoder):
    model = copy.deepcopy(encoder.backbone)
    model.set_attn_implementation("sdpa")
    return model


@pytest.fixture(params=sorted(LAYOUTS))
def encoder(request):
    return make(request.param)


def test_every_family_passes_the_contract_elsewhere():
    assert set(CASES["gpt2"]) == set(LAYOUTS)
    assert len(LAYOUTS) == 13
    assert all(AutoConfig.for_model(kind).model_type == kind for kind in LAYOUTS)


def test_equals_upstream(encoder):
    inputs = batch()
    model, features = upstream(encoder), encoder.encode(inputs)
    expected = model(**inputs, use_cache=False).last_hidden_state
    torch.testing.assert_close(features.tokens[KEEP], expected[KEEP], rtol=0, atol=1e-12)
    assert torch.equal(features.keep, KEEP)
    exact = encoder.backbone.config.model_type in EXACT
    for row, length in enumerate(KEEP.sum(dim=1).tolist()):
        alone = model(input_ids=inputs["input_ids"][row : row + 1, :length], use_cache=False)
        torch.testing.assert_close(
            features.pooled[row],
            alone.last_hidden_state[0, -1],
            rtol=0,
            atol=1e-12 if exact else 1e-6,
        )


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "opt", "phi", "phi3"])
def test_dropout_in_training_is_upstreams(kind):
    inputs = batch(torch.ones(3, 9, dtype=torch.bool))
    rates = {
        "gpt2": {"embd_pdrop": 0.5, "attn_pdrop": 0.2, "resid_pdrop": 0.2},
        "gpt_neox": {"hidden_dropout": 0.5, "attention_dropout": 0.2},
        "opt": {"dropout": 0.3, "attention_dropout": 0.2},
        "phi": {"embd_pdrop": 0.5, "attention_dropout": 0.2, "resid_pdrop": 0.2},
        "phi3": {"attention_dropout": 0.2, "resid_pdrop": 0.2},
    }
    encoder = make(kind, rates[kind]).train()
    model = upstream(encoder).train()
    torch.manual_seed(1)
    expected = model(**inputs, use_cache=False).last_hidden_state
    torch.manual_seed(1)
    found = encoder.encode(inputs).tokens
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(encoder.encode(inputs).tokens, expected)


@pytest.mark.parametrize("kind", sorted(kind for kind in NETS if "sliding_window" in NETS[kind]))
def test_prompts_are_seen_through_a_window_that_hides_tokens(kind):
    encoder = make(kind)
    inputs = batch(torch.ones(1, 9, dtype=torch.bool))
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, 0] = 2
    one, two = encoder.embed(inputs), encoder.embed(other)
    prompts = rows(encoder, rows_in_batch=1)[0]
    first, second = (encoder.run_layer(0, state, prompts).tokens[0] for state in (one, two))
    assert not torch.allclose(first[2], second[2])  # the window is of three
    assert torch.equal(first[3:], second[3:])
    bare = encoder.run_layer(0, one, None).tokens[0]
    assert (first - bare).abs().amax(dim=-1).min() > 1e-6


def test_layers_see_no_later_token(encoder):
    inputs = batch(torch.ones(1, 9, dtype=torch.bool))
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, 6] = 2
    prompts = given(rows(encoder, rows_in_batch=1))
    one, two = encoder.encode(inputs, prompts).tokens, encoder.encode(other, prompts).tokens
    assert torch.equal(one[:, :6], two[:, :6])
    assert not torch.allclose(one[:, 6], two[:, 6])


@pytest.mark.parametrize("kind", ["gemma3_text", "olmo2", "phi", "qwen3"])
def test_keys_of_prompts_go_through_the_norm_of_keys(kind):
    """Against what the attention itself makes of a token at position 0, where nothing rotates."""
    encoder = make(kind)
    block = encoder.layers[0]
    prompts = torch.randn(1, 1, 16)
    seen = {}

    def spy(module, query, key, value, *args, **kwargs):
        seen["key"], seen["value"] = key, value
        return value.transpose(1, 2).repeat(1, 1, 2, 1), None

    attention = block.self_attn
    encoder.backbone.set_attn_implementation("sdpa")
    arguments = encoder.embed(batch(torch.ones(1, 1, dtype=torch.bool))).cache
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[type(attention).__module__]
        patch.setattr(module.ALL_ATTENTION_FUNCTIONS, "get_interface", lambda *_: spy, raising=True)
        attention(prompts, **arguments[encoder._attention_types()[0]])
    key, value = project_prompts(attention, prompts)
    head_dim = seen["key"].shape[-1]
    torch.testing.assert_close(split_heads(key, head_dim), seen["key"], rtol=0, atol=1e-6)
    torch.testing.assert_close(split_heads(value, head_dim), seen["value"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("gpt2", "attn.c_attn"),
        ("gpt_neox", "attention.query_key_value"),
        ("llama", "self_attn.k_proj"),
        ("phi3", "self_attn.qkv_proj"),
    ],
)
def test_lora_like_replacement_of_the_projections_reaches_prompts(kind, path):
    encoder = make(kind)
    inputs, prompts = batch(), rows(encoder)
    before = encoder.encode(inputs, given(prompts)).pooled

    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, tokens):
            return self.inner(tokens) * (2 if tokens.shape[1] == 2 else 1)  # prompts alone

    inner = encoder.layers[0].get_submodule(path)
    encoder.layers[0].set_submodule(path, Doubled(inner))
    assert not torch.allclose(encoder.encode(inputs, given(prompts)).pooled, before)


def test_mean_pooling_counts_real_tokens_only():
    features = make(pooling="mean").encode(batch())
    expected = torch.stack(
        [tokens[keep].mean(0) for tokens, keep in zip(features.tokens, KEEP, strict=True)]
    )
    torch.testing.assert_close(features.pooled, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
def test_text_without_any_token_is_one_padding_token_that_sees_prompts(kind, pooling):
    encoder = make(kind, pooling=pooling)
    keep = KEEP.clone()
    keep[2] = False
    inputs, prompts = batch(keep), rows(encoder)
    one_token = torch.zeros(1, 1, dtype=torch.long)
    expected = upstream(encoder)(input_ids=one_token).last_hidden_state[0, 0]
    features = encoder.encode(inputs)
    torch.testing.assert_close(features.pooled[2], expected, rtol=0, atol=1e-6)
    assert features.keep[2].tolist() == [True] + [False] * 8
    prompted = encoder.encode(inputs, given(prompts)).pooled
    assert prompted.isfinite().all()
    for gradient in torch.autograd.grad(prompted[2].square().sum(), prompts):
        assert gradient.isfinite().all()
        assert (gradient[2].abs().sum(dim=-1) > 0).all()


@pytest.fixture
def byte_tokenizer(tmp_path):
    """As GPT-2's: byte-level pieces, an end of text, neither padding nor unknown token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:48]
    vocab = {letter: i for i, letter in enumerate([*letters, "Ġ", "<|endoftext|>"])}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names, model_max_length=1024)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_texts_of_a_tokenizer_like_gpt2s(byte_tokenizer):
    assert load_tokenizer(byte_tokenizer).pad_token_id is None
    encoder = make(tokenizer=byte_tokenizer)
    preprocessor = encoder.preprocessor(train=False)
    assert (preprocessor.pad_id, preprocessor.max_length) == (49, 24)
    inputs = preprocessor.collate([preprocessor(text) for text in ("1 2", "", None, "3" * 99)])
    assert inputs["input_ids"].shape == (4, 24)
    assert inputs["attention_mask"].sum(dim=1).tolist() == [3, 0, 0, 24]
    assert (inputs["input_ids"][1:3] == 49).all()
    pooled = encoder.encode(inputs).pooled
    assert torch.equal(pooled[1], pooled[2])
    nothing = preprocessor.collate([preprocessor(""), preprocessor(None)])
    assert nothing["input_ids"].tolist() == [[49], [49]]
    torch.testing.assert_close(encoder.encode(nothing).pooled, pooled[1:3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_too_long_texts_are_refused_with_both_numbers(kind):
    encoder = make(kind)
    full = torch.ones(1, 24, dtype=torch.bool)
    assert encoder.encode(batch(full)).pooled.isfinite().all()
    with pytest.raises(EncoderError, match="25 tokens, but the model has 24 positions"):
        encoder.encode(batch(torch.ones(1, 25, dtype=torch.bool)))
    with pytest.raises(ConfigError, match="max_length 99 is more than the 24 positions"):
        make(kind, max_length=99)
    assert make(kind, max_length=24).max_length == 24


@pytest.mark.parametrize(
    ("name", "parameters", "width", "layers"),  # as published, less an output layer of its own
    [
        (None, 124_439_808, 768, 12),
        ("openai-community/gpt2-medium", 354_823_168, 1024, 24),
        ("gpt2-large", 774_030_080, 1280, 36),
        ("gpt2-xl", 1_557_611_200, 1600, 48),
        ("distilbert/distilgpt2", 81_912_576, 768, 6),
        ("facebook/opt-125m", 125_239_296, 768, 12),
        ("EleutherAI/pythia-70m", 70_426_624 - 50304 * 512, 512, 6),
        ("EleutherAI/pythia-160m", 162_322_944 - 50304 * 768, 768, 12),
        ("EleutherAI/pythia-410m", 405_334_016 - 50304 * 1024, 1024, 24),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008, 576, 30),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384 - 32000 * 2048, 2048, 22),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096 - 32000 * 4096, 4096, 32),
        ("Qwen/Qwen2.5-0.5B", 494_032_768, 896, 24),
        ("Qwen/Qwen3-0.6B", 596_049_920, 1024, 28),
    ],
)
def test_well_known_names_build_on_meta_without_a_network(
    name, parameters, width, layers, monkeypatch
):
    monkeypatch.setattr(transformers_weights, "_hub_answers", lambda: pytest.fail("asked the hub"))
    with torch.device("meta"):
        encoder = CausalLM(name) if name else CausalLM()
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    assert encoder.layer_widths == (width,) * layers


def test_all_known_architectures_build_on_meta():
    known = [n for n, c in transformers_known.KNOWN.items() if c["model_type"] in LAYOUTS]
    assert len(known) == 16
    with torch.device("meta"):
        for name in known:
            assert len(CausalLM(name).layers) >= 6
    assert transformers_known.known_config("somebody/gpt2") is None


def test_missing_offline_names_what_and_where(monkeypatch):
    monkeypatch.setattr(transformers_weights, "_hub_answers", lambda: False)
    with pytest.raises(WeightsError, match=r"config.json of 'gpt2'.*cache.*hub.*`model: PATH`"):
        CausalLM()


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_language_model_checkpoint_loads_without_its_head(tmp_path, capfd, kind):
    config = AutoConfig.for_model(**net(kind, tie_word_embeddings=False))
    full = AutoModelForCausalLM.from_config(config).eval()
    full.save_pretrained(tmp_path)
    capfd.readouterr()
    encoder = CausalLM(str(tmp_path)).eval()
    assert capfd.readouterr().err == ""
    assert not any("head" in name for name, _ in encoder.named_parameters())
    inputs = batch()
    expected = full.base_model(**inputs, use_cache=False).last_hidden_state
    found = encoder.encode(inputs).tokens
    torch.testing.assert_close(found[KEEP], expected[KEEP], rtol=0, atol=1e-12)


def test_weights_that_do_not_fit_are_listed(tmp_path):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**net()))
    state = {key: value.clone() for key, value in model.state_dict().items() if "h.1." not in key}
    model.config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"do not fit GPT2Model: h\.1\.attn.* 9 more"):
        CausalLM(str(tmp_path))
    model.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"\(50, 16\) instead of \(40, 16\)"):
        CausalLM(config=net(vocab_size=40), weights=str(tmp_path))
    file = tmp_path / "model.safetensors"
    encoder = CausalLM(config=net(), weights=str(file))
    assert torch.equal(encoder.backbone.wte.weight, model.transformer.wte.weight)


def test_state_dict_keys_are_upstreams(encoder):
    plain = AutoModel.from_config(copy.deepcopy(encoder.backbone.config))
    assert set(encoder.backbone.state_dict()) == set(plain.state_dict())


ROPE = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gpt2", "config": {}}, "either `model`"),
        ({"config": net()}, "Set `weights: random`"),
        ({"config": {"model_type": "bert"}, "weights": "random"}, "reads both ways.*`bert` for it"),
        ({"config": {"model_type": "gptj"}, "weights": "random"}, "attention to themselves.*gpt2"),
        ({"config": {"model_type": "bloom"}, "weights": "random"}, "depend on distances"),
        ({"config": {"model_type": "gemma2"}, "weights": "random"}, "caps the scores"),
        ({"config": {"model_type": "mamba"}, "weights": "random"}, "it has no attention"),
        ({"config": {"model_type": "xglm"}, "weights": "random"}, "not known to take prompts"),
        (
            {"config": net("opt", do_layer_norm_before=False), "weights": "random"},
            "opt-350m alone.*facebook/opt-125m",
        ),
        (
            {"config": net("opt", word_embed_proj_dim=8), "weights": "random"},
            "projects its embeddings",
        ),
        (
            {"config": net("llama", rope_parameters=ROPE), "weights": "random"},
            "rope_type 'dynamic'.*longest text of its batch",
        ),
        (
            {
                "config": net("gemma3_text", rope_parameters={"full_attention": ROPE}),
                "weights": "random",
            },
            "rope_type 'dynamic'",
        ),
        (
            {
                "config": net("gemma3_text", use_bidirectional_attention=True),
                "weights": "random",
            },
            "'gemma3_text' model cannot be prompted here: it reads both ways",
        ),
    ],
)
def test_configs_that_cannot_be_built_say_why(options, message):
    with pytest.raises(ConfigError, match=message):
        CausalLM(**options)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_bert_points_to_this_encoder(kind):
    message = "reads from left to right; bert takes encoders that read both ways. Use the encoder "
    with pytest.raises(ConfigError, match=f"{message}`gpt2` for it"):
        Bert(config=net(kind), weights="random")
    assert not set(BOTH_WAYS) & set(LAYOUTS)


def test_a_net_of_ones_own_needs_a_tokenizer_to_read_texts():
    with pytest.raises(ConfigError, match="needs `tokenizer: PATH`"):
        make().preprocessor(train=False)
