"""AST, against upstream's own forward and feature extractor."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from cases_audio import AST_SIZES, CLIPS, clip, plain_ast, shaken
from torch import nn
from transformers import ASTFeatureExtractor, ASTForAudioClassification, AutoConfig
from transformers.models.audio_spectrogram_transformer import (
    feature_extraction_audio_spectrogram_transformer as upstream_module,
)

from fusionkit.encoders import transformers_weights
from fusionkit.encoders.ast import AST, SpectrogramPreprocessor
from fusionkit.errors import ConfigError, DataError, EncoderError, WeightsError

KIND = "audio-spectrogram-transformer"


def make(**more):
    return shaken(AST(config={"model_type": KIND, **AST_SIZES, **more}, weights="random")).eval()


@pytest.fixture(params=["numpy", "torchaudio"])
def extractor(request, monkeypatch):
    """Upstream's feature extractor, in the way that needs torchaudio and the one that does not."""
    if request.param == "numpy":
        monkeypatch.setattr(upstream_module, "is_speech_available", lambda: False)
    found = ASTFeatureExtractor()
    assert hasattr(found, "mel_filters") == (request.param == "numpy")
    # torchaudio sums in float32, which shows where a band is almost silent.
    return found, 1e-6 if request.param == "numpy" else 2e-3


def test_features_equal_upstreams(extractor):
    upstream, tolerance = extractor
    ours = SpectrogramPreprocessor(frames=1024, bands=128)
    noise = np.random.default_rng(0).standard_normal(16_000).astype("f4") / 10
    for samples in (clip(0, 1.0, 16_000)[0], noise, np.zeros(8_000, "f4")):
        row = ours((samples, 16_000))
        expected = upstream(samples, sampling_rate=16_000, return_tensors="pt")["input_values"][0]
        frames = len(row["spectrogram"])
        assert frames == (len(samples) - 400) // 160 + 1
        torch.testing.assert_close(
            row["spectrogram"], expected[:frames], rtol=0, atol=tolerance, check_dtype=False
        )
        assert expected[frames:].unique().tolist() == pytest.approx([float(row["silence"])])


def test_long_clips_are_cut_where_upstream_cuts_them(extractor):
    upstream, tolerance = extractor
    upstream.max_length = 50
    samples = clip(1, 1.0, 16_000)[0]
    row = SpectrogramPreprocessor(frames=50, bands=128)((samples, 16_000))["spectrogram"]
    expected = upstream(samples, sampling_rate=16_000)["input_values"][0]
    assert row.shape == expected.shape == (50, 128)
    np.testing.assert_allclose(row, expected, atol=tolerance)


def test_pooled_equals_upstreams_from_raw_sound():
    encoder = make(num_mel_bins=128, max_length=120)
    preprocessor = encoder.preprocessor(train=False)
    clips = [clip(0, 0.3, 16_000), clip(1, 1.5, 16_000), clip(2, 0.7, 16_000)]
    inputs = preprocessor.collate([preprocessor(raw) for raw in clips])
    assert inputs["spectrogram"].shape == (3, 120, 128)
    upstream = ASTFeatureExtractor(max_length=120)
    whole = upstream([samples for samples, _ in clips], sampling_rate=16_000, return_tensors="pt")
    expected = plain_ast(encoder.backbone).float()(whole["input_values"])
    features = encoder.encode(inputs)
    torch.testing.assert_close(features.pooled, expected.pooler_output, rtol=0, atol=1e-3)
    torch.testing.assert_close(features.tokens, expected.last_hidden_state, rtol=0, atol=2e-3)
    assert features.keep is None


def test_batch_is_as_long_as_its_longest_clip():
    preprocessor = make().preprocessor(train=False)
    inputs = preprocessor.collate([preprocessor(raw) for raw in CLIPS])
    frames = [9, 28, 18, 1]
    assert inputs["spectrogram"].shape == (4, 28, 16)
    for row, silence, length in zip(*inputs.values(), frames, strict=True):
        assert torch.equal(row[length:], silence.expand(28 - length, 16))
        assert not torch.equal(row[length - 1], silence.expand(16))


