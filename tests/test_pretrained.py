"""The encoders that ship with the package, read with upstream's own loaders."""

import json

import pytest
import timm
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from fusionkit.data.claims import NUMBERS, claims
from fusionkit.data.digit_claims import load_digits, split_indices
from fusionkit.encoders.gpt2 import CausalLM
from fusionkit.encoders.weights import SHIPPED

VIT, TEXT = SHIPPED / "digits-vit", SHIPPED / "claims-transformer"
GPT = SHIPPED / "claims-gpt"


@pytest.fixture(scope="module")
def parts():
    config = json.loads((VIT / "config.json").read_text())["pretrained_cfg"]
    images, digits = load_digits()
    pixels = torch.from_numpy(images).float().unsqueeze(1) / 255
    pixels = (pixels - config["mean"][0]) / config["std"][0]
    truth = torch.from_numpy(digits)
    return {name: (pixels[at], truth[at]) for name, at in split_indices(digits).items()}


def test_all_together_are_under_four_megabytes():
    folders = [path for path in SHIPPED.iterdir() if path.is_dir()]
    assert sorted(folders) == sorted([VIT, TEXT, GPT])
    for folder in folders:
        names = {path.name for path in folder.iterdir()}
        assert names >= {"model.safetensors", "config.json", "README.md"}
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
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


@pytest.mark.parametrize("folder", [TEXT, GPT], ids=lambda path: path.name)
def test_tokenizer_knows_every_word_of_every_claim(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
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


def test_causal_model_loads_whole():
    model, report = AutoModel.from_pretrained(GPT, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(model).__name__ == "GPT2Model"


def test_causal_tokenizer_ends_every_text_and_reads_it_back():
    tokenizer = AutoTokenizer.from_pretrained(GPT)
    for text in [claim.text for claim in claims()] + list(NUMBERS):
        ids = tokenizer(text)["input_ids"]
        assert ids.index(tokenizer.eos_token_id) == len(ids) - 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    pair = tokenizer("here is six", "it is even")["input_ids"]
    assert pair == tokenizer("here is six [SEP] it is even")["input_ids"]


@torch.inference_mode()
def test_causal_model_says_whether_a_claim_follows():
    """Its head, which is its word embeddings, writes the verdict after the couple."""
    tokenizer = AutoTokenizer.from_pretrained(GPT)
    model = AutoModelForCausalLM.from_pretrained(GPT).eval()
    assert model.lm_head.weight is model.transformer.wte.weight
    rows = [(claim, digit) for claim in claims() for digit in range(10)]
    batch = tokenizer(
        [f"this is the number {NUMBERS[digit]}" for _, digit in rows],
        [claim.text for claim, _ in rows],
        padding=True,
        return_tensors="pt",
    )
    scores = model(**batch).logits[torch.arange(len(rows)), batch["attention_mask"].sum(1) - 1]
    written = scores.argmax(1)
    holds = torch.tensor([digit in claim.holds_for for claim, digit in rows])
    for verdict, asked in (("true", holds), ("false", ~holds)):
        right = written[asked] == tokenizer.convert_tokens_to_ids(verdict)
        assert right.float().mean() >= 0.95


@torch.inference_mode()
def test_causal_model_prefers_what_is_true_next():
    """Nats for a claim behind the digit it holds for, and behind one it does not hold for."""
    tokenizer = AutoTokenizer.from_pretrained(GPT)
    model = AutoModelForCausalLM.from_pretrained(GPT).eval()
    costs = []
    for held in (True, False):
        texts = [
            f"here is {NUMBERS[next(d for d in range(10) if (d in claim.holds_for) == held)]} "
            f"[SEP] {claim.text}"
            for claim in claims()
        ]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        ids = batch["input_ids"]
        asked = batch["attention_mask"].bool() & (torch.arange(ids.shape[1]) >= 4)
        scores = model(**batch).logits[:, :-1].log_softmax(-1)
        nats = -scores.gather(-1, ids[:, 1:, None]).squeeze(-1)
        costs.append((nats * asked[:, 1:]).sum(1))
    true, false = costs
    assert (true < false).float().mean() >= 0.95


@torch.inference_mode()
def test_encoder_of_a_causal_model_pools_the_end_of_each_text():
    encoder = CausalLM("fusionkit/claims-gpt").eval()
    preprocessor = encoder.preprocessor(train=False)
    texts = ["it is odd", "this number is greater than four"]
    inputs = preprocessor.collate([preprocessor(text) for text in texts])
    pooled = encoder.encode(inputs).pooled
    tokenizer, model = AutoTokenizer.from_pretrained(GPT), AutoModel.from_pretrained(GPT).eval()
    for row, text in zip(pooled, texts, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert ids[0, -1] == tokenizer.eos_token_id
        torch.testing.assert_close(row, model(ids).last_hidden_state[0, -1])
