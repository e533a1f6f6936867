"""TimmCNN against timm's own forward."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from fusionkit.encoders.timm_cnn import TimmCNN
from fusionkit.errors import EncoderError, WeightsError

MOBILENET = Path(__file__).parents[3] / "shared" / "weights" / "mobilenetv2_100.safetensors"


@pytest.mark.parametrize(
    ("model", "width", "tokens"),
    [
        ("resnet10t", 512, 4),
        ("mobilenetv3_small_050", 1024, None),  # widened after pooling: no token is that wide
        ("mobilenetv2_035", 1280, 4),
        ("convnext_atto", 320, 4),
    ],
)
def test_features_are_upstreams(model, width, tokens):
    encoder = TimmCNN(model, "random").double().eval()
    plain = timm.create_model(model, num_classes=0).double().eval()  # in torch's own memory format
    plain.load_state_dict(encoder.backbone.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        features = encoder.encode({"pixels": x})
        grid = plain.forward_features(x)
        expected = plain.forward_head(grid, pre_logits=True)
    torch.testing.assert_close(features.pooled, expected, rtol=1e-10, atol=1e-10)
    assert features.pooled.shape == (2, encoder.out_dim) == (2, width)
    if tokens is None:
        assert features.tokens is None
    else:
        assert features.tokens.shape == (2, tokens, width)
        torch.testing.assert_close(features.tokens[0, 1], grid[0, :, 0, 1], rtol=1e-10, atol=1e-10)


def test_kernels_stay_channels_last(tmp_path):
    encoder = TimmCNN("resnet10t", "random")
    save_file(
        {name: value.contiguous() for name, value in encoder.backbone.state_dict().items()},
        tmp_path / "resnet.safetensors",
    )
    for made in (encoder.double(), TimmCNN("resnet10t", str(tmp_path / "resnet.safetensors"))):
        kernels = [p for p in made.backbone.parameters() if p.ndim == 4 and p.shape[2] > 1]
        assert kernels
        assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)


def test_one_channel_and_own_options():
    encoder = TimmCNN(
        "mobilenetv1_100",
        "random",
        options={"in_chans": 1, "act_layer": "relu", "pad_type": "same"},
    ).eval()
    assert encoder.encode({"pixels": torch.zeros(2, 1, 96, 64)}).pooled.shape == (2, 1024)
    with pytest.raises(EncoderError, match=r"\(B, 1, n, n\), given \(2, 3, 96, 64\)"):
        encoder.encode({"pixels": torch.zeros(2, 3, 96, 64)})
    row = encoder.preprocessor(train=False)(torch.zeros(300, 300, 3, dtype=torch.uint8))
    assert row["pixels"].shape == (1, 224, 224)


def test_image_size_sets_the_preprocessing():
    encoder = TimmCNN("resnet10t", "random", image_size=96)
    row = encoder.preprocessor(train=True)(torch.zeros(300, 200, dtype=torch.uint8))
    assert row["pixels"].shape == (3, 96, 96)


def test_meta_builds_without_weights():
    with torch.device("meta"):
        encoder = TimmCNN("mobilenetv3_large_100")
    assert encoder.out_dim == 1280
    assert all(parameter.is_meta for parameter in encoder.parameters())


def test_a_local_file_loads_strictly_without_its_head(tmp_path):
    state = timm.create_model("resnet10t", num_classes=3).state_dict()
    torch.save(state, tmp_path / "resnet.pth")
    own = TimmCNN("resnet10t", str(tmp_path / "resnet.pth")).backbone.state_dict()
    assert own.keys() == state.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(own[key], state[key]) for key in own)
    with pytest.raises(WeightsError, match=r"resnet\.pth do not fit the timm model 'resnet18'"):
        TimmCNN("resnet18", str(tmp_path / "resnet.pth"))
    grey = TimmCNN("resnet10t", str(tmp_path / "resnet.pth"), options={"in_chans": 1}).backbone
    assert torch.allclose(grey.conv1[0].weight, state["conv1.0.weight"].sum(1, keepdim=True))


@pytest.mark.skipif(not MOBILENET.is_file(), reason="no shared weights")
def test_real_mobilenet_weights_equal_timms_own_loading():
    encoder = TimmCNN("mobilenetv2_100", str(MOBILENET), options={"pad_type": "same"})
    model = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    timm.models.load_checkpoint(model, str(MOBILENET))
    encoder, model = encoder.double().eval(), model.double()
    image = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(image), pre_logits=True)
    pooled = encoder.encode({"pixels": image}).pooled.detach()
    torch.testing.assert_close(pooled, expected, rtol=1e-10, atol=1e-10)
