"""The two distributions in plugins/, found and used as those of a stranger would be."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
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


def test_both_are_found_with_their_distribution_and_summary():
    assert len(list(PLUGINS.glob("*/pyproject.toml"))) == 2
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
