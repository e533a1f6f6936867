"""What the fusions that add input tokens are tested with: tiny encoders, upstream's own forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import AutoModel, CLIPTextModelWithProjection

from fusionkit.encoders.base import PRESENT, ComplementEncoder, Features, Inputs, MainEncoder
from fusionkit.encoders.bert import Bert
from fusionkit.encoders.clip_hf import ClipText
from fusionkit.encoders.gpt2 import CausalLM
from fusionkit.encoders.timm_vit import TimmViT
from fusionkit.fusion.base import Fusion
from fusionkit.fusion.model import FusionModel

WIDTH = 16
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "max_position_embeddings": 24, "vocab_size": 12}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
BERT = {"model_type": "bert", **SIZES, "pad_token_id": 0}
GPT2 = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 24, "vocab_size": 12}
GPT2 |= {"model_type": "gpt2", "bos_token_id": 2, "eos_token_id": 3}
CLIP = {"model_type": "clip_text_model", **SIZES, "projection_dim": 10, **SPECIAL}
VIT = {"img_size": 32, "patch_size": 16, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}

LENGTHS = (4, 7, 2, 5)


def bert(pooling: Any = "first") -> Bert:
    return shaken(Bert(config=dict(BERT), weights="random", pooling=pooling))


def gpt2() -> CausalLM:
    return shaken(CausalLM(config=dict(GPT2), weights="random"))


def clip_text() -> ClipText:
    return shaken(ClipText(config=dict(CLIP), weights="random"))


def vit() -> TimmViT:
    return shaken(TimmViT("vit_tiny_patch16_224", weights="random", options=dict(VIT)))


def shaken(encoder: Any) -> Any:
    """With no weight left at the zero or one of its initialisation, which would hide mistakes."""
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return encoder


def texts() -> dict[str, Tensor]:
    """Texts of unequal lengths: 2, words from 4 on, 3, padding."""
    keep = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(4, 12, keep.shape)
    ids[:, 0] = 2
    for row, length in enumerate(LENGTHS):
        ids[row, length - 1] = 3
    return {"input_ids": ids * keep, "attention_mask": keep}


def images() -> dict[str, Tensor]:
    return {"pixels": torch.randn(len(LENGTHS), 3, 32, 32).double()}


def upstream_of(encoder: Any, build: Callable[[Any], Any]) -> Any:
    config = type(encoder.backbone.config).from_dict(encoder.backbone.config.to_dict())
    plain = build(config).double().eval()
    plain.load_state_dict(encoder.backbone.state_dict())
    return plain


def words_of(table: nn.Module, inputs: Inputs, row: int) -> Tensor:
    """(L, D), the embeddings of a text without its padding."""
    return table(inputs["input_ids"][row][inputs["attention_mask"][row]])


def bert_tokens(encoder: Bert, inputs: Inputs, row: int, rows: Tensor, mask: Any = None) -> Tensor:
    """Upstream's last_hidden_state on [CLS, rows, words, SEP], then without the rows."""
    plain = upstream_of(
        encoder,
        lambda config: AutoModel.from_config(
            config, attn_implementation="eager", add_pooling_layer=False
        ),
    )
    words = words_of(plain.embeddings.word_embeddings, inputs, row)
    joined = torch.cat([words[:1], rows, words[1:]])[None]
    options = {} if mask is None else {"attention_mask": mask(joined.shape[1])}
    (out,) = plain(inputs_embeds=joined, **options).last_hidden_state
    return torch.cat([out[:1], out[1 + len(rows) :]])


def by_bert(encoder: Bert, inputs: Inputs, row: int, rows: Tensor, mask: Any = None) -> Tensor:
    tokens = bert_tokens(encoder, inputs, row, rows, mask)
    return tokens[0] if encoder.pooling == "first" else tokens.mean(dim=0)


def by_gpt2(encoder: CausalLM, inputs: Inputs, row: int, rows: Tensor, mask: Any = None) -> Tensor:
    """Upstream's last token on [rows, words]."""
    plain = upstream_of(
        encoder, lambda config: AutoModel.from_config(config, attn_implementation="eager")
    )
    joined = torch.cat([rows, words_of(plain.wte, inputs, row)])[None]
    options = {} if mask is None else {"attention_mask": mask(joined.shape[1])}
    return plain(inputs_embeds=joined, **options).last_hidden_state[0, -1]


def by_clip(encoder: ClipText, inputs: Inputs, row: int, rows: Tensor, mask: Any = None) -> Tensor:
    """Upstream's modules by hand on [first, rows, words, end]: the end of the text, projected."""
    plain = upstream_of(encoder, CLIPTextModelWithProjection)
    tower = plain.text_model
    words = words_of(tower.embeddings.token_embedding, inputs, row)
    x = torch.cat([words[:1], rows, words[1:]])[None]
    length = x.shape[1]
    x = x + tower.embeddings.position_embedding.weight[:length]
    own = mask(length) if mask else torch.full((length, length), -torch.inf).double().triu(1)
    for layer in tower.encoder.layers:
        x = layer(x, own.view(1, 1, length, length))
    return plain.text_projection(tower.final_layer_norm(x)[0, -1])


