"""wav2vec 2.0 and HuBERT, against upstream's own forward."""

from __future__ import annotations

import copy

import pytest
import torch
from cases_audio import CLIPS, PRE_NORM, SPEECH, plain_transformer, shaken
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, HubertForCTC, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from fusionkit.encoders import transformers_known, transformers_weights
from fusionkit.encoders.speech import masked_group_norm
from fusionkit.encoders.wav2vec2 import Hubert, Wav2Vec2
from fusionkit.encoders.wavlm import WavLM
from fusionkit.errors import ConfigError, EncoderError, WeightsError

FAMILIES = {"wav2vec2": Wav2Vec2, "hubert": Hubert}


def make(kind="wav2vec2", **more):
    config = {"model_type": kind, **SPEECH, **more}
    return shaken(FAMILIES[kind](config=config, weights="random")).eval()


def batch(encoder):
    preprocessor = encoder.preprocessor(train=False)
    return preprocessor.collate([preprocessor(clip) for clip in CLIPS])


def rows(encoder, n=3):
    return [torch.randn(4, n, width, requires_grad=True) for width in encoder.layer_widths]


def given(prompts):
    return lambda layer, state: prompts[layer]


def samples_mask(inputs):
    return (torch.arange(inputs["waveform"].shape[1]) < inputs["samples"][:, None]).long()


