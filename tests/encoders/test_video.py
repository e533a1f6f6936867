"""Video: an image encoder over frames."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fusionkit.encoders.timm_cnn import TimmCNN
from fusionkit.encoders.video import Video
from fusionkit.errors import ConfigError, EncoderError, UnknownNameError

TINY = {"channels": (8, 8, 16, 16), "stem_width": 8}
CNN = {"name": "timm_cnn", "model": "resnet10t", "weights": "random", "image_size": 32}
CNN |= {"options": TINY}


def clip(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (length, 40, 48, 3), dtype=np.uint8)


def batch(encoder, *values, train=False):
    preprocess = encoder.preprocessor(train)
    return preprocess.collate([preprocess(value) for value in values])


def test_the_mean_of_the_frames_features():
    encoder = Video(dict(CNN), frames=3).double().eval()
    image = encoder.backbone
    assert isinstance(image, TimmCNN)
    clips = [clip(7), clip(2, 1), clip(3, 2)]
    inputs = batch(encoder, *clips)
    assert inputs["pixels"].shape == (3, 3, 3, 32, 32)
    assert inputs["keep_frames"].tolist() == [[True] * 3, [True, True, False], [True] * 3]
    inputs["pixels"] = inputs["pixels"].double()
    with torch.no_grad():
        features = encoder.encode(inputs)
        for row, taken in enumerate(([1, 3, 5], [0, 1], [0, 1, 2])):
            frames = batch_of_images(image, clips[row][taken])
            expected = image.encode(frames).pooled
            torch.testing.assert_close(features.tokens[row, : len(taken)], expected)
            torch.testing.assert_close(features.pooled[row], expected.mean(0))
    assert torch.equal(features.keep, inputs["keep_frames"])
    assert not features.tokens[1, 2].any()
    assert encoder.out_dim == image.out_dim == 16


def batch_of_images(image, frames):
    preprocess = image.preprocessor(train=False)
    rows = preprocess.collate([preprocess(frame) for frame in frames])
    return {"pixels": rows["pixels"].double()}


def test_padding_never_reaches_the_image_encoder(monkeypatch):
    encoder = Video(dict(CNN), frames=4)
    seen = []
    whole = encoder.backbone.encode
    monkeypatch.setattr(
        encoder.backbone, "encode", lambda x: seen.append(len(x["pixels"])) or whole(x)
    )
    encoder.encode(batch(encoder, clip(4), clip(1)))
    assert seen == [5]


def test_frames_of_a_video_are_augmented_alike_and_videos_are_not():
    encoder = Video({**CNN, "augment": "randaugment"}, frames=4)
    still = np.repeat(clip(1), 4, axis=0)
    pixels = batch(encoder, still, still, train=True)["pixels"]
    assert all(torch.equal(frame, pixels[0, 0]) for frame in pixels[0])
    assert not torch.equal(pixels[0], pixels[1])
    fixed = batch(encoder, still, still)["pixels"]
    assert torch.equal(fixed[0], fixed[1])


def test_training_mode_and_freezing_reach_the_image_encoder():
    encoder = Video(dict(CNN), frames=2)
    assert not encoder.eval().backbone.backbone.training
    assert encoder.train().backbone.backbone.training
    encoder.encode(batch(encoder, clip(2), clip(1))).pooled.square().sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters())


def test_a_name_alone_will_do_and_needs_no_weights_on_meta():
    with torch.device("meta"):
        default, named = Video(), Video("timm_cnn")
        main = Video({"name": "timm_swin", "image_size": 224})
    assert (default.out_dim, named.out_dim, main.out_dim) == (768, 2048, 1024)
    assert default.frames == 8
    assert all(weight.is_meta for weight in default.parameters())


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("bow", "video: `encoder` is 'bow', which reads text; give an image encoder."),
        ({"model": "x"}, "is the name of an image encoder or {name: ..., model: ...}, given {'mo"),
        (
            {**CNN, "image_siz": 32},
            "video: encoder: timm_cnn has no argument 'image_siz'. Did you mean 'image_size'? It "
            "takes: model, weights, image_size, augment, whole, options.",
        ),
        ({"name": "timm_cnn", "model": "resnet99"}, "timm has no model 'resnet99'."),
        ({**CNN, "options": 7}, "video: encoder: timm_cnn cannot be built with {'model': 'resnet"),
    ],
)
def test_image_encoders_that_cannot_be_built(encoder, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Video(encoder)


def test_unknown_names_are_suggested():
    with pytest.raises(UnknownNameError, match="'timm_cn'. Did you mean 'timm_cnn'"):
        Video("timm_cn")
    with pytest.raises(ConfigError, match="frames is at least 1, given 0"):
        Video(frames=0)


def test_inputs_of_an_image_encoder_are_refused():
    with pytest.raises(EncoderError, match=r"takes inputs\['keep_frames'\], given \['pixels'\]"):
        Video(dict(CNN)).encode({"pixels": torch.zeros(1, 3, 32, 32)})
