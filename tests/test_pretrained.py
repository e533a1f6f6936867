"""The two encoders that ship with the package, read with upstream's own loaders."""

import json

import pytest
import timm
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer

from fusionkit.data.claims import NUMBERS, claims
from fusionkit.data.digit_claims import load_digits, split_indices
from fusionkit.encoders.weights import SHIPPED

VIT, TEXT = SHIPPED / "digits-vit", SHIPPED / "claims-transformer"


@pytest.fixture(scope="module")
def parts():
    config = json.loads((VIT / "config.json").read_text())["pretrained_cfg"]
    images, digits = load_digits()
    pixels = torch.from_numpy(images).float().unsqueeze(1) / 255
    pixels = (pixels - config["mean"][0]) / config["std"][0]
    truth = torch.from_numpy(digits)
    return {name: (pixels[at], truth[at]) for name, at in split_indices(digits).items()}


def test_both_together_are_under_four_megabytes():
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"model.safetensors", "config.json", "README.md"}
    assert sum(path.stat().st_size for path in files) < 4e6


@torch.inference_mode()
def test_vit_tells_digits_it_has_never_seen(parts):
    model = timm.create_model(f"local-dir:{VIT}", pretrained=True).eval()
    for name in ("val", "test"):
        pixels, digits = parts[name]
        assert (model(pixels).argmax(1) == digits).float().mean() >= 0.95


@torch.inference_mode()
def test_vit_features_without_its_head_still_tell_digits_apart(parts):
    model = timm.create_model(f"local-dir:{VIT}", pretrained=True, num_classes=0).eval()
    train, test = model(parts["train"][0]), model(parts["test"][0])
    centres = torch.stack([train[parts["train"][1] == digit].mean(0) for digit in range(10)])
    assert (torch.cdist(test, centres).argmin(1) == parts["test"][1]).float().mean() >= 0.95


def test_vit_states_the_preprocessing_of_its_images():
    model = timm.create_model(f"local-dir:{VIT}", pretrained=True, num_classes=0)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (1, 8, 8)
    assert config["crop_pct"] == 1.0


def test_text_encoder_loads_whole():
    model, report = AutoModel.from_pretrained(
        TEXT, add_pooling_layer=False, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(model).__name__ == "BertModel"


def test_text_encoder_holds_nothing_but_its_layers():
    with safe_open(TEXT / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert {name.split(".")[0] for name in names} == {"embeddings", "encoder"}


def test_tokenizer_knows_every_word_of_every_claim():
    tokenizer = AutoTokenizer.from_pretrained(TEXT)
    for text in [claim.text for claim in claims()] + list(NUMBERS):
        tokens = tokenizer.tokenize(text)
        assert tokenizer.unk_token not in tokens
        assert tokens == text.split()


@torch.inference_mode()
def test_text_encoder_tells_true_sentences_from_false():
    """Its first token separates them linearly, though it has never seen an image."""
    tokenizer = AutoTokenizer.from_pretrained(TEXT)
    model = AutoModel.from_pretrained(TEXT, add_pooling_layer=False).eval()
    rows = [(claim.text, digit) for claim in claims() for digit in range(10)]
    batch = tokenizer(
        [text for text, _ in rows],
        [f"this is the number {NUMBERS[digit]}" for _, digit in rows],
        padding=True,
        return_tensors="pt",
    )
    features = model(**batch).last_hidden_state[:, 0].double()
    holds = {claim.text: claim.holds_for for claim in claims()}
    target = torch.tensor([2.0 * (digit in holds[text]) - 1 for text, digit in rows]).double()
    features = torch.cat([features, torch.ones(len(rows), 1)], dim=1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    fitted, asked = order.chunk(2)
    weights = torch.linalg.lstsq(features[fitted], target[fitted].unsqueeze(1)).solution
    right = (features[asked] @ weights).squeeze(1).sign() == target[asked]
    assert right.float().mean() >= 0.85
