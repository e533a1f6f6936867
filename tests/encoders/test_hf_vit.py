"""Vision Transformers of transformers, against upstream's own models and timm's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from cases_hf_vit import NETS
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    BitImageProcessorPil,
    DeiTImageProcessorPil,
    ViTImageProcessorPil,
)

from fusionkit.encoders import transformers_known, transformers_weights
from fusionkit.encoders.hf_vit import LAYOUTS, HfViT
from fusionkit.encoders.timm_vit import TimmViT
from fusionkit.encoders.transformers_images import PUBLISHED, translate
from fusionkit.errors import ConfigError, EncoderError, WeightsError

DEIT = Path(__file__).parents[3] / "shared" / "weights" / "deit_tiny_patch16_224.safetensors"
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(transformers_weights, "_hub_answers", lambda: False)


def make(net="vit", **options):
    encoder = HfViT(config=dict(NETS[net]), weights="random", **options)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def pixels(side=32, channels=3):
    return {"pixels": torch.randn(2, channels, side, side)}


def rows(encoder):
    return [torch.randn(2, 3, width) for width in encoder.layer_widths]


@pytest.mark.parametrize("net", NETS)
def test_all_tokens_are_upstreams(net):
    encoder, inputs = make(net), pixels()
    upstream = AutoModel.from_config(encoder.backbone.config, attn_implementation="sdpa").eval()
    upstream.load_state_dict(encoder.backbone.state_dict(), strict=False)  # less the pooler
    expected = upstream(inputs["pixels"])
    features = encoder.encode(inputs)
    torch.testing.assert_close(features.tokens, expected.last_hidden_state, rtol=0, atol=1e-12)
    if net not in ("vit", "deit"):
        torch.testing.assert_close(features.pooled, expected.pooler_output, rtol=0, atol=1e-12)


def test_every_family_has_a_net_and_a_preprocessing():
    families = {net["model_type"] for net in NETS.values()}
    assert families == set(LAYOUTS)
    assert families <= set(PUBLISHED)


@pytest.mark.parametrize("net", ["vit", "deit", "dinov2", "registers"])
def test_other_sizes_interpolate_the_positions_as_upstream_does(net):
    encoder, inputs = make(net, image_size=48), pixels(side=48)
    assert encoder.preprocessor(train=False)(np.zeros((60, 50, 3), np.uint8))["pixels"].shape == (
        (3, 48, 48)
    )
    upstream = AutoModel.from_config(encoder.backbone.config, attn_implementation="sdpa").eval()
    upstream.load_state_dict(encoder.backbone.state_dict(), strict=False)
    more = {"interpolate_pos_encoding": True} if net in ("vit", "deit") else {}
    expected = upstream(inputs["pixels"], **more).last_hidden_state
    assert expected.shape[1] == 36 + {"vit": 1, "deit": 2, "dinov2": 1, "registers": 4}[net]
    torch.testing.assert_close(encoder.encode(inputs).tokens, expected, rtol=0, atol=1e-12)


def test_lora_like_replacement_of_a_projection_reaches_the_prompts():
    encoder, inputs = make(), pixels()
    prompts = rows(encoder)
    before = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled

    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, tokens):
            return self.inner(tokens) * (2 if tokens.shape[1] == 3 else 1)  # prompts alone

    attention = encoder.layers[0].attention
    attention.v_proj = Doubled(attention.v_proj)
    after = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
    assert not torch.allclose(after, before)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "twin", "more"),
    [
        ("google/vit-base-patch16-224", "vit_base_patch16_224", 0),
        ("google/vit-base-patch16-224-in21k", "vit_base_patch16_224", 0),
        ("google/vit-base-patch16-384", "vit_base_patch16_384", 0),
        ("google/vit-large-patch16-224", "vit_large_patch16_224", 0),
        ("facebook/deit-tiny-patch16-224", "deit_tiny_patch16_224", 0),
        ("facebook/deit-small-distilled-patch16-224", "deit_small_distilled_patch16_224", 0),
        ("facebook/deit-base-distilled-patch16-224", "deit_base_distilled_patch16_224", 0),
        ("facebook/dinov2-small", "vit_small_patch14_dinov2", 384),  # a token for masked patches
        ("facebook/dinov2-base", "vit_base_patch14_dinov2", 768),
        ("facebook/dinov2-large", "vit_large_patch14_dinov2", 1024),
        ("facebook/dinov2-giant", "vit_giant_patch14_dinov2", 1536),
        # timm's registers carry the class token's position within, which transformers keeps.
        ("facebook/dinov2-with-registers-base", "vit_base_patch14_reg4_dinov2", 2 * 768),
    ],
)
def test_well_known_names_are_as_large_as_timms_twins(name, twin, more):
    with torch.device("meta"):
        encoder, other = HfViT(name), timm.create_model(twin, num_classes=0)
    assert all(parameter.is_meta for parameter in encoder.parameters())
    found = sum(parameter.numel() for parameter in encoder.parameters())
    assert found == sum(parameter.numel() for parameter in other.parameters()) + more
    assert encoder.layer_widths == (other.num_features,) * len(other.blocks)


@pytest.mark.usefixtures("offline")
def test_all_known_names_build_on_meta_and_know_their_preprocessing():
    known = [n for n, c in transformers_known.KNOWN.items() if c["model_type"] in LAYOUTS]
    assert len(known) == 18
    image = np.zeros((500, 600, 3), np.uint8)
    for name in known:
        with torch.device("meta"):
            encoder = HfViT(name)
        side = int(name[-3:]) if name[-3:].isdigit() else 224
        assert encoder.preprocessor(train=False)(image)["pixels"].shape == (3, side, side)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "processor"),
    [
        ("google/vit-base-patch16-224", ViTImageProcessorPil()),
        ("facebook/deit-tiny-patch16-224", DeiTImageProcessorPil(**IMAGENET)),
        ("facebook/deit-tiny-distilled-patch16-224", DeiTImageProcessorPil(**IMAGENET)),
        ("facebook/dinov2-base", BitImageProcessorPil(**IMAGENET, size={"shortest_edge": 256})),
    ],
)
def test_images_of_known_names_are_preprocessed_as_by_transformers(name, processor):
    with torch.device("meta"):
        encoder = HfViT(name)
    array = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    image = Image.fromarray(array).resize((410, 300), Image.Resampling.BICUBIC)
    ours = encoder.preprocessor(train=False)(image)["pixels"]
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=1e-5)


def test_a_folder_states_its_own_preprocessing(tmp_path):
    AutoModel.from_config(AutoConfig.for_model(**NETS["vit"])).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"preprocessor_config\.json in the folder.*save_pret"):
        HfViT(str(tmp_path)).preprocessor(train=False)
    stated = {"size": 32, "resample": 3, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    stated["feature_extractor_type"] = "ViTFeatureExtractor"  # as old checkpoints have it
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    row = HfViT(str(tmp_path)).preprocessor(train=False)(np.full((50, 40, 3), 255, np.uint8))
    assert row["pixels"].shape == (3, 32, 32)
    torch.testing.assert_close(row["pixels"].double(), torch.full((3, 32, 32), 4.5))


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"shortest_edge": 224}, "do_center_crop": False},
        {"size": {"longest_edge": 224}},
        {"do_resize": False},
        {"do_pad": True},
        {"rescale_factor": 1 / 127.5},
        {"crop_size": {"height": 300, "width": 300}},
    ],
)
def test_preprocessing_that_cannot_be_followed_is_refused(changes):
    stated = {**DeiTImageProcessorPil().to_dict(), **changes}
    with pytest.raises(ConfigError, match="of 'some/model' cannot be followed.*given {"):
        translate(stated, "some/model")


def test_preprocessing_without_normalisation_leaves_pixels_in_0_to_1():
    found = translate({**ViTImageProcessorPil().to_dict(), "do_normalize": False}, "some/model")
    assert (found["mean"], found["std"]) == ((0, 0, 0), (1, 1, 1))
    assert (found["size"], found["crop_pct"], found["crop_mode"]) == ((224, 224), 1, "squash")


@pytest.mark.parametrize("net", ["vit", "deit", "dinov2", "registers"])
def test_a_classifiers_checkpoint_loads(tmp_path, net):
    config = AutoConfig.for_model(**NETS[net], architectures=["DeiTForImageClassification"])
    upstream = AutoModelForImageClassification.from_config(config).eval()
    upstream.save_pretrained(tmp_path)
    encoder, inputs = HfViT(str(tmp_path)).eval(), pixels()
    expected = upstream.base_model(inputs["pixels"]).last_hidden_state
    torch.testing.assert_close(encoder.encode(inputs).tokens, expected, rtol=0, atol=1e-10)
    file = HfViT(config=dict(NETS[net]), weights=str(tmp_path / "model.safetensors")).eval()
    assert torch.equal(file.encode(inputs).tokens, encoder.encode(inputs).tokens)


def test_missing_weights_are_listed(tmp_path):
    config = AutoConfig.for_model(**NETS["dinov2"])
    state = {
        k: v for k, v in AutoModel.from_config(config).state_dict().items() if "norm2" not in k
    }
    config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"do not fit Dinov2Model: .*norm2\.bias is missing"):
        HfViT(str(tmp_path))


def as_published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's names to those of google/vit-* and facebook/deit-* on the hub."""
    renamed = {
        "cls_token": state["cls_token"],
        "position_embeddings": state["pos_embed"],
        "patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
    }
    renamed = {f"vit.embeddings.{key}": value for key, value in renamed.items()}
    parts = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for layer in range(12):
        ours, theirs = f"blocks.{layer}", f"vit.encoder.layer.{layer}"
        for kind in ("weight", "bias"):
            renamed[f"vit.layernorm.{kind}"] = state[f"norm.{kind}"]
            for old, new in parts.items():
                renamed[f"{theirs}.{new}.{kind}"] = state[f"{ours}.{old}.{kind}"]
            split = state[f"{ours}.attn.qkv.{kind}"].chunk(3)
            for name, value in zip(("query", "key", "value"), split, strict=True):
                renamed[f"{theirs}.attention.attention.{name}.{kind}"] = value
    return {key: value.contiguous().clone() for key, value in renamed.items()}