def by_vit(encoder: TimmViT, inputs: Inputs, row: int, rows: Tensor, mask: Any = None) -> Tensor:
    """Upstream's blocks on [class token, patches, rows]: the class token."""
    assert mask is None
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT).double().eval()
    plain.load_state_dict(encoder.backbone.state_dict())
    x = plain._pos_embed(plain.patch_embed(inputs["pixels"][row : row + 1]))
    x = torch.cat([x, rows[None]], dim=1)
    for block in plain.blocks:
        x = block(x)
    return plain.norm(x)[0, 0]


@dataclass(frozen=True)
class Main:
    """A main encoder, its batch, and what upstream makes of one sample with further tokens."""

    make: Callable[[], MainEncoder]
    inputs: Callable[[], dict[str, Tensor]]
    reference: Callable[..., Tensor]


MAINS = {
    "bert": Main(bert, texts, by_bert),
    "bert_mean": Main(lambda: bert("mean"), texts, by_bert),
    "gpt2": Main(gpt2, texts, by_gpt2),
    "clip_text": Main(clip_text, texts, by_clip),
    "vit": Main(vit, images, by_vit),
}


class Sequence(ComplementEncoder):
    """Tokens of unequal length, as texts have them; pooled is their mean."""

    modality = "other"

    def __init__(self, in_dim: int = 6, dim: int = 5) -> None:
        super().__init__()
        self.dim = dim
        self.backbone = nn.Linear(in_dim, dim)

    @property
    def out_dim(self) -> int:
        return self.dim

    def preprocessor(self, train: bool) -> Any:
        raise NotImplementedError

    def encode(self, inputs: Inputs) -> Features:
        tokens, keep = self.backbone(inputs["x"]), inputs["keep"]
        weights = keep / keep.sum(dim=1, keepdim=True)
        return Features((weights.unsqueeze(-1) * tokens).sum(dim=1), tokens, keep)


def sequences(*lengths: int) -> dict[str, Tensor]:
    """Padding is not zero: it must not count."""
    keep = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"x": torch.randn(*keep.shape, 6).double(), "keep": keep}


def vectors(size: int = len(LENGTHS)) -> dict[str, Tensor]:
    return {"x": torch.randn(size, 6).double()}


def prepared(fusion: Fusion) -> Fusion:
    """In float64, evaluation mode, with stand-ins large enough for an error to show."""
    for stand_in in fusion.stand_ins.values():
        nn.init.normal_(stand_in)
    return fusion.double().eval()


def flags(*present: int) -> Tensor:
    return torch.tensor(present, dtype=torch.bool)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def lacking(
    inputs: dict[str, Any], complement: Tensor, main: Tensor | None = None
) -> dict[str, Any]:
    """A batch as the loader makes it: of a complement, the rows that are there."""
    rows = {name: tensor[complement] for name, tensor in inputs["complement"].items()}
    return {
        **inputs,
        "main": inputs["main"] if main is None else {**inputs["main"], PRESENT: main},
        "complement": {**(rows if complement.any() else {}), PRESENT: complement},
    }


def alone(inputs: dict[str, Any], row: int) -> dict[str, Any]:
    """One row of a whole batch."""
    return {r: {n: t[row : row + 1] for n, t in rows.items()} for r, rows in inputs.items()}


def check_missing(fusion: Fusion, inputs: dict[str, Any]) -> None:
    """What a sample lacks is nobody else's business, and what it has speaks for it.

    Args:
        fusion: Prepared, with stand-ins for main and complement.
        inputs: A whole batch of four.
    """
    main, complement = flags(1, 0, 0, 1), flags(1, 1, 0, 0)
    batch = lacking(inputs, complement, main)
    together = fusion(batch).feature
    close(together[0], fusion(inputs).feature[0])
    for row in range(4):
        one = slice(row, row + 1)
        single = lacking(alone(inputs, row), complement[one], main[one])
        close(fusion(single).feature[0], together[row])

    changed = {**inputs, "complement": dict(inputs["complement"])}
    changed["complement"]["x"] = inputs["complement"]["x"] + 1
    moved = (fusion(lacking(changed, complement, main)).feature - together).abs().amax(dim=1)
    assert (moved[:2] > 1e-6).all()  # the second has no field of its own, and still sees it
    assert (moved[2:] < 1e-10).all()

    nobody = lacking(inputs, flags(0, 0, 0, 0), flags(0, 0, 0, 0))
    fusion.train()
    fusion.zero_grad()
    fusion(nobody).feature.square().sum().backward()
    for name, weight in fusion.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name
    assert all(stand_in.grad.any() for stand_in in fusion.stand_ins.values())


def check_gradients(fusion: Fusion, inputs: dict[str, Any]) -> None:
    """They reach what is trained, with a value where it is the fusion's own, and nothing else."""
    model = FusionModel(fusion, 3).double().train()
    model(inputs).logits.square().sum().backward()
    for group, name, weight in model.named_groups():
        assert (weight.grad is not None) == weight.requires_grad, name
        if group == "fusion":
            assert weight.grad.any(), name


def trained(fusion: Fusion, classes: int = 3) -> int:
    """Trained parameters, a head for the classes among them."""
    model = FusionModel(fusion, classes)
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
