"""Names, options and weights of timm models: what is loaded, and how mistakes are named."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from fusionkit.encoders.timm_cnn import TimmCNN
from fusionkit.encoders.timm_vit import TimmViT
from fusionkit.errors import ConfigError, WeightsError

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def saved(tmp_path, drop=(), **options):
    """A file of a tiny model with a head of three classes, and its state dict."""
    torch.manual_seed(6)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **{**TINY, **options})
    state = {key: value for key, value in model.state_dict().items() if key not in drop}
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", state


def test_a_local_file_loads_without_its_head(tmp_path):
    path, state = saved(tmp_path)
    loaded = TimmViT("vit_tiny_patch16_224", str(path), options=TINY).backbone
    own = loaded.state_dict()
    assert own.keys() == state.keys() - {"head.weight", "head.bias"}
    assert all(torch.equal(own[key], state[key]) for key in own)
    assert "state_dict" not in loaded.pretrained_cfg


@pytest.mark.parametrize("suffix", ["pth", "bin"])
def test_pickled_files_load_half_precision_into_single(tmp_path, suffix):
    _, state = saved(tmp_path)
    half = {f"module.{key}": value.half() for key, value in state.items()}
    torch.save({"state_dict": half}, tmp_path / f"weights.{suffix}")
    path = str(tmp_path / f"weights.{suffix}")
    backbone = TimmViT("vit_tiny_patch16_224", path, options=TINY).backbone
    assert backbone.norm.weight.dtype == torch.float32
    weight = backbone.blocks[0].attn.qkv.weight
    assert torch.equal(weight, state["blocks.0.attn.qkv.weight"].half().float())


def test_position_embeddings_are_resized_as_timm_does(tmp_path):
    path, state = saved(tmp_path)
    options = {key: value for key, value in TINY.items() if key != "img_size"}
    bigger = TimmViT("vit_tiny_patch16_224", str(path), image_size=48, options=options)
    expected = timm.layers.resample_abs_pos_embed(state["pos_embed"], [6, 6], num_prefix_tokens=1)
    assert torch.allclose(bigger.backbone.pos_embed, expected, atol=1e-6)


def test_a_folder_in_timms_layout_is_a_model(tmp_path):
    _, state = saved(tmp_path)
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "model_args": TINY,
        "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3, "input_size": [3, 32, 32]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for model in (str(tmp_path), f"local-dir:{tmp_path}"):
        encoder = TimmViT(model)
        assert torch.equal(encoder.backbone.pos_embed, state["pos_embed"])
        assert (
            encoder.preprocessor(train=False).transform.transforms[-1].mean.tolist()
            == [pytest.approx(0.1)] * 3
        )
    assert TimmViT(str(tmp_path), "random").out_dim == 32
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors: no such file; give a local file"):
        TimmViT(str(tmp_path))


def test_files_that_do_not_fit_are_named_with_their_keys(tmp_path):
    path, _ = saved(tmp_path, drop=("norm.weight", "norm.bias"))
    with pytest.raises(WeightsError, match=r"(?s)model\.safetensors.*vit_tiny.*norm\.weight"):
        TimmViT("vit_tiny_patch16_224", str(path), options=TINY)
    path, _ = saved(tmp_path, depth=3)
    with pytest.raises(WeightsError, match=r"Unexpected key.*blocks\.2\.") as caught:
        TimmViT("vit_tiny_patch16_224", str(path), options=TINY)
    assert len(str(caught.value)) < 1500
    path, _ = saved(tmp_path, embed_dim=16)
    with pytest.raises(WeightsError, match=r"size mismatch for cls_token.*1, 1, 16.*1, 1, 32"):
        TimmViT("vit_tiny_patch16_224", str(path), options=TINY)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.pth: no such file; .*weights: PATH.*random"):
        TimmViT("vit_tiny_patch16_224", str(tmp_path / "none.pth"), options=TINY)
    for name in ("broken.safetensors", "broken.pth"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(WeightsError, match=f"{name} cannot be read"):
            TimmViT("vit_tiny_patch16_224", str(tmp_path / name), options=TINY)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match=r"list\.pth"):
        TimmViT("vit_tiny_patch16_224", str(tmp_path / "list.pth"), options=TINY)


def test_an_unreachable_hub_fails_at_once_and_says_what_to_do(monkeypatch, tmp_path):
    def no_name_service(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_name_service)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    for model in ("vit_tiny_patch16_224", "hf-hub:timm/vit_tiny_patch16_224.augreg_in21k"):
        with pytest.raises(
            WeightsError, match=r"timm/vit_tiny_patch16_224\.augreg.*weights: PATH.*weights: random"
        ):
            TimmViT(model, options={**TINY, "cache_dir": str(tmp_path)})


def test_a_failed_download_says_what_was_looked_for(monkeypatch):
    original = timm.create_model

    def offline(name, pretrained=False, **kwargs):
        if pretrained:
            raise FileNotFoundError("cannot find the requested files in the local cache")
        return original(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [])
    with pytest.raises(WeightsError, match=r"looked for 'timm/vit_tiny_.*weights: PATH"):
        TimmViT("vit_tiny_patch16_224", options=TINY)


def test_models_and_options_that_cannot_be_built_are_config_errors():
    with pytest.raises(ConfigError, match=r"no model 'vit_tinny_patch16_224'\. Did you mean 'vit_"):
        TimmViT("vit_tinny_patch16_224")
    with pytest.raises(ConfigError, match=r"no such folder.*hf-hub:someone/model"):
        TimmViT("someone/model")
    with pytest.raises(ConfigError, match="'resnet18', a ResNet; use timm_cnn"):
        TimmViT("resnet18")
    with pytest.raises(ConfigError, match="a SwinTransformer; use timm_swin"):
        TimmViT("swin_tiny_patch4_window7_224")
    with pytest.raises(
        ConfigError, match=r"timm_cnn cannot run .* a VisionTransformer; use timm_vit"
    ):
        TimmCNN("vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match=r"'dept': 2.*dept"):
        TimmViT("vit_tiny_patch16_224", "random", options={"dept": 2})
    with pytest.raises(ConfigError, match="num_classes` cannot be set: the head"):
        TimmViT("vit_tiny_patch16_224", "random", options={"num_classes": 3})
    with pytest.raises(ConfigError, match="`image_size: 64` and `options: img_size: 32` differ"):
        TimmViT("vit_tiny_patch16_224", "random", image_size=64, options=TINY)
