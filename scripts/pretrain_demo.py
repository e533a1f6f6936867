"""Remake the encoders that ship with fusionkit, each from its own modality alone.

    python scripts/pretrain_demo.py                 # all three, into fusionkit/pretrained
    python scripts/pretrain_demo.py image --out DIR # one of them, elsewhere

The image encoder sees the training images of DigitClaims and the digit in each. The text encoder
and the causal language model see sentences. None sees a pair of image and claim, a label of such a
pair, or an image held out from training.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from fusionkit.data.claims import NUMBERS, SUBJECTS, predicates
from fusionkit.data.digit_claims import load_digits, split_indices

SEED = 0
SHIPPED = Path(__file__).resolve().parent.parent / "fusionkit" / "pretrained"


# --------------------------------------------------------------------------------------- image

VIT = {
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 64,
    "depth": 4,
    "num_heads": 4,
    "num_classes": 10,
}
MEAN, STD = 0.3, 0.38  # of the training images, rounded


def normalise(images: np.ndarray) -> Tensor:
    """(n, 8, 8) uint8 to (n, 1, 8, 8) float."""
    return (torch.from_numpy(images).float().unsqueeze(1) / 255 - MEAN) / STD


def jitter(images: Tensor) -> Tensor:
    """Rotate, scale, shear and shift each image a little; ink stays ink."""
    n = len(images)
    angle, shear = torch.empty(2, n).uniform_(-0.12, 0.12)
    scale = torch.empty(2, n).uniform_(0.92, 1.08)
    shift = torch.empty(n, 2, 1).uniform_(-0.1, 0.1)  # of half the width: 0.4 pixels
    rows = torch.stack(
        [scale[0] * angle.cos(), shear - angle.sin(), angle.sin(), scale[1] * angle.cos()], 1
    )
    theta = torch.cat([rows.view(n, 2, 2), shift], 2)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    ink = functional.grid_sample(images * STD + MEAN, grid, align_corners=False)
    return (ink - MEAN) / STD


def pretrain_image(out: Path, epochs: int = 60) -> None:
    """A ViT on the digit in each training image."""
    torch.manual_seed(SEED)
    images, digits = load_digits()
    parts = {
        name: (normalise(images[index]), torch.from_numpy(digits[index]).long())
        for name, index in split_indices(digits).items()
    }
    inputs, target = parts["train"]
    model = timm.create_model("vit_tiny_patch16_224", **VIT)
    steps = epochs * (len(inputs) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(64):
            if len(batch) < 64:
                continue
            scores = model(jitter(inputs[batch]))
            loss = functional.cross_entropy(scores, target[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        for name, (held, truth) in parts.items():
            right = (model(held).argmax(1) == truth).sum().item()
            print(f"image: {name} accuracy {right / len(truth):.4f} ({right} of {len(truth)})")

    folder = out / "digits-vit"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()},
        folder / "model.safetensors",
    )
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": VIT["num_classes"],
        "num_features": VIT["embed_dim"],
        "model_args": {key: value for key, value in VIT.items() if key != "num_classes"},
        "pretrained_cfg": {
            "input_size": [1, 8, 8],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [MEAN],
            "std": [STD],
            "num_classes": VIT["num_classes"],
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "label_names": list(NUMBERS),
            "license": "apache-2.0",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------- text

BERT = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 48,
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMING = ["the digit is {}", "this is the number {}", "it says {}", "here is {}", "it reads {}"]


Couple = tuple[str, str, int]  # two sentences, and 1 if they do not belong together


def documents() -> list[list[str]]:
    """One document for each digit: all its true sentences. Its first ones name the digit."""
    said = list(predicates())
    return [
        [form.format(word) for form in NAMING]
        + [
            f"{subject} {text}"
            for text, digits in said
            if digit in digits
            for subject in (*SUBJECTS, word)
        ]
        for digit, word in enumerate(NUMBERS)
    ]


def held_out(first: str, second: str) -> bool:
    """Whether a pair of sentences is kept from training: one in ten, whatever their order."""
    return random.Random(" | ".join(sorted((first, second)))).random() < 0.1


def couples(rng: random.Random, held: bool) -> Iterator[Couple]:
    """Two sentences and whether one document has both (0) or not (1), as BERT's own objective.

    One of the two names the digit in four of five couples. Where they come from two documents,
    the second is false of the first one's digit.
    """
    papers = documents()
    known = [set(paper) for paper in papers]
    while True:
        digit, together = rng.randrange(10), rng.random() < 0.5
        paper = papers[digit]
        first = rng.choice(paper[: len(NAMING)] if rng.random() < 0.8 else paper)
        second = rng.choice(paper if together else papers[rng.randrange(10)])
        if first == second or (not together and second in known[digit]):
            continue
        if held_out(first, second) is held:
            yield (*((first, second) if rng.random() < 0.5 else (second, first)), int(not together))


def make_tokenizer(
    special: Sequence[str], further: Sequence[str], single: str, pair: str
) -> Tokenizer:
    """One token for each word of the corpus and the ``further`` ones."""
    words = {word for paper in documents() for text in paper for word in text.split()}
    vocabulary = {word: index for index, word in enumerate([*special, *sorted(words | {*further})])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(name, vocabulary[name]) for name in special if name in pair],
    )
    return tokenizer


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """Sentences as ``[CLS] one [SEP] two [SEP]``."""
    return PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(
            SPECIAL, (), single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1"
        ),
        model_max_length=BERT["max_position_embeddings"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def inferences(rng: random.Random, held: bool) -> Iterator[Couple]:
    """A sentence that names a digit, a claim, and whether the claim is false of that digit (1).

    Each claim is true in half of its couples, so that it says nothing without the other sentence.
    """
    said = [(f"{subject} {text}", digits) for text, digits in predicates() for subject in SUBJECTS]
    while True:
        claim, digits = rng.choice(said)
        false = rng.random() < 0.5
        digit = rng.choice([d for d in range(10) if (d not in digits) == false])
        first = rng.choice(NAMING).format(NUMBERS[digit])
        if held_out(first, claim) is held:
            yield (*((first, claim) if rng.random() < 0.5 else (claim, first)), int(false))


def encode(tokenizer: PreTrainedTokenizerFast, rows: list[Couple], masked_rows: float) -> dict:
    """BERT's inputs with the labels of both objectives.

    15 % of the words are masked, in that share of the rows.
    """
    batch = tokenizer(
        [row[0] for row in rows], [row[1] for row in rows], padding=True, return_tensors="pt"
    )
    ids = batch["input_ids"]
    masked = (torch.rand(ids.shape) < 0.15) & (ids >= len(SPECIAL))
    if masked_rows < 1:
        masked &= torch.rand(len(rows), 1) < masked_rows
    return {
        **batch,
        "input_ids": ids.masked_fill(masked, tokenizer.mask_token_id),
        "labels": ids.masked_fill(~masked, -100),
        "next_sentence_label": torch.tensor([row[2] for row in rows]),
    }


@dataclass(frozen=True)
class Phase:
    """One stretch of the text encoder's pretraining."""

    name: str
    couples: Callable[[random.Random, bool], Iterator[Couple]]
    masked_rows: float
    learning_rate: float
    steps: int