@pytest.mark.parametrize("kind", FAMILIES)
def test_equals_upstream_under_padding_where_upstream_masks_it(kind):
    encoder = make(kind, **PRE_NORM).double()
    inputs = batch(encoder)
    inputs["waveform"] = inputs["waveform"].double()
    assert len(set(inputs["samples"].tolist())) == 4
    expected = plain_transformer(encoder.backbone)(
        inputs["waveform"], attention_mask=samples_mask(inputs)
    ).last_hidden_state
    features = encoder.encode(inputs)
    keep = features.keep
    torch.testing.assert_close(features.tokens[keep], expected[keep], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("variant", [{}, PRE_NORM], ids=["group_norm", "pre_norm"])
def test_equals_upstream_in_single_precision(kind, variant):
    encoder = make(kind, **variant)
    clip = batch(encoder)["waveform"][1:2]
    expected = plain_transformer(encoder.backbone).float()(clip).last_hidden_state
    found = encoder.encode({"waveform": clip, "samples": torch.tensor([clip.shape[1]])})
    torch.testing.assert_close(found.tokens, expected, rtol=1e-6, atol=3e-6)
    torch.testing.assert_close(found.pooled, expected.mean(1), rtol=1e-6, atol=1e-6)


def test_upstream_itself_depends_on_padding_in_base_models():
    """What masked_group_norm is there for."""
    encoder = make().double()
    inputs = batch(encoder)
    waveform, plain = inputs["waveform"].double(), plain_transformer(encoder.backbone)
    length = int(inputs["samples"][0])
    padded = plain(waveform, attention_mask=samples_mask(inputs)).last_hidden_state[0]
    alone = plain(waveform[:1, :length]).last_hidden_state[0]
    assert (padded[: len(alone)] - alone).abs().max() > 1e-2
    ours = encoder.encode({**inputs, "waveform": waveform}).tokens[0, : len(alone)]
    torch.testing.assert_close(ours, alone, rtol=0, atol=1e-12)


def test_masked_group_norm_is_each_rows_own_group_norm():
    norm = nn.GroupNorm(5, 5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    length = torch.tensor([7, 2, 12])
    x = torch.randn(3, 5, 12) + 100  # far from zero, where E[x^2] - E[x]^2 would be lost
    x[0, :, 7:], x[1, :, 2:] = 1e4, -1e4
    found = masked_group_norm(norm, x, length)
    for row, real in enumerate(length):
        expected = F.group_norm(x[row : row + 1, :, :real], 5, norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(found[row, :, :real], expected[0], rtol=0, atol=2e-4)


def test_frames_are_counted_not_samples():
    encoder = make()
    inputs = batch(encoder)
    features = encoder.encode(inputs)
    assert encoder.shortest == 10 + 2 * 20 + 2 * 80  # what one frame sees
    samples = [1760, 4800, 3200, 210]  # 16 kHz; the last one was padded to a frame
    assert inputs["samples"].tolist() == samples
    frames = [(n - 210) // 160 + 1 for n in samples]
    assert features.keep.sum(1).tolist() == frames == [10, 29, 19, 1]
    assert features.tokens.shape == (4, 29, 16)


@pytest.mark.parametrize("kind", FAMILIES)
def test_neither_layerdrop_nor_spec_augment_in_training(kind):
    off = dict.fromkeys(
        ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"), 0.0
    )
    always = {"layerdrop": 1.0, "mask_time_prob": 1.0, "mask_time_length": 2}
    encoder = make(kind, **{**off, **always})
    inputs, prompts = batch(encoder), rows(encoder)
    expected = encoder.encode(inputs, given(prompts)).pooled
    encoder.train()
    pooled = encoder.encode(inputs, given(prompts)).pooled
    assert torch.equal(pooled, expected)
    pooled.sum().backward()
    without = [name for name, weight in encoder.named_parameters() if weight.grad is None]
    assert without == []


def test_dropout_acts_in_training():
    encoder = make(hidden_dropout=0.5).train()
    inputs = batch(encoder)
    assert not torch.equal(encoder.encode(inputs).pooled, encoder.encode(inputs).pooled)


@pytest.mark.parametrize("variant", [{}, PRE_NORM], ids=["group_norm", "pre_norm"])
def test_lora_like_replacement_of_the_projections_reaches_prompts(variant):
    encoder = make(**variant)
    inputs, prompts = batch(encoder), rows(encoder)
    before = encoder.encode(inputs, given(prompts)).pooled

    class Doubled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, tokens):
            return self.inner(tokens) * (2 if tokens.shape[1] == 3 else 1)  # prompts alone

    attention = encoder.layers[0].attention
    attention.v_proj = Doubled(attention.v_proj)
    assert not torch.allclose(encoder.encode(inputs, given(prompts)).pooled, before)


def test_row_shorter_than_a_frame_is_a_frame():
    encoder = make()
    waveform = torch.zeros(2, 500)
    waveform[:, :50] = torch.randn(50)
    short = encoder.encode({"waveform": waveform, "samples": torch.tensor([50, 210])})
    assert short.keep.sum(1).tolist() == [1, 1]
    assert torch.equal(short.pooled[0], short.pooled[1])


def test_too_short_a_batch_is_refused():
    with pytest.raises(EncoderError, match=r"Wav2Vec2 .* at least 210, given \(1, 209\)"):
        make().encode({"waveform": torch.zeros(1, 209), "samples": torch.tensor([209])})


@pytest.mark.parametrize(
    ("name", "encoder", "parameters", "width", "layers"),
    [
        # As published, less the vector of SpecAugment: 94,371,712 - 768 and so on.
        ("facebook/wav2vec2-base", Wav2Vec2, 94_370_944, 768, 12),
        ("facebook/wav2vec2-base-960h", Wav2Vec2, 94_370_944, 768, 12),
        ("facebook/wav2vec2-large-xlsr-53", Wav2Vec2, 315_437_696, 1024, 24),
        ("facebook/hubert-base-ls960", Hubert, 94_370_944, 768, 12),
        ("microsoft/wavlm-base-plus", WavLM, 94_381_168, 768, 12),
        ("microsoft/wavlm-large", WavLM, 315_452_096, 1024, 24),
    ],
)
def test_well_known_names_build_on_meta_without_a_network(
    name, encoder, parameters, width, layers, monkeypatch
):
    monkeypatch.setattr(transformers_weights, "_hub_answers", lambda: pytest.fail("asked the hub"))
    with torch.device("meta"):
        found = encoder(name)
    assert all(parameter.is_meta for parameter in found.parameters())
    assert sum(parameter.numel() for parameter in found.parameters()) == parameters
    assert found.layer_widths == (width,) * layers
    assert found.shortest == 400
    assert transformers_known.known_config("somebody/" + name.partition("/")[2]) is None


def test_defaults_are_well_known():
    for encoder in (Wav2Vec2, Hubert, WavLM):
        with torch.device("meta"):
            assert encoder().out_dim == 768


def config_of(kind, **more):
    return AutoConfig.for_model(kind, **{**SPEECH, **more})


def frames_of(encoder, upstream, kind):
    waveform = torch.randn(2, 3000)
    expected = getattr(upstream, kind)(waveform).last_hidden_state
    found = encoder.eval().encode({"waveform": waveform, "samples": torch.tensor([3000, 3000])})
    torch.testing.assert_close(found.tokens, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "upstream"), [("wav2vec2", Wav2Vec2ForCTC), ("hubert", HubertForCTC)]
)
@pytest.mark.parametrize("has_vector", [True, False], ids=["spec_augment", "without"])
def test_speech_recognition_checkpoint_loads(tmp_path, kind, upstream, has_vector, capfd):
    """With or without the vector of SpecAugment, which wav2vec2-base-960h lacks."""
    model = upstream(config_of(kind, mask_time_prob=0.05)).eval()
    state = {k: v for k, v in model.state_dict().items() if has_vector or "masked_spec" not in k}
    assert (f"{kind}.masked_spec_embed" in state) == has_vector
    model.config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    encoder = FAMILIES[kind](str(tmp_path))
    assert capfd.readouterr().err == ""
    frames_of(encoder, model, kind)
    with pytest.raises(WeightsError, match=r"lacks preprocessor_config\.json"):
        encoder.preprocessor(train=False)
    Wav2Vec2FeatureExtractor(do_normalize=False, sampling_rate=8_000).save_pretrained(tmp_path)
    preprocessor = FAMILIES[kind](str(tmp_path), max_seconds=3).preprocessor(train=True)
    found = (preprocessor.normalize, preprocessor.rate, preprocessor.max_seconds)
    assert found == (False, 8_000, 3)
    assert preprocessor.shortest == 210


def test_names_of_older_torch_load(tmp_path):
    """weight_g and weight_v, as all published models have them."""
    model = Wav2Vec2ForCTC(config_of("wav2vec2")).eval()
    older = {"parametrizations.weight.original0": "weight_g"}
    older |= {"parametrizations.weight.original1": "weight_v"}
    state = {}
    for key, value in model.state_dict().items():
        for new, old in older.items():
            key = key.replace(new, old)
        state[key] = value.clone()
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight_g" in state
    torch.save(state, tmp_path / "pytorch_model.bin")
    own = {"model_type": "wav2vec2", **SPEECH}
    frames_of(Wav2Vec2(config=own, weights=str(tmp_path / "pytorch_model.bin")), model, "wav2vec2")
    model.config.save_pretrained(tmp_path)
    frames_of(Wav2Vec2(str(tmp_path)), model, "wav2vec2")


def test_missing_weights_are_listed(tmp_path):
    model = Wav2Vec2ForCTC(config_of("wav2vec2"))
    lost = "encoder.layers.1.attention.k_proj.bias"
    state = {k: v.clone() for k, v in model.state_dict().items() if lost not in k}
    save_file(state, tmp_path / "w.safetensors")
    own = {"model_type": "wav2vec2", **SPEECH}
    with pytest.raises(WeightsError, match=f"do not fit Wav2Vec2Model: {lost} is missing"):
        Wav2Vec2(config=own, weights=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("encoder", "options", "message"),
    [
        (
            Wav2Vec2,
            {"config": {"model_type": "hubert"}},
            "given a 'hubert'. Use the encoder `hubert`",
        ),
        (Hubert, {"config": {"model_type": "wavlm"}}, "Hubert takes 'hubert'.*encoder `wavlm`"),
        (WavLM, {"config": {"model_type": "bert"}}, "WavLM takes 'wavlm'.*Name another model"),
        (Wav2Vec2, {"config": {"model_type": "wav2vec2", "add_adapter": True}}, "add_adapter"),
        (
            Hubert,
            {"config": {"model_type": "hubert", "conv_pos_batch_norm": True}},
            "over the batch",
        ),
        (Wav2Vec2, {"config": {"model_type": "wav2vec2"}, "max_seconds": 0}, "given 0"),
        (Wav2Vec2, {"config": {"model_type": "wav2vec2"}, "model": "x"}, "either `model`"),
    ],
)
def test_what_cannot_be_built_says_why(encoder, options, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        encoder(weights="random", **options)


def test_backbone_is_upstreams_class_unchanged():
    encoder = make()
    assert type(encoder.backbone).__name__ == "Wav2Vec2Model"
    copy.deepcopy(encoder)  # EMA and the like; parametrised convolutions can be copied
