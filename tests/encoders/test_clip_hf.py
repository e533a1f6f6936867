"""The towers of CLIP in transformers, against whole CLIPs of upstream."""

from __future__ import annotations

import json
import math

import numpy as np
import open_clip
import pytest
import torch
from cases_clip import IMAGE, TEXT, spread
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModel,
)

from fusionkit.encoders import transformers_weights
from fusionkit.encoders.clip_hf import ClipImage, ClipText
from fusionkit.errors import ConfigError, EncoderError, WeightsError

KEEP = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 2 + [0] * 7], dtype=torch.bool)
TEXTS = ["A photo of two cats, isn't it?", "", "naïve  café 123", "a dog " * 100]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(transformers_weights, "_hub_answers", lambda: False)


def whole(**text):
    """Upstream's model of both towers; a wider space than the towers' own configs say."""
    both = {"vision_config": dict(IMAGE), "text_config": {**TEXT, "vocab_size": 50, **text}}
    model = CLIPModel(AutoConfig.for_model("clip", projection_dim=20, **both)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def saved(folder, model):
    model.save_pretrained(folder)
    return str(folder)


def batch(vocabulary=50, end=3):
    """Padded by zeros, each text ended by ``end``."""
    ids = torch.randint(4, vocabulary - 1, KEEP.shape).masked_fill(~KEEP, 0)
    ids[torch.arange(3), KEEP.sum(1) - 1] = end
    return {"input_ids": ids, "attention_mask": KEEP}


def pixels(side=32):
    return {"pixels": torch.randn(2, 3, side, side)}


@pytest.mark.parametrize("source", ["folder", "file"])
def test_both_towers_load_from_a_whole_clip(tmp_path, source):
    model = whole()
    folder = saved(tmp_path, model)
    weights = "pretrained" if source == "folder" else f"{folder}/model.safetensors"
    image, text = ClipImage(folder, weights).eval(), ClipText(folder, weights).eval()
    assert image.out_dim == text.out_dim == 20
    expected = model.get_image_features(pixel_values=(inputs := pixels())["pixels"])
    torch.testing.assert_close(
        image.encode(inputs).pooled, expected.pooler_output, rtol=0, atol=1e-12
    )
    expected = model.get_text_features(**(inputs := batch()))
    torch.testing.assert_close(
        text.encode(inputs).pooled, expected.pooler_output, rtol=0, atol=1e-12
    )


def test_towers_without_projection_load_alone_and_from_a_whole_clip(tmp_path):
    model = whole()
    towers = {"image": model.vision_model, "text": model.text_model}
    folders = {name: saved(tmp_path / name, tower) for name, tower in towers.items()}
    folders["whole"] = saved(tmp_path / "whole", model)
    for name in ("image", "whole"):
        encoder, inputs = ClipImage(folders[name], projection=False).eval(), pixels()
        assert isinstance(encoder.backbone, CLIPVisionModel)
        assert encoder.out_dim == 32
        expected = model.vision_model(inputs["pixels"]).pooler_output
        torch.testing.assert_close(encoder.encode(inputs).pooled, expected, rtol=0, atol=1e-12)
    for name in ("text", "whole"):
        encoder, inputs = ClipText(folders[name], projection=False).eval(), batch()
        assert isinstance(encoder.backbone, CLIPTextModel)
        expected = model.text_model(**inputs)
        features = encoder.encode(inputs)
        torch.testing.assert_close(features.pooled, expected.pooler_output, rtol=0, atol=1e-12)
        real = features.tokens[KEEP], expected.last_hidden_state[KEEP]
        torch.testing.assert_close(*real, rtol=0, atol=1e-12)
    with pytest.raises(WeightsError, match=r"CLIPVisionModelWithProjection: visual_projection\."):
        ClipImage(folders["image"])


def test_missing_weights_of_the_tower_are_listed_and_those_of_the_other_are_not(tmp_path):
    folder = saved(tmp_path, whole())
    state = load_file(tmp_path / "model.safetensors")
    state = {k: v for k, v in state.items() if k != "text_model.final_layer_norm.bias"}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ClipImage(folder)
    with pytest.raises(WeightsError, match=r"Projection: text_model.final_layer_norm.bias is miss"):
        ClipText(folder)


def test_tokens_are_all_normed_and_projected():
    encoder, inputs = ClipImage(config=dict(IMAGE), weights="random").eval(), pixels()
    tower, project = encoder.backbone.vision_model, encoder.backbone.visual_projection
    last = tower(inputs["pixels"]).last_hidden_state
    features = encoder.encode(inputs)
    expected = project(tower.post_layernorm(last))
    torch.testing.assert_close(features.tokens, expected, rtol=0, atol=1e-12)
    assert torch.equal(features.pooled, features.tokens[:, 0])


@pytest.mark.parametrize("end", [3, 2])  # 2: configs from before transformers 4.31
def test_the_end_of_text_is_found_as_upstream_finds_it(end):
    model = whole(eos_token_id=end)
    encoder = ClipText(config={**TEXT, "vocab_size": 50, "eos_token_id": end}, weights="random")
    encoder.backbone.text_model.load_state_dict(model.text_model.state_dict())
    inputs = batch(end=3 if end == 3 else 49)
    inputs["input_ids"][0, 4] = 3 if end == 3 else 49  # the first of two counts
    expected = model.text_model(**inputs).pooler_output
    features = encoder.eval().encode(inputs)
    found = encoder.backbone.text_projection(expected)
    torch.testing.assert_close(features.pooled, found, rtol=0, atol=1e-12)
    assert encoder.embed(inputs).cache[1].tolist() == [4, 4, 1]


def test_no_token_sees_what_comes_after_it_with_prompts_either():
    encoder = ClipText(config={**TEXT, "vocab_size": 50}, weights="random").eval()
    spread(encoder.backbone.text_model.embeddings.token_embedding)
    prompts = [torch.randn(3, 4, width) for width in encoder.layer_widths]
    inputs = batch()
    before = encoder.encode(inputs, lambda layer, state: prompts[layer]).tokens
    inputs["input_ids"][:, 6] = 17
    after = encoder.encode(inputs, lambda layer, state: prompts[layer]).tokens
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().amax(dim=(0, 2)).min() > 1e-6


def test_lora_like_replacement_of_a_projection_reaches_the_prompts():
    encoder, inputs = ClipImage(config=dict(IMAGE), weights="random").eval(), pixels()
    prompts = [torch.randn(2, 4, width) for width in encoder.layer_widths]
    before = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled

    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, tokens):
            return self.inner(tokens) * (2 if tokens.shape[1] == 4 else 1)  # prompts alone

    attention = encoder.layers[0].self_attn
    attention.v_proj = Doubled(attention.v_proj)
    after = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
    assert not torch.allclose(after, before)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "image", "text", "width", "side"),
    [
        # The two and the logit scale are the 151,277,313, 149,620,737, ... of OpenAI's CLIPs.
        ("openai/clip-vit-base-patch32", 87_849_216, 63_428_096, 512, 224),
        ("openai/clip-vit-base-patch16", 86_192_640, 63_428_096, 512, 224),
        ("openai/clip-vit-large-patch14", 303_966_208, 123_650_304, 768, 224),
        ("openai/clip-vit-large-patch14-336", 304_293_888, 123_650_304, 768, 336),
    ],
)
def test_well_known_names_build_on_meta_without_a_network(name, image, text, width, side):
    with torch.device("meta"):
        towers = ClipImage(name), ClipText(name)
    for encoder, size in zip(towers, (image, text), strict=True):
        assert sum(parameter.numel() for parameter in encoder.parameters()) == size
        assert all(parameter.is_meta for parameter in encoder.parameters())
        assert encoder.out_dim == width
    array = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    theirs = CLIPImageProcessorPil(**sizes)(array, return_tensors="pt")["pixel_values"][0]
    ours = towers[0].preprocessor(train=False)(array)["pixels"]
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=1e-5)


