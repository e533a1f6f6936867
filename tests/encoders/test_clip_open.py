"""The towers of open_clip, against whole models of upstream and against transformers' CLIP."""

from __future__ import annotations

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from cases_clip import CUSTOM, IMAGE, OPEN_IMAGE, OPEN_TEXT, TEXT, open_layer
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.nn.utils import parametrize

from fusionkit.encoders import clip_open_weights, transformers_weights
from fusionkit.encoders.clip_hf import ClipImage, ClipText
from fusionkit.encoders.clip_open import OpenClipImage, OpenClipText
from fusionkit.encoders.clip_open_weights import DEFAULT_TAGS
from fusionkit.errors import ConfigError, EncoderError, MissingExtraError, WeightsError

LONG = "a dog " * 100
TEXTS = ["A photo of two cats, isn't it?", "", "naïve  café 123", LONG]
CONFIG = {"embed_dim": 24, "vision_cfg": OPEN_IMAGE, "text_cfg": OPEN_TEXT}
SHOWN = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bilinear"}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(transformers_weights, "_hub_answers", lambda: False)


def whole(kind=open_clip.CLIP, **more):
    model = kind(**{**CONFIG, **more}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def saved(folder, model, config=CONFIG, **shown):
    """In open_clip's layout, as it stands on the hub."""
    stated = {"model_cfg": config, "preprocess_cfg": {**SHOWN, **shown}}
    (folder / "open_clip_config.json").write_text(json.dumps(stated))
    state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return str(folder)


def image(**options):
    return OpenClipImage(config={"embed_dim": 24, "vision_cfg": dict(OPEN_IMAGE)}, **options).eval()


def text(**options):
    return OpenClipText(config={"embed_dim": 24, "text_cfg": dict(OPEN_TEXT)}, **options).eval()


def pixels(side=32):
    return {"pixels": torch.randn(2, 3, side, side)}


def read(encoder, values):
    preprocessor = encoder.preprocessor(train=False)
    return preprocessor.collate([preprocessor(value) for value in values])


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
def test_a_folder_gives_what_open_clip_makes_of_it(tmp_path, kind):
    config = {**CONFIG, "custom_text": kind is open_clip.CustomTextCLIP}
    folder = saved(tmp_path, whole(kind), config)
    model, _, show = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model = model.double().eval()
    raw = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    ours = OpenClipImage(folder).eval()
    inputs = read(ours, raw)
    expected = torch.stack([show(Image.fromarray(array)) for array in raw]).double()
    torch.testing.assert_close(inputs["pixels"].double(), expected, rtol=0, atol=1e-6)
    found = ours.encode({"pixels": expected}).pooled
    torch.testing.assert_close(found, model.encode_image(expected), rtol=0, atol=1e-12)
    ours = OpenClipText(folder).eval()
    inputs = read(ours, TEXTS)
    assert inputs["attention_mask"].sum(1).tolist()[1::2] == [2, 16]
    expected = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS))
    torch.testing.assert_close(ours.encode(inputs).pooled, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_images_are_resized_as_by_open_clip(tmp_path, mode):
    folder = saved(tmp_path, whole(), resize_mode=mode)
    _, _, show = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    raw = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    ours = OpenClipImage(folder).preprocessor(train=False)(raw)["pixels"]
    torch.testing.assert_close(ours, show(Image.fromarray(raw)), rtol=0, atol=1e-6)


def test_a_file_holds_a_whole_model_or_the_tower_alone(tmp_path):
    plain, custom = whole(), whole(open_clip.CustomTextCLIP)
    for name, states in {
        "plain": (plain.state_dict(), plain.state_dict()),
        "custom": (custom.state_dict(), custom.state_dict()),
        "alone": (custom.visual.state_dict(), custom.text.state_dict()),
    }.items():
        model = plain if name == "plain" else custom
        files = tmp_path / f"{name}_image.pt", tmp_path / f"{name}_text.pt"
        for file, state in zip(files, states, strict=True):
            torch.save({"epoch": 3, "state_dict": state}, file)  # as open_clip's training saves it
        inputs = pixels()
        expected = model.encode_image(inputs["pixels"])
        found = image(weights=str(files[0])).encode(inputs).pooled
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        ids = open_clip.tokenize(TEXTS, context_length=16)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids).bool()}
        found = text(weights=str(files[1])).encode(inputs).pooled
        torch.testing.assert_close(found, model.encode_text(ids), rtol=0, atol=1e-12)


