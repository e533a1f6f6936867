"""Bundles of torchaudio, against torchaudio's own model and that of transformers."""

from __future__ import annotations

import sys
import types
from urllib.error import URLError

import pytest
import torch
import torchaudio
from cases_audio import BUNDLE, CLIPS, PRE_NORM, SPEECH, plain_bundle, plain_transformer, shaken
from safetensors.torch import save_file
from torchaudio.models.wav2vec2.utils import import_huggingface_model
from torchaudio.pipelines._wav2vec2 import utils

from fusionkit.encoders.torchaudio_bundle import TorchaudioBundle
from fusionkit.encoders.transformers_known import KNOWN
from fusionkit.encoders.wav2vec2 import Hubert, Wav2Vec2
from fusionkit.encoders.wavlm import WavLM
from fusionkit.errors import (
    ConfigError,
    MissingExtraError,
    UnknownNameError,
    WeightsError,
)


def make(model="WAV2VEC2_BASE", weights="random"):
    return TorchaudioBundle(model, weights=weights, options=dict(BUNDLE)).eval()


def batch(encoder):
    preprocessor = encoder.preprocessor(train=False)
    return preprocessor.collate([preprocessor(clip) for clip in CLIPS])


@pytest.mark.parametrize(
    ("model", "other", "variant"),
    [
        ("WAV2VEC2_BASE", Wav2Vec2, {}),
        ("WAV2VEC2_LARGE_LV60K", Wav2Vec2, PRE_NORM),
        ("WAVLM_BASE", WavLM, {}),
        ("WAVLM_LARGE", WavLM, {**PRE_NORM, "conv_bias": False}),
    ],
)
def test_equals_the_encoder_of_transformers_with_the_same_weights(model, other, variant, tmp_path):
    """Two libraries, two ways to prompt, with padding."""
    config = {"model_type": other.model_type, **SPEECH, **variant}
    if other is WavLM:
        config |= {"num_buckets": 320, "max_bucket_distance": 800}
    theirs = shaken(other(config=config, weights="random")).eval()
    imported = import_huggingface_model(plain_transformer(theirs.backbone).float())
    state = {key: value.contiguous() for key, value in imported.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    ours = make(model, str(tmp_path / "w.safetensors"))
    inputs = batch(theirs)
    prompts = [torch.randn(len(CLIPS), 3, 16, requires_grad=True) for _ in range(2)]
    for given in (None, lambda layer, state: prompts[layer]):
        found, expected = ours.encode(inputs, given), theirs.encode(inputs, given)
        assert torch.equal(found.keep, expected.keep)
        keep = found.keep
        torch.testing.assert_close(found.tokens[keep], expected.tokens[keep], rtol=0, atol=2e-5)
        torch.testing.assert_close(found.pooled, expected.pooled, rtol=0, atol=1e-5)
    gradients = [
        torch.autograd.grad(features.pooled.square().sum(), prompts)
        for features in (found, expected)
    ]
    for one, two in zip(*gradients, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_prompts_do_not_enter_the_pooling():
    encoder = make()
    state = encoder.embed(batch(encoder))
    prompted = encoder.run_layer(1, state, torch.randn(4, 3, 16))
    assert prompted.tokens.shape == state.tokens.shape == (4, 29, 16)
    assert encoder.readout(prompted).tokens.shape == (4, 29, 16)


def test_no_layer_is_dropped_in_training():
    options = {**BUNDLE, "encoder_layer_drop": 1.0, "encoder_projection_dropout": 0.0}
    options |= dict.fromkeys(
        ("encoder_attention_dropout", "encoder_ff_interm_dropout", "encoder_dropout"), 0.0
    )
    encoder = TorchaudioBundle(weights="random", options=options)
    inputs = batch(encoder)
    expected = encoder.eval().encode(inputs).pooled
    assert torch.equal(encoder.train().encode(inputs).pooled, expected)


COUNTS = {
    "WAV2VEC2_BASE": (Wav2Vec2, "wav2vec2-base", 94_370_944),
    "WAV2VEC2_LARGE": (Wav2Vec2, "wav2vec2-large", 315_427_968),
    "WAV2VEC2_LARGE_LV60K": (Wav2Vec2, "wav2vec2-large-lv60", 315_437_696),
    "WAV2VEC2_XLSR53": (Wav2Vec2, "wav2vec2-large-xlsr-53", 315_437_696),
    "WAV2VEC2_XLSR_300M": (Wav2Vec2, "wav2vec2-xls-r-300m", 315_437_696),
    "WAV2VEC2_XLSR_1B": (Wav2Vec2, "wav2vec2-xls-r-1b", 962_496_128),
    "WAV2VEC2_XLSR_2B": (Wav2Vec2, "wav2vec2-xls-r-2b", 2_159_257_728),
    "HUBERT_BASE": (Hubert, "hubert-base-ls960", 94_370_944),
    "WAVLM_BASE": (WavLM, "wavlm-base", 94_381_168),
    "WAVLM_BASE_PLUS": (WavLM, "wavlm-base-plus", 94_381_168),
    "WAVLM_LARGE": (WavLM, "wavlm-large", 315_452_096),
}


@pytest.mark.parametrize("model", COUNTS)
def test_real_sizes_build_on_meta_and_agree_with_transformers(model):
    other, name, count = COUNTS[model]
    with torch.device("meta"):
        encoders = TorchaudioBundle(model), other(name)
    for encoder in encoders:
        assert sum(weight.numel() for weight in encoder.parameters()) == count
        assert all(weight.is_meta for weight in encoder.parameters())
    assert encoders[0].layer_widths == encoders[1].layer_widths
    assert encoders[0].pre_norm == encoders[1].pre_norm
    assert encoders[0].shortest == encoders[1].shortest == 400


def test_known_architectures_are_those_of_torchaudio_or_differ_in_biases_only():
    kinds = {"wav2vec2", "hubert", "wavlm"}
    assert sum(config["model_type"] in kinds for config in KNOWN.values()) == 18
    with torch.device("meta"):
        for model, name in (("HUBERT_LARGE", "large"), ("HUBERT_XLARGE", "xlarge")):
            ours, theirs = TorchaudioBundle(model), Hubert(f"facebook/hubert-{name}-ll60k")
            counts = [sum(w.numel() for w in encoder.parameters()) for encoder in (ours, theirs)]
            assert counts[1] - counts[0] == 7 * 512  # of the convolutions


@pytest.mark.parametrize("kind", ["safetensors", "pth", "older"])
def test_weights_from_a_file(tmp_path, kind):
    upstream = plain_bundle(None, "WAV2VEC2_ASR_BASE_960H").float()
    assert "aux.weight" in upstream.state_dict()
    state = {key: value.clone() for key, value in upstream.state_dict().items()}
    path = tmp_path / f"w.{kind}"
    if kind == "older":
        names = {"parametrizations.weight.original0": "weight_g"}
        names |= {"parametrizations.weight.original1": "weight_v"}
        for new, old in names.items():
            state = {key.replace(new, old): value for key, value in state.items()}
        assert "encoder.transformer.pos_conv_embed.conv.weight_g" in state
    save_file(state, path) if kind == "safetensors" else torch.save(state, path)
    encoder = make("WAV2VEC2_ASR_BASE_960H", str(path))
    waveform = torch.randn(1, 3000)
    found = encoder.encode({"waveform": waveform, "samples": torch.tensor([3000])}).tokens
    upstream.aux = None
    torch.testing.assert_close(found, upstream(waveform)[0], rtol=0, atol=1e-5)


def test_weights_that_do_not_fit_are_named(tmp_path):
    state = plain_bundle(None, "WAV2VEC2_BASE").state_dict()
    del state["encoder.transformer.layers.1.attention.k_proj.bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth.*layers\.1\.attention\.k_proj\.bias"):
        make(weights=str(tmp_path / "w.pth"))
    with pytest.raises(WeightsError, match="nowhere"):
        make(weights=str(tmp_path / "nowhere.pth"))


@pytest.fixture
def tiny(monkeypatch):
    """A bundle with a head and normalised sound, whose weights need no network."""
    params = {**torchaudio.pipelines.HUBERT_ASR_LARGE._params, **BUNDLE}
    torch.manual_seed(1)
    upstream = torchaudio.models.wav2vec2_model(**params).eval()
    bundle = torchaudio.pipelines.Wav2Vec2Bundle("tiny.pth", params, 16_000, True, "Wav2Vec2")
    monkeypatch.setattr(torchaudio.pipelines, "TINY", bundle, raising=False)
    asked = []

    def load(url, **options):
        asked.append(url)
        return upstream.state_dict()

    monkeypatch.setattr(utils, "load_state_dict_from_url", load)
    return bundle, asked


def test_pretrained_is_what_torchaudio_makes(tiny):
    bundle, asked = tiny
    encoder = TorchaudioBundle("TINY").eval()
    assert asked == ["https://download.pytorch.org/torchaudio/models/tiny.pth"]
    upstream = bundle.get_model()
    assert upstream.normalize_waveform
    upstream.model.aux = None
    samples = torch.from_numpy(CLIPS[0][0])
    expected = upstream(samples[None])[0].mean(1)
    preprocessor = encoder.preprocessor(train=False)
    found = encoder.encode(preprocessor.collate([preprocessor(CLIPS[0])])).pooled
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_weights_that_are_not_reached_say_where(tiny, monkeypatch):
    def refuse(url, **options):
        raise URLError("no network")

    monkeypatch.setattr(utils, "load_state_dict_from_url", refuse)
    with pytest.raises(
        WeightsError, match=r"TINY in torch's cache .* and on download\.pytorch\.org"
    ):
        TorchaudioBundle("TINY")


def test_unknown_names_and_options():
    with pytest.raises(UnknownNameError, match="'WAV2VEC_BASE'. Did you mean 'WAV2VEC2_BASE'"):
        TorchaudioBundle("WAV2VEC_BASE")
    with pytest.raises(UnknownNameError, match="no speech model 'HDEMUCS_HIGH_MUSDB'"):
        TorchaudioBundle("HDEMUCS_HIGH_MUSDB")
    with pytest.raises(ConfigError, match="no option 'encoder_layers'. Did you mean"):
        TorchaudioBundle(weights="random", options={"encoder_layers": 2})
    with pytest.raises(ConfigError, match="do not fit other options .encoder_num_layers"):
        TorchaudioBundle(options={"encoder_num_layers": 2})
    with pytest.raises(ConfigError, match="max_seconds .* given -1"):
        TorchaudioBundle(weights="random", max_seconds=-1)


def test_library_that_is_missing_or_broken(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    with pytest.raises(MissingExtraError, match=r"'torchaudio'.*fusionkit\[torchaudio\]"):
        TorchaudioBundle()

    class Broken(types.ModuleType):
        def __getattr__(self, name):
            raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "torchaudio", Broken("torchaudio"))
    with pytest.raises(MissingExtraError, match="does not load: libcudart.* belongs to torch"):
        TorchaudioBundle()