def test_travels_to_workers():
    preprocessor = make().preprocessor(train=True)
    there = pickle.loads(pickle.dumps(preprocessor))
    assert torch.equal(there(CLIPS[1])["spectrogram"], preprocessor(CLIPS[1])["spectrogram"])


def test_broken_sound_is_named(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"nothing")
    with pytest.raises(DataError, match="a.wav cannot be read"):
        make().preprocessor(train=False)(tmp_path / "a.wav")


def test_statistics_are_the_models_own(tmp_path):
    with torch.device("meta"):
        commands = AST("MIT/ast-finetuned-speech-commands-v2", weights="random")
        audioset = AST("MIT/ast-finetuned-audioset-16-16-0.442", weights="random")
    found = commands.preprocessor(False)
    assert (found.frames, found.mean, found.std) == (128, -6.845978, 5.5654526)
    found = audioset.preprocessor(False)
    assert (found.frames, found.mean, found.std) == (1024, -4.2677393, 4.5689974)

    upstream = ASTForAudioClassification(AutoConfig.for_model(KIND, **AST_SIZES)).eval()
    upstream.save_pretrained(tmp_path)
    encoder = AST(str(tmp_path)).eval()
    with pytest.raises(WeightsError, match=r"lacks preprocessor_config\.json"):
        encoder.preprocessor(False)
    for options, mean, std in (
        ({"mean": 1.0, "std": 2.0}, 1, 2),
        ({"do_normalize": False}, 0, 0.5),
    ):
        ASTFeatureExtractor(**options).save_pretrained(tmp_path)
        found = encoder.preprocessor(False)
        assert (found.mean, found.std) == (mean, std)
    whole = torch.randn(2, 40, 16)
    expected = upstream.audio_spectrogram_transformer(whole).pooler_output
    pooled = encoder.encode({"spectrogram": whole, "silence": torch.zeros(2)}).pooled
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "parameters", "tokens"),
    [
        (None, 86_187_264, 2 + 12 * 101),
        ("MIT/ast-finetuned-audioset-16-16-0.442", 85_649_664, 2 + 8 * 64),
        ("MIT/ast-finetuned-speech-commands-v2", 85_367_040, 2 + 12 * 12),
    ],
)
def test_well_known_names_build_on_meta_without_a_network(model, parameters, tokens, monkeypatch):
    monkeypatch.setattr(transformers_weights, "_hub_answers", lambda: pytest.fail("asked the hub"))
    with torch.device("meta"):
        encoder = AST(model)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    assert encoder.backbone.embeddings.position_embeddings.shape == (1, tokens, 768)
    assert encoder.layer_widths == (768,) * 12


def test_lora_like_replacement_of_the_projections_reaches_prompts():
    encoder = make()
    preprocessor = encoder.preprocessor(train=False)
    inputs = preprocessor.collate([preprocessor(raw) for raw in CLIPS])
    prompts = [torch.randn(4, 3, 16) for _ in range(2)]
    before = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled

    class Doubled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, tokens):
            return self.inner(tokens) * (2 if tokens.shape[1] == 3 else 1)  # prompts alone

    encoder.layers[1].attention.k_proj = Doubled(encoder.layers[1].attention.k_proj)
    after = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
    assert not torch.allclose(after, before)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"waveform": torch.zeros(1, 9)}, r"takes inputs\['spectrogram'\].*given \['waveform'\]"),
        ({"spectrogram": torch.zeros(1, 41, 16)}, r"T at most 40, given \(1, 41, 16\)"),
        ({"spectrogram": torch.zeros(1, 40, 8)}, r"\(B, T, 16\).*given \(1, 40, 8\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, message):
    if "spectrogram" in inputs:
        inputs["silence"] = torch.zeros(1)
    with pytest.raises(EncoderError, match=message):
        make().encode(inputs)


def test_other_families_are_refused():
    with torch.device("meta"), pytest.raises(ConfigError, match="AST takes .* given a 'bert'"):
        AST(config={"model_type": "bert"}, weights="random")