def test_image_size_resizes_the_positions_as_open_clip_does(tmp_path):
    folder = saved(tmp_path, whole())
    ours = OpenClipImage(folder, image_size=48).eval()
    theirs = open_clip.create_model(f"local-dir:{folder}", force_image_size=48).double().eval()
    inputs = pixels(side=48)
    expected = theirs.encode_image(inputs["pixels"])
    torch.testing.assert_close(ours.encode(inputs).pooled, expected, rtol=0, atol=1e-6)
    with pytest.raises(EncoderError, match=r"\(B, 3, 48, 48\), given \(2, 3, 32, 32\)"):
        ours.encode(pixels())


def test_weights_that_do_not_fit_are_listed(tmp_path):
    state = whole().state_dict()
    del state["visual.ln_post.bias"]
    state["visual.proj"] = torch.zeros(32, 20)
    state["visual.more"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(
        WeightsError,
        match=r"image tower of this `config`: ln_post.bias is missing; more is not part of it; "
        r"proj is \(32, 20\) instead of \(32, 24\)\. Give",
    ):
        image(weights=str(tmp_path / "w.pt"))
    (tmp_path / "w.pt").write_bytes(b"no weights at all")
    with pytest.raises(WeightsError, match="cannot be read"):
        image(weights=str(tmp_path / "w.pt"))
    with pytest.raises(WeightsError, match=r"nowhere\.pt: no such file.*`weights: PATH`"):
        image(weights=str(tmp_path / "nowhere.pt"))
    with pytest.raises(WeightsError, match=r"holds none of open_clip_model\.safetensors"):
        image(weights=str(tmp_path))
    with pytest.raises(WeightsError, match=r"has no open_clip_config\.json"):
        OpenClipText(str(tmp_path))
    torch.save(whole(open_clip.CustomTextCLIP).text.state_dict(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="class_embedding is missing"):
        image(weights=str(tmp_path / "w.pt"))


def as_open_clip(state, prefix):
    """transformers' names to open_clip's, for the layers and what is named alike in both."""
    found = {}
    for layer in range(2):
        theirs, ours = f"{prefix}.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            split = [state[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{ours}.attn.in_proj_{kind}"] = torch.cat(split)
            for old, new in {
                "self_attn.out_proj": "attn.out_proj",
                "layer_norm1": "ln_1",
                "layer_norm2": "ln_2",
                "mlp.fc1": "mlp.c_fc",
                "mlp.fc2": "mlp.c_proj",
            }.items():
                found[f"{ours}.{new}.{kind}"] = state[f"{theirs}.{old}.{kind}"]
    return found


def test_both_libraries_compute_the_same_with_the_same_weights_and_prompts():
    sizes = {"mlp_ratio": 1.5, "width": 32, "layers": 2}
    one = ClipImage(config=dict(IMAGE), weights="random").eval()
    state = one.backbone.state_dict()
    own = "vision_model.embeddings."
    renamed = {
        **as_open_clip(state, "vision_model"),
        "class_embedding": state[own + "class_embedding"],
        "positional_embedding": state[own + "position_embedding.weight"],
        "conv1.weight": state[own + "patch_embedding.weight"],
        "proj": state["visual_projection.weight"].T,
        **{f"ln_pre.{k}": state[f"vision_model.pre_layrnorm.{k}"] for k in ("weight", "bias")},
        **{f"ln_post.{k}": state[f"vision_model.post_layernorm.{k}"] for k in ("weight", "bias")},
    }
    config = {"embed_dim": 24, "vision_cfg": {**OPEN_IMAGE, **sizes}, "quick_gelu": True}
    other = OpenClipImage(config=config, weights="random").eval()
    other.backbone.load_state_dict(renamed)
    agree(one, other, pixels())

    one = ClipText(config={**TEXT, "vocab_size": 50, "eos_token_id": 49}, weights="random").eval()
    state = one.backbone.state_dict()
    own = "text_model.embeddings."
    renamed = {
        **as_open_clip(state, "text_model"),
        "positional_embedding": state[own + "position_embedding.weight"],
        "token_embedding.weight": state[own + "token_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
        **{f"ln_final.{k}": state[f"text_model.final_layer_norm.{k}"] for k in ("weight", "bias")},
    }
    config["text_cfg"] = {**OPEN_TEXT, **sizes, "vocab_size": 50}
    other = OpenClipText(config=config, weights="random").eval()
    other.backbone.load_state_dict(renamed)
    ids = torch.randint(3, 49, (2, 9))
    ids[0, 8] = ids[1, 5] = 49
    agree(one, other, {"input_ids": ids, "attention_mask": torch.ones(2, 9, dtype=torch.bool)})


def agree(one, other, inputs):
    prompts = [torch.randn(2, 5, width) for width in one.layer_widths]
    assert one.layer_widths == other.layer_widths
    for given in (None, lambda layer, state: prompts[layer]):
        found, expected = one.encode(inputs, given), other.encode(inputs, given)
        torch.testing.assert_close(found.tokens, expected.tokens, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.pooled, expected.pooled, rtol=0, atol=1e-12)


@pytest.mark.parametrize("role", ["image", "text"])
def test_adapted_attention_is_called_for_the_prompts_too(role):
    """peft's layer around nn.MultiheadAttention equals the weights that it merges into."""
    peft = pytest.importorskip("peft")
    encoder = image(weights="random") if role == "image" else text(weights="random")
    ids = open_clip.tokenize(TEXTS[:2], context_length=16)
    inputs = {"input_ids": ids, "attention_mask": ids > 0, **pixels()}
    prompts = [torch.randn(2, 5, width) for width in encoder.layer_widths]

    def run():
        with torch.no_grad():
            return encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled

    before = run()
    lora = peft.LoraConfig(r=2, target_modules=["attn"], init_lora_weights=False)
    wrapped = peft.get_peft_model(encoder.backbone, lora).eval()
    adapted = run()
    wrapped.merge_and_unload()
    torch.testing.assert_close(adapted, run(), rtol=0, atol=1e-10)
    assert (adapted - before).abs().max() > 1e-3


def test_parametrized_weights_hold_for_the_prompts_too():
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    encoder, prompts = image(weights="random"), torch.randn(2, 5, 32)
    for block in encoder.layers:
        parametrize.register_parametrization(block.attn, "in_proj_weight", Doubled(), unsafe=True)
    state = encoder.embed(pixels())
    found = encoder.run_layer(1, state, prompts).tokens
    expected = open_layer(encoder, 1, state, prompts).tokens
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_without_projection_the_tokens_keep_their_width():
    config = {"embed_dim": 24, "text_cfg": {**OPEN_TEXT, "proj_type": "none"}}
    encoder = OpenClipText(config=config, weights="random").eval()
    inputs = read(encoder, TEXTS)
    features = encoder.encode(inputs)
    assert encoder.out_dim == 32
    whole_ids = F.pad(inputs["input_ids"], (0, 16 - inputs["input_ids"].shape[1]))
    torch.testing.assert_close(features.pooled, encoder.backbone(whole_ids), rtol=0, atol=1e-12)


def test_patches_are_dropped_in_training_only():
    config = {"embed_dim": 24, "vision_cfg": {**OPEN_IMAGE, "patch_dropout": 0.5}}
    encoder = OpenClipImage(config=config, weights="random").eval()
    assert encoder.encode(pixels()).tokens.shape[1] == 17
    assert encoder.train().encode(pixels()).tokens.shape[1] == 9


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "image_size", "text_size", "width"),
    [
        # The two and the logit scale are the 151,277,313 of ViT-B-32, 427,616,513 of ViT-L-14, ...
        ("ViT-B-32", 87_849_216, 63_428_096, 512),
        ("ViT-B/16", 86_192_640, 63_428_096, 512),
        ("ViT-L-14-quickgelu", 303_966_208, 123_650_304, 768),
    ],
)
@pytest.mark.parametrize("weights", ["pretrained", "no/such/file"])
def test_well_known_names_build_on_meta_without_a_network(
    name, image_size, text_size, width, weights
):
    with torch.device("meta"):
        towers = OpenClipImage(name, weights), OpenClipText(name, weights)
    for encoder, size in zip(towers, (image_size, text_size), strict=True):
        assert sum(parameter.numel() for parameter in encoder.parameters()) == size
        assert all(parameter.is_meta for parameter in encoder.parameters())
        assert encoder.out_dim == width


