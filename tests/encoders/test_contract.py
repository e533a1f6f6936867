"""Every built-in encoder, and every one under plugins/, passes the contract."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer
from transformers import AutoModel, PreTrainedTokenizerFast

from fusionkit import registry
from fusionkit.encoders.attention import run_concatenated, widen_mask
from fusionkit.encoders.base import ComplementEncoder, TokenState
from fusionkit.encoders.bert import Bert
from fusionkit.encoders.bow import BagOfWords
from fusionkit.encoders.timm_cnn import TimmCNN
from fusionkit.encoders.timm_swin import TimmSwin
from fusionkit.encoders.timm_vit import TimmViT
from fusionkit.testing import CHECKS, Case, format_results, run_contract

TEXTS = ["cat", "a cat and a dog met a bird", "the dog sang", ""]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *["a", "and", "bird", "cat", "dog", "met", "the"]]
IMAGES = [
    np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    for seed, size in enumerate([(40, 32, 3), (32, 48, 3), (64, 64, 3)])
]


def shaken(encoder: Any) -> Any:
    """With no weight left at the zero or one of its initialisation, which would hide mistakes."""
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return encoder


# ---- timm ----------------------------------------------------------------------------------------


def timm_case(
    encoder: Callable[..., ComplementEncoder],
    model: str,
    options: dict[str, Any],
    reference_layer: Any = None,
    image_size: int | None = None,
) -> Case:
    def upstream(backbone: nn.Module, inputs: Any) -> Tensor:
        plain = timm.create_model(model, num_classes=0, **options).double().eval()
        plain.load_state_dict(backbone.state_dict())
        return plain(inputs["pixels"])

    return Case(
        make=lambda: shaken(
            encoder(model, weights="random", options=options, image_size=image_size)
        ),
        samples=IMAGES,
        upstream=upstream,
        reference_layer=reference_layer,
        upstream_keys=tuple(timm.create_model(model, num_classes=0, **options).state_dict()),
    )


def concatenated_vit(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    block, prefix = encoder.backbone.blocks[layer], encoder.backbone.num_prefix_tokens
    return state.with_tokens(run_concatenated(block, state.tokens, prompts, prefix))


def vit(model: str = "vit_tiny_patch16_224", **options: Any) -> Case:
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm_case(TimmViT, model, {**tiny, **options}, concatenated_vit)


def concatenated_swin(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    """Window after window of image after image, with the prompts among its tokens."""
    stages = encoder.backbone.layers
    stage, block = [(stage, block) for stage in stages for block in stage.blocks][layer]
    x, n, shift = state.tokens, prompts.shape[1], tuple(block.shift_size)
    side, _ = block.window_size
    rows = torch.roll(block.norm1(x), (-shift[0], -shift[1]), (1, 2))
    images = []
    for image, extra in zip(rows, block.norm1(prompts), strict=True):
        strips, window = [], 0
        for top in range(0, image.shape[0], side):
            strip = []
            for left in range(0, image.shape[1], side):
                cut = image[top : top + side, left : left + side]
                mask = None if block.attn_mask is None else block.attn_mask[window]
                out = window_attention(block.attn, torch.cat([extra, cut.flatten(0, 1)]), n, mask)
                strip.append(out.view(cut.shape))
                window += 1
            strips.append(torch.cat(strip, dim=1))
        images.append(torch.cat(strips, dim=0))
    x = x + torch.roll(torch.stack(images), shift, (1, 2))
    x = x + block.mlp(block.norm2(x))
    following = [*stages][[*stages].index(stage) + 1 :]
    return state.with_tokens(
        following[0].downsample(x) if following and block is stage.blocks[-1] else x
    )


def window_attention(attn: Any, rows: Tensor, n: int, mask: Tensor | None) -> Tensor:
    """(n + N, D), the prompts first, to the (N, D) of the tokens."""
    q, k, v = attn.qkv(rows).view(len(rows), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
    size = len(rows) - n
    bias = attn.relative_position_bias_table[attn.relative_position_index.view(-1)]
    bias = bias.view(size, size, -1).permute(2, 0, 1)
    bias = F.pad(bias if mask is None else bias + mask, (n, 0, n, 0))
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5 + bias
    return attn.proj((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))[n:]


def swin() -> Case:
    options = {
        "img_size": 32,
        "patch_size": 4,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (2, 1),
        "num_heads": (2, 4),
    }
    return timm_case(TimmSwin, "swin_tiny_patch4_window7_224", options, concatenated_swin)


# ---- transformers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("words"))
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    return folder


def plain_transformer(backbone: Any) -> Any:
    """Upstream's own model in its own attention, with the weights of ``backbone``."""
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    pooler = {} if config.model_type == "distilbert" else {"add_pooling_layer": False}
    plain = AutoModel.from_config(config, attn_implementation="eager", **pooler).double().eval()
    plain.load_state_dict(backbone.state_dict())
    return plain


def first_token(backbone: nn.Module, inputs: Any) -> Tensor:
    return plain_transformer(backbone)(**inputs).last_hidden_state[:, 0]


def concatenated_bert(encoder, layer: int, state: TokenState, prompts: Tensor) -> TokenState:
    plain = plain_transformer(encoder.backbone)
    layers = plain.transformer if plain.config.model_type == "distilbert" else plain.encoder
    visible = widen_mask(state.keep[:, None, None], prompts.shape[1])
    mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -torch.inf)

    def block(rows: Tensor) -> Tensor:
        return layers.layer[layer](rows, attention_mask=mask)

    return state.with_tokens(run_concatenated(block, state.tokens, prompts))


BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}


def bert(kind: str, tokenizer: str, sizes: dict[str, int]) -> Case:
    config = {"model_type": kind, "vocab_size": len(WORDS), "pad_token_id": 0, **sizes}

    def make() -> Bert:
        return shaken(Bert(config=dict(config), weights="random", tokenizer=tokenizer))

    keys = plain_transformer(make().double().backbone).state_dict()
    return Case(make, TEXTS, first_token, concatenated_bert, tuple(keys))


def bow(tokenizer: str) -> Case:
    def mean(table: Any, inputs: Any) -> Tensor:
        pairs = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        empty = torch.zeros(table.embedding_dim, dtype=torch.float64)
        rows = [table.weight[ids[keep]] for ids, keep in pairs]
        return torch.stack([row.mean(0) if len(row) else empty for row in rows])

    return Case(lambda: BagOfWords(tokenizer, dim=8), TEXTS, mean, upstream_keys=("weight",))


# ---- plug-ins ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _plugins_importable(root: Path) -> Iterator[None]:
    """The plug-ins need not be installed to be checked."""
    with pytest.MonkeyPatch.context() as patch:
        for file in root.glob("plugins/*/pyproject.toml"):
            patch.syspath_prepend(file.parent)
        yield


def torchvision_vit() -> Case:
    from fusionkit_torchvision_vit import TorchvisionViT

    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2}
    sizes |= {"hidden_dim": 32, "mlp_dim": 48}

    def plain() -> VisionTransformer:
        model = VisionTransformer(**sizes)
        model.heads = nn.Identity()
        return model.double().eval()

    def upstream(backbone: nn.Module, inputs: Any) -> Tensor:
        model = plain()
        model.load_state_dict(backbone.state_dict())
        return model(inputs["pixels"])

    def make() -> ComplementEncoder:
        return shaken(TorchvisionViT(weights="random", options=sizes))

    return Case(make, IMAGES, upstream, upstream_keys=tuple(plain().state_dict()))


def hashed_ngrams() -> Case:
    from fusionkit_hashed_ngrams import HashedNgrams

    def upstream(table: Any, inputs: Any) -> Tensor:
        pairs = zip(inputs["ngrams"], inputs["keep"], strict=True)
        sums = torch.stack([table.weight[ids[keep]].sum(0) for ids, keep in pairs])
        return sums / sums.norm(dim=1, keepdim=True).clamp(min=1e-12)

    def make() -> ComplementEncoder:
        return shaken(HashedNgrams(dim=8, buckets=64))

    return Case(make, TEXTS, upstream, upstream_keys=("weight",))


# ---- the sweep -----------------------------------------------------------------------------------

RESNET = {"channels": (8, 8, 16, 16), "stem_width": 8}

# name in the registry -> variant -> its case, given the folder of a tokenizer
CASES: dict[str, dict[str, Callable[[str], Case]]] = {
    "timm_vit": {
        "plain": lambda _: vit(),
        "registers": lambda _: vit(reg_tokens=4, no_embed_class=True),
        "distilled": lambda _: vit("deit_tiny_distilled_patch16_224"),
    },
    "timm_swin": {"shifted": lambda _: swin()},
    "bert": {
        "bert": lambda tokenizer: bert("bert", tokenizer, BERT),
        "roberta": lambda tokenizer: bert("roberta", tokenizer, BERT),
        "distilbert": lambda tokenizer: bert("distilbert", tokenizer, DISTILBERT),
    },
    "bow": {"words": bow},
    "timm_cnn": {
        "resnet": lambda _: timm_case(TimmCNN, "resnet10t", RESNET, image_size=32),
        "mobilenet": lambda _: timm_case(TimmCNN, "mobilenetv3_small_050", {}, image_size=32),
    },
    "torchvision_vit": {"blocks": lambda _: torchvision_vit()},
    "hashed_ngrams": {"text": lambda _: hashed_ngrams()},
}
EACH = [(name, variant) for name, variants in CASES.items() for variant in variants]


@pytest.mark.parametrize(("name", "variant"), EACH)
def test_encoder_passes_the_contract(name: str, variant: str, tokenizer: str) -> None:
    case = CASES[name][variant](tokenizer)
    results = run_contract(case)
    assert len(results) == len(CHECKS)
    assert not [r for r in results if r.status == "failed"], format_results(results)
    # Skipped is only what does not apply: nothing for want of a reference or of padded texts.
    skipped = {r.number: r.message for r in results if r.status == "skipped"}
    assert not any("the case has no" in message for message in skipped.values()), skipped
    assert (5 in skipped) == (case.samples is IMAGES)


def test_every_built_in_encoder_has_a_case() -> None:
    found = {**registry.entries("main_encoder"), **registry.entries("complement_encoder")}
    names = {name for name, entry in found.items() if entry.distribution == "fusionkit"}
    assert len(names) >= 5
    assert names <= set(CASES), f"no contract case for {sorted(names - set(CASES))}"


def test_every_encoder_under_plugins_has_a_case(root: Path) -> None:
    files = list(root.glob("plugins/*/pyproject.toml"))
    assert files
    for file in files:
        points = tomllib.loads(file.read_text())["project"].get("entry-points", {})
        for group in ("fusionkit.main_encoders", "fusionkit.complement_encoders"):
            missing = set(points.get(group, {})) - set(CASES)
            assert not missing, f"no contract case for {sorted(missing)} of {file.parent.name}"