@pytest.mark.skipif(not DEIT.is_file(), reason="no shared weights")
def test_real_weights_in_the_hubs_layout_equal_timm(tmp_path):
    config = AutoConfig.for_model(**transformers_known.KNOWN["deit-tiny-patch16-224"])
    config.layer_norm_eps = 1e-6  # that of timm
    config.save_pretrained(tmp_path)
    state = {key: value.double() for key, value in load_file(DEIT).items()}
    save_file(as_published(state), tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = HfViT(str(tmp_path)).eval()
    theirs = TimmViT("deit_tiny_patch16_224", str(DEIT)).double().eval()
    inputs = pixels(side=224)
    prompts = rows(ours)
    with torch.no_grad():
        for given in (None, lambda layer, state: prompts[layer]):
            torch.testing.assert_close(
                ours.encode(inputs, given).tokens,
                theirs.encode(inputs, given).tokens,
                rtol=0,
                atol=1e-10,
            )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "facebook/dinov2-base", "config": NETS["vit"]}, "either `model`"),
        ({"config": NETS["vit"], "weights": "pretrained"}, "Set `weights: random`"),
        ({"config": {"model_type": "beit"}}, "'beit' model.*relative position.*Families that work"),
        ({"config": {"model_type": "swin"}}, "use the encoder timm_swin"),
        ({"config": {"model_type": "resnet"}}, "timm_cnn takes such nets"),
        ({"config": {"model_type": "clip_vision_model"}}, "use the encoder clip_image"),
        ({"config": {"model_type": "vit_mae"}}, "vit_base_patch16_224.mae"),
        ({"config": {"model_type": "bert"}}, "not known to take prompts"),
        ({"config": NETS["vit"], "image_size": 50}, "50` is no multiple of the patch, 8 x 8"),
    ],
)
def test_what_cannot_be_built_says_why(options, message):
    with pytest.raises(ConfigError, match=message):
        HfViT(**{"weights": "random", **options})


def test_inputs_that_do_not_fit_are_named():
    with pytest.raises(EncoderError, match=r"\(B, 3, 8 \* n, 8 \* n\), given \(2, 3, 30, 30\)"):
        make().encode(pixels(side=30))
    with pytest.raises(EncoderError, match=r"given \(2, 1, 32, 32\)"):
        make().encode(pixels(channels=1))
    with pytest.raises(EncoderError, match=r"inputs\['pixels'\], given \['input_ids'\]"):
        make().encode({"input_ids": torch.zeros(1)})


@pytest.mark.usefixtures("offline")
def test_missing_offline_names_what_and_where():
    with pytest.raises(WeightsError, match=r"config\.json of 'facebook/dinov2-base'.*hub"):
        HfViT("facebook/dinov2-base")


def test_augmentation_is_for_training_only():
    encoder, image = make(augment="crop"), np.random.default_rng(0).integers(0, 256, (40, 40, 3))
    image = image.astype(np.uint8)
    plain, train = encoder.preprocessor(train=False), encoder.preprocessor(train=True)
    assert torch.equal(plain(image)["pixels"], plain(image)["pixels"])
    assert not torch.equal(train(image)["pixels"], train(image)["pixels"])
