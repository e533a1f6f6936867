"""Contract cases of the encoders of tables, vectors and videos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
from cases import shaken
from torch import Tensor, nn

from fusionkit.encoders.table import TableEncoder
from fusionkit.encoders.vector import Vector
from fusionkit.encoders.video import Video
from fusionkit.testing import Case

CELLS = [
    {"age": 31, "price": "2.5", "sex": "f", "city": "Rome"},
    {"age": None, "price": 4.0, "sex": "m", "city": ""},
    {"age": 4, "price": "", "sex": None, "city": "Oslo"},
    {"age": 60, "price": -1, "sex": "m", "city": "Rome"},
]


def ft_transformer(state: dict[str, Tensor], inputs: Any) -> Tensor:
    """Section 3.3 of arXiv 2106.11959, row by row, head by head; all tokens, normed."""

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def attention(x: Tensor, block: str) -> Tensor:
        q, k, v = (part.split(size, 1) for part in linear(x, f"{block}.qkv").chunk(3, 1))
        heads = [(q[i] @ k[i].T / size**0.5).softmax(1) @ v[i] for i in range(8)]
        return linear(torch.cat(heads, 1), f"{block}.out")

    width = state["cls"].shape[1]
    size = width // 8
    layers = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    rows = []
    columns = (inputs["numbers"], inputs["empty"], inputs["categories"])
    for numbers, empty, categories in zip(*columns, strict=True):
        tokens = [state["cls"][0]]
        for j, number in enumerate(numbers):
            scaled = (number - state["scale.mean"][j]) / state["scale.std"][j]
            own = state["empty"][j] if empty[j] else scaled * state["weight"][j]
            tokens.append(state["bias"][j] + own)
        for j, (one, two) in enumerate(categories):
            table = state["categories.weight"]
            tokens.append(state["bias"][len(numbers) + j] + (table[one] + table[two]) / 2)
        x = torch.stack(tokens)
        for layer in range(layers):
            block = f"blocks.{layer}"
            x = x + attention(norm(x, f"{block}.norm1") if layer else x, block)
            value, gate = linear(norm(x, f"{block}.norm2"), f"{block}.fc1").chunk(2, 1)
            x = x + linear(value * gate.clamp(min=0), f"{block}.fc2")
        rows.append(norm(x, "norm"))
    return torch.stack(rows)


def table(numeric: list[str], categorical: list[str]) -> Case:
    def make() -> TableEncoder:
        encoder = TableEncoder(numeric, categorical, dim=16, layers=2, buckets=32)
        encoder.fit_statistics(CELLS)
        return shaken(encoder)

    def upstream(backbone: nn.Module, inputs: Any) -> Tensor:
        return ft_transformer(backbone.state_dict(), inputs)[:, 0]

    parts = ("norm2", "qkv", "out", "fc1", "fc2")
    names = [f"blocks.{layer}.{part}" for layer in (0, 1) for part in parts]
    names += ["blocks.1.norm1", "norm"]
    keys = [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    keys += ["weight", "empty", "bias", "cls", "categories.weight", "scale.mean", "scale.std"]
    return Case(make, CELLS, upstream, upstream_keys=keys)


def vector(standardize: bool, samples: list[Any]) -> Case:
    def make() -> Vector:
        encoder = Vector(3, standardize)
        encoder.fit_statistics(samples)
        return encoder

    def upstream(backbone: Any, inputs: Any) -> Tensor:
        mean, std = (backbone.mean, backbone.std) if standardize else (0, 1)
        return torch.stack([((row - mean) / std).mean(0) for row in inputs["vectors"]])

    return Case(make, samples, upstream, upstream_keys=("mean", "std") if standardize else ())


VECTORS = [[0.5, 2.0, -1.0], [1.5, 2.0, 3.0], [0.0, 2.0, 7.0]]
VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
VIDEOS = [
    np.random.default_rng(length).integers(0, 256, (length, 24, 32, 3), dtype=np.uint8)
    for length in (3, 1, 6)
]


def video() -> Case:
    model = "vit_tiny_patch16_224"

    def make() -> Video:
        inner = {"name": "timm_vit", "model": model, "weights": "random", "options": VIT}
        return shaken(Video(inner, frames=4))

    def plain() -> Any:
        return timm.create_model(model, num_classes=0, **VIT)

    def upstream(backbone: Any, inputs: Any) -> Tensor:
        net = plain().double().eval()
        net.load_state_dict(backbone.backbone.state_dict())
        pairs = zip(inputs["pixels"], inputs["keep_frames"].sum(1), strict=True)
        return torch.stack([net(frames[:length]).mean(0) for frames, length in pairs])

    keys = [f"backbone.{key}" for key in plain().state_dict()]
    return Case(make, VIDEOS, upstream, upstream_keys=keys)


CASES: dict[str, dict[str, Callable[[str], Case]]] = {
    "table": {
        "both": lambda _: table(["age", "price"], ["sex", "city"]),
        "numbers": lambda _: table(["age", "price"], []),
        "categories": lambda _: table([], ["sex", "city"]),
    },
    "vector": {
        "standardized": lambda _: vector(True, VECTORS),
        "as it is": lambda _: vector(False, VECTORS),
        "sequence": lambda _: vector(True, [[row, VECTORS[0]] for row in VECTORS]),
    },
    "video": {"timm_vit": lambda _: video()},
}