PHASES = (
    Phase("same document", couples, masked_rows=1.0, learning_rate=2e-3, steps=6000),
    Phase("claim follows", inferences, masked_rows=0.3, learning_rate=1e-3, steps=2500),
)


def pretrain_text(out: Path, batch_size: int = 64) -> None:
    """A BERT on couples of sentences: masked words, and whether the two belong together."""
    tokenizer = bert_tokenizer()
    config = BertConfig(vocab_size=len(tokenizer), **BERT)
    folder = out / "claims-transformer"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    bert: BertModel | None = None
    for phase in PHASES:
        torch.manual_seed(SEED)
        model = BertForPreTraining(config)  # the heads of both objectives start anew
        if bert is not None:
            model.bert.load_state_dict(bert.state_dict(), strict=False)
        run_phase(phase, model, tokenizer, batch_size)
        bert = model.bert
        bert.pooler = None  # the readout is the first token itself
        bert.save_pretrained(folder)


def run_phase(
    phase: Phase, model: BertForPreTraining, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    """Train one phase and print how it does on couples that were kept from it."""
    rate, steps = phase.learning_rate, phase.steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    stream = phase.couples(random.Random(SEED), False)
    model.train()
    for step in range(steps):
        rows = [next(stream) for _ in range(batch_size)]
        loss = model(**encode(tokenizer, rows, phase.masked_rows)).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(f"text, {phase.name}: step {step}, loss {loss.item():.3f}", flush=True)
    model.eval()
    print(
        f"text, {phase.name}: on couples never trained on, {evaluate_text(phase, model, tokenizer)}"
    )


@torch.inference_mode()
def evaluate_text(
    phase: Phase, model: BertForPreTraining, tokenizer: PreTrainedTokenizerFast
) -> str:
    """Accuracy of both objectives on held-out couples; words only where the couple belongs."""
    stream = phase.couples(random.Random(SEED + 1), True)
    right = np.zeros(2)
    total = np.zeros(2)
    for _ in range(20):
        rows = [next(stream) for _ in range(256)]
        for objective, masked_rows in enumerate((1.0, 0.0)):
            batch = encode(tokenizer, rows, masked_rows)
            out = model(**batch)
            labels, apart = batch["labels"], batch["next_sentence_label"]
            asked = (labels != -100) & (apart == 0).unsqueeze(1)
            if objective == 0:
                right[0] += (out.prediction_logits.argmax(-1) == labels)[asked].sum().item()
                total[0] += asked.sum().item()
            else:
                right[1] += (out.seq_relationship_logits.argmax(-1) == apart).sum().item()
                total[1] += len(rows)
    words, belong = right / total
    return f"masked words {words:.3f}, {phase.name} {belong:.3f}"


# -------------------------------------------------------------------------------------- causal

GPT = {
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 48,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
VERDICTS = ("true", "false")  # by the last entry of a couple


def gpt_tokenizer() -> PreTrainedTokenizerFast:
    """Sentences as ``one [SEP] two [SEP]``: the last token of any text has read all of it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(
            ["[PAD]", "[UNK]", "[SEP]"], VERDICTS, single="$A [SEP]", pair="$A [SEP] $B [SEP]"
        ),
        model_max_length=GPT["n_positions"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )


def encode_causal(
    tokenizer: PreTrainedTokenizerFast, rows: list[Couple]
) -> tuple[dict, Tensor, Tensor]:
    """Couples as ``one [SEP] two [SEP] true [SEP]``.

    Returns GPT-2's inputs, the labels (B, L) and where the verdicts are (B, L) bool. Of a false
    couple only the verdict is to be predicted: its words do not follow.
    """
    texts = [f"{first} [SEP] {second} [SEP] {VERDICTS[apart]}" for first, second, apart in rows]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    ids = batch["input_ids"]
    verdict = torch.isin(ids, torch.tensor(tokenizer.convert_tokens_to_ids(VERDICTS)))
    belong = torch.tensor([row[2] == 0 for row in rows]).unsqueeze(1)
    asked = batch["attention_mask"].bool() & (belong | verdict)
    return batch, ids.masked_fill(~asked, -100), verdict


def next_token_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labels, in nats; scores (B, L, vocabulary)."""
    return functional.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def pretrain_causal(
    out: Path, steps: int = 5000, batch_size: int = 64, learning_rate: float = 2e-3
) -> None:
    """A GPT-2 on couples of sentences: the next token, and whether the two belong together.

    Half of each batch is of either phase of the text encoder.
    """
    torch.manual_seed(SEED)
    tokenizer = gpt_tokenizer()
    folder = out / "claims-gpt"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **GPT,
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    rng = random.Random(SEED)
    streams = [phase.couples(rng, False) for phase in PHASES]
    model.train()
    for step in range(steps):
        rows = [next(stream) for stream in streams for _ in range(batch_size // len(streams))]
        batch, labels, _ = encode_causal(tokenizer, rows)
        loss = next_token_loss(model(**batch).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(f"causal: step {step}, loss {loss.item():.3f}", flush=True)
    model.eval()
    for phase in PHASES:
        figures = evaluate_causal(phase, model, tokenizer)
        print(f"causal, {phase.name}: on couples never trained on, {figures}")
    model.transformer.save_pretrained(folder)  # its head is its word embeddings


@torch.inference_mode()
def evaluate_causal(
    phase: Phase, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast
) -> str:
    """Loss on the words and ends of true couples; accuracy of the verdict among all tokens."""
    stream = phase.couples(random.Random(SEED + 1), True)
    losses, right = [], []
    for _ in range(20):
        batch, labels, verdict = encode_causal(tokenizer, [next(stream) for _ in range(256)])
        scores = model(**batch).logits
        before = verdict.cumsum(1) == 0
        losses.append(next_token_loss(scores, labels.masked_fill(~before, -100)))
        right.append((scores[:, :-1].argmax(-1) == labels[:, 1:])[verdict[:, 1:]].float().mean())
    loss, accuracy = torch.stack(losses).mean(), torch.stack(right).mean()
    return f"next token {loss:.3f} nats, verdict {accuracy:.3f}"


def main() -> None:
    """Read the command line."""
    makers = {"image": pretrain_image, "text": pretrain_text, "causal": pretrain_causal}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="?", choices=["all", *makers], default="all")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="where the folders go")
    arguments = parser.parse_args()
    for name, pretrain in makers.items():
        if arguments.which in ("all", name):
            start = time.perf_counter()
            pretrain(arguments.out)
            print(f"{name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
