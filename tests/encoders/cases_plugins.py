"""Contract cases of the encoders under plugins/."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from cases import IMAGES, TEXTS, shaken
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from fusionkit.encoders.base import ComplementEncoder
from fusionkit.testing import Case


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


def minilm() -> Case:
    from fusionkit_minilm.case import case

    return case()  # real weights, none of which is a zero or one of an initialisation


def kwt() -> Case:
    from fusionkit_kwt.case import case

    own = case()

    def make() -> ComplementEncoder:
        encoder: Any = shaken(own.make())
        # MFCC of silence are in the hundreds; attention over such tokens would see a single key.
        encoder.backbone.patch_embed.weight.data.mul_(0.1)
        return encoder

    return replace(own, make=make)


CASES: dict[str, dict[str, Callable[[str], Case]]] = {
    "torchvision_vit": {"blocks": lambda _: torchvision_vit()},
    "hashed_ngrams": {"text": lambda _: hashed_ngrams()},
    "minilm": {"pretrained": lambda _: minilm()},
    "kwt": {"keywords": lambda _: kwt()},
}