def test_every_default_tag_is_open_clips_and_has_the_models_activation():
    assert len(DEFAULT_TAGS) == 5
    for model, tag in DEFAULT_TAGS.items():
        assert clip_open_weights.find(model, tag).tag == tag
        assert clip_open_weights.find(model, None).tag == tag
    assert clip_open_weights.find("ViT-B-32-quickgelu", None).tag == "openai"
    assert clip_open_weights.find("ViT-B-32-256", None).tag == "datacomp_s34b_b86k"  # the only one


def test_images_are_preprocessed_as_those_of_the_tag():
    with torch.device("meta"):
        clip, clipa = OpenClipImage("ViT-B-32"), OpenClipImage("ViT-L-14-CLIPA")
    white = np.full((300, 400, 3), 255, np.uint8)
    for encoder, mean, std in (
        (clip, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
        (clipa, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ):
        row = encoder.preprocessor(train=False)(white)["pixels"]
        expected = ((1 - torch.tensor(mean)) / torch.tensor(std))[:, None, None]
        assert row.shape == (3, 224, 224)
        torch.testing.assert_close(row.double(), expected.expand(3, 224, 224), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("options", "looked_for"),
    [
        ({}, r"open_clip_model\.safetensors or .*laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ({"model": "ViT-B-32-quickgelu"}, "timm/vit_base_patch32_clip_224.openai"),
        ({"model": "hf-hub:some/clip"}, r"open_clip_config\.json of 'some/clip'"),
    ],
)
def test_missing_offline_names_what_and_where(options, looked_for):
    with pytest.raises(WeightsError, match=f"{looked_for}.*cache.*hub.*`weights: random`"):
        OpenClipImage(**options)


def test_a_repository_of_the_hub_is_read_from_the_cache(tmp_path, monkeypatch):
    folder, asked = saved(tmp_path, model := whole()), []

    def download(repository, file, local_files_only=False):
        asked.append((repository, file, local_files_only))
        return f"{folder}/{file}"

    monkeypatch.setattr(clip_open_weights, "hf_hub_download", download)
    inputs = pixels()
    found = OpenClipImage("hf-hub:some/clip").eval().encode(inputs).pooled
    torch.testing.assert_close(found, model.encode_image(inputs["pixels"]), rtol=0, atol=1e-12)
    files = ("open_clip_config.json", "open_clip_model.safetensors")
    assert asked == [("some/clip", file, True) for file in files]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OpenClipImage("ViT-B-23"), "no model 'ViT-B-23'. Did you mean 'ViT-B-32'"),
        (lambda: OpenClipImage("laion/some"), "written 'hf-hub:laion/some'"),
        (lambda: OpenClipImage("ViT-B-32", tag="openai"), "Set `model: ViT-B-32-quickgelu`"),
        (lambda: OpenClipText("ViT-B-32", tag="laion2b"), "no weights 'laion2b' of 'ViT-B-32'.*It"),
        (lambda: OpenClipText("ViT-B-16-plus-240"), "with `tag`; it has: laion400m_e31, laion400m"),
        (lambda: OpenClipText("ViT-S-32"), "with `tag`; it has: none, so set `weights`"),
        (
            lambda: OpenClipImage("ViT-B-16-SigLIP", "random"),
            "timm's 'vit_base_patch16_siglip_224'",
        ),
        (lambda: OpenClipImage("RN50", "random"), "is a ResNet and has no layers.*timm_cnn runs"),
        (lambda: OpenClipText("xlm-roberta-base-ViT-B-32"), "'xlm-roberta-base' of transformers"),
        (lambda: OpenClipText("coca_ViT-B-32", tag="laion2b_s13b_b90k"), "class token after the"),
        (lambda: OpenClipText("ViT-B-16-SigLIP"), "reads its padding"),
        (lambda: text(), "Set `weights: random`"),
        (lambda: OpenClipText("ViT-B-32", config=CONFIG), "either `model`"),
        (lambda: OpenClipText(tag="openai", config=CONFIG), "either `model`"),
        (
            lambda: text(weights="random", max_length=20),
            "20 is more than the 16 positions of 'this",
        ),
        (lambda: image(weights="random", image_size=20), "20` is no multiple of the patch, 8 x 8"),
        (
            lambda: OpenClipText(config={**CONFIG, "text_cfg": {"pool_type": "last"}}, weights="x"),
            "pools 'last', not the end-of-text token",
        ),
        (
            lambda: OpenClipImage(
                config={**CONFIG, "vision_cfg": {"attentional_pool": "parallel"}}, weights="x"
            ),
            "pools to more than one vector",
        ),
        (
            lambda: OpenClipImage(config={**CONFIG, "vision_cfg": {"depth": 2}}, weights="random"),
            "cannot build the image tower: .*'depth'",
        ),
    ],
)
def test_what_cannot_be_built_says_why(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_tag_is_for_built_in_names(tmp_path):
    folder = saved(tmp_path, whole())
    with pytest.raises(ConfigError, match="`tag: openai` is for open_clip's own model names"):
        OpenClipImage(folder, tag="openai")
    folder = saved(tmp_path, whole(), resize_mode="longest")
    with pytest.raises(ConfigError, match="resize_mode 'longest' .* known are shortest, squash"):
        OpenClipImage(folder).preprocessor(train=False)


def test_inputs_that_do_not_fit_are_named():
    keep = torch.ones(1, 17, dtype=torch.bool)
    with pytest.raises(EncoderError, match="17 tokens, but the model has 16 positions"):
        text(weights="random").encode({"input_ids": keep.long(), "attention_mask": keep})
    with pytest.raises(EncoderError, match=r"OpenClipImage takes inputs\['pixels'\]"):
        image(weights="random").encode({"x": torch.zeros(1)})


def test_texts_are_cut_with_their_end_kept():
    preprocessor = text(weights="random", max_length=5).preprocessor(train=False)
    assert preprocessor(LONG)["input_ids"].tolist() == [49406, 320, 1929, 320, 49407]
    assert preprocessor(None)["input_ids"].tolist() == [49406, 49407]


def test_custom_blocks_are_prompted_by_concatenation(monkeypatch):
    from fusionkit.encoders import clip_open_block

    called = []
    concatenate = clip_open_block.run_concatenated
    spy = SimpleNamespace(run=lambda *a: called.append(1) or concatenate(*a))
    monkeypatch.setattr(clip_open_block, "run_concatenated", spy.run)
    for more, times in (({}, 0), (CUSTOM, 2)):
        config = {"embed_dim": 24, "vision_cfg": {**OPEN_IMAGE, **more}}
        encoder = OpenClipImage(config=config, weights="random").eval()
        encoder.encode(pixels(), lambda layer, state: torch.randn(2, 3, 32))
        assert len(called) == times


def test_without_open_clip_the_extra_is_named(monkeypatch):
    for name in [
        n for n in sys.modules if n.startswith(("open_clip", "fusionkit.encoders.clip_o"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fusionkit\[open_clip\]'"):
        importlib.import_module("fusionkit.encoders.clip_open")