def test_a_smaller_image_size_keeps_the_normalisation():
    encoder = ClipImage(config=dict(IMAGE), weights="random", image_size=16)
    row = encoder.preprocessor(train=False)(np.full((50, 40, 3), 255, np.uint8))["pixels"]
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    expected = (1 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(row, expected[:, None, None].expand(3, 16, 16), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """CLIP's own, made of the vocabulary that open_clip ships."""
    simple, folder = open_clip.SimpleTokenizer(), tmp_path_factory.mktemp("clip")
    names = {49406: "<|startoftext|>", 49407: "<|endoftext|>"}
    words = {names.get(i, word): i for word, i in simple.encoder.items()}
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    made = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    made.model_max_length = 77
    made.save_pretrained(folder)
    return str(folder)


def test_texts_become_the_tokens_of_clip(tokenizer):
    config = {**TEXT, "vocab_size": 49408, "max_position_embeddings": 77}
    config |= {"bos_token_id": 49406, "eos_token_id": 49407}
    encoder = ClipText(config=config, weights="random", tokenizer=tokenizer)
    preprocessor = encoder.preprocessor(train=False)
    inputs = preprocessor.collate([preprocessor(text) for text in TEXTS])
    assert inputs["input_ids"].shape == (4, 77)
    expected = open_clip.tokenize(TEXTS)
    lengths = expected.argmax(dim=1) + 1
    assert torch.equal(inputs["attention_mask"].sum(dim=1), lengths)
    keep = inputs["attention_mask"]
    assert torch.equal(inputs["input_ids"][keep], expected[keep])
    assert encoder.embed(inputs).cache[1].tolist() == (lengths - 1).tolist()


@pytest.mark.parametrize("end", [7, 2])
def test_a_tokenizer_without_the_end_of_text_is_refused(tokenizer, end):
    sizes = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": end}
    encoder = ClipText(config={**TEXT, **sizes}, weights="random", tokenizer=tokenizer)
    if end == 2:  # the highest id, which is this tokenizer's end of text
        assert encoder.preprocessor(train=False)("a")["input_ids"].tolist() == [49406, 320, 49407]
        return
    with pytest.raises(ConfigError, match=r"token 7, which .* 'a' becomes \[49406, 320, 49407\]"):
        encoder.preprocessor(train=False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ClipImage(config=dict(TEXT), weights="random"), "'clip_text_model' model is not"),
        (lambda: ClipText(config=dict(IMAGE), weights="random"), "its text tower: a 'clip' or"),
        (
            lambda: ClipImage(config={"model_type": "siglip_vision_model"}, weights="random"),
            "open_clip_image and",
        ),
        (lambda: ClipImage(config={"model_type": "siglip"}, weights="random"), "timm_vit runs its"),
        (lambda: ClipImage(config=dict(IMAGE)), "Set `weights: random`"),
        (lambda: ClipText("some/clip", config=dict(TEXT)), "either `model`"),
        (
            lambda: ClipImage(config=dict(IMAGE), weights="random", image_size=20),
            "20` is no multiple of the patch, 8 x 8",
        ),
        (
            lambda: ClipText(config=dict(TEXT), weights="random", max_length=20),
            "max_length 20 is more than the 16 positions of 'clip_text_model'",
        ),
        (
            lambda: ClipText(config=dict(TEXT), weights="random").preprocessor(train=False),
            "needs `tokenizer: PATH`",
        ),
    ],
)
def test_what_cannot_be_built_says_why(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_inputs_that_do_not_fit_are_named():
    image = ClipImage(config=dict(IMAGE), weights="random")
    with pytest.raises(EncoderError, match=r"\(B, 3, 8 \* n, 8 \* n\), given \(2, 3, 30, 30\)"):
        image.encode(pixels(side=30))
    text = ClipText(config=dict(TEXT), weights="random")
    keep = torch.ones(1, 17, dtype=torch.bool)
    with pytest.raises(EncoderError, match="17 tokens, but the model has 16 positions"):
        text.encode({"input_ids": keep.long(), "attention_mask": keep})
    with pytest.raises(EncoderError, match=r"ClipText takes inputs\['input_ids'\]"):
        text.encode(pixels())


@pytest.mark.usefixtures("offline")
def test_missing_offline_names_what_and_where():
    with pytest.raises(WeightsError, match=r"config\.json of 'openai/clip-vit-base-patch32'.*hub"):
        ClipText()


def test_images_and_texts_share_a_space(tmp_path, tokenizer):
    """Cosines of the two encoders, through their own preprocessors, are upstream's logits."""
    text = {"vocab_size": 49408, "max_position_embeddings": 77}
    model = whole(**text, bos_token_id=49406, eos_token_id=49407)
    folder = saved(tmp_path, model)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    image, words = ClipImage(folder).eval(), ClipText(folder).eval()
    raw = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    pooled = []
    for encoder, values in ((image, raw), (words, TEXTS)):
        preprocessor = encoder.preprocessor(train=False)
        inputs = preprocessor.collate([preprocessor(value) for value in values])
        pooled.append(torch.nn.functional.normalize(encoder.encode(inputs).pooled))
    logits = pooled[0] @ pooled[1].T * math.exp(model.logit_scale.item())
    read = CLIPTokenizer.from_pretrained(folder)
    inputs = read(TEXTS, return_tensors="pt", padding=True, truncation=True, max_length=77)
    shown = CLIPImageProcessorPil.from_pretrained(folder)(list(raw), return_tensors="pt")
    expected = model(**inputs, pixel_values=shown["pixel_values"].double()).logits_per_image
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01
