"""LoRA: low-rank updates of frozen weights."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from fusionkit.encoders.base import (
    ComplementEncoder,
    ExtraTokens,
    Features,
    Inputs,
    MainEncoder,
    Prompts,
    TokenEdit,
)
from fusionkit.errors import ConfigError, suggest
from fusionkit.registry import require
from fusionkit.transfer.base import run
from fusionkit.transfer.frozen import FrozenWeights


class Lora(FrozenWeights):
    """LoRA (arXiv 2106.09685): ``W + alpha / rank * B A`` with W frozen; B starts at zero.

    The peft library does it where a module is called. Where a weight is read instead (attention
    of torch, weight-standardised or padded convolutions, an embedding that is the whole encoder),
    what peft puts in its place would be passed over, or would shift the frozen weight by rounding
    at each pass; there the weight is parametrized: the same sum, made before use.

    Args:
        encoder: Any encoder.
        rank: Of each update.
        alpha: Updates are scaled by alpha / rank.
        dropout: Probability that an entry of an update's input is dropped in training; not of
            updates that are made by parametrization.
        targets: Which modules of the backbone get updates, as peft has it: ends of their names
            (``[query, value]``) or a regular expression for whole names. Null for every linear
            map, embedding and convolution of the encoder's layers, or of all of an encoder
            without layers; grouped convolutions, whose kernels are small, are left out.

    Raises:
        ConfigError: A number is out of range, or ``targets`` fits no module that can have updates.
        MissingExtraError: peft is not installed.
    """

    plain: ClassVar[bool] = True

    def __init__(
        self,
        encoder: ComplementEncoder,
        rank: int = 8,  # paper, table 9
        alpha: float = 8.0,  # paper, table 9
        dropout: float = 0.0,
        targets: list[str] | str | None = None,
    ) -> None:
        super().__init__(encoder)
        if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
            raise ConfigError(
                f"rank is at least 1, alpha more than 0 and dropout from 0 up to 1, given {rank}, "
                f"{alpha} and {dropout}."
            )
        chosen = _chosen(encoder, targets)
        called = [weight for weight in chosen if not weight.is_read]
        if called:
            _inject(encoder.backbone, called, rank, alpha, dropout)
        for weight in chosen:
            if weight.is_read:
                update = LowRank(getattr(weight.owner, weight.name), rank, alpha / rank)
                # unsafe: without a trial run, which has no meaning on the meta device
                parametrize.register_parametrization(weight.owner, weight.name, update, unsafe=True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Of the encoder, training mode reaches the dropout of the updates and nothing else."""
        super().train(mode)
        for name, module in self.encoder.named_modules():
            if name.endswith(".lora_dropout"):
                module.train(mode)
        return self

    def encode(
        self,
        inputs: Inputs,
        prompts: Prompts | None = None,
        edit: TokenEdit | None = None,
        extra: ExtraTokens | None = None,
    ) -> Features:
        return run(self.encoder, inputs, prompts, edit, extra)


class LowRank(nn.Module):
    """A parametrization: the weight plus ``scale * B A``, of any shape.

    Args:
        weight: (rows, ...), all but the first dimension taken as columns.
        rank: Of the update.
        scale: Of the update.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.lora_A = nn.Parameter(weight.new_empty(rank, columns))
        self.lora_B = nn.Parameter(weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as peft does
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its update."""
        return weight + (self.lora_B @ self.lora_A * self.scale).view_as(weight)


@dataclass(frozen=True)
class _Weight:
    """A weight that can have an update.

    Attributes:
        path: Of the module that owns it, in the backbone; "" for the backbone itself.
        owner: That module.
        name: Of the weight in its owner.
        is_read: Whether the forward pass reads it, rather than calling its owner.
    """

    path: str
    owner: nn.Module
    name: str
    is_read: bool


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KINDS = (nn.Linear, Conv1D, nn.Embedding, *_CONVOLUTIONS)
_CALLED = (nn.Linear, Conv1D, *_CONVOLUTIONS)  # what peft replaces, if of this very class
_IN_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def _weights(backbone: nn.Module) -> Iterator[_Weight]:
    for path, module in backbone.named_modules():
        parent, _, child = path.rpartition(".")
        if isinstance(module, _KINDS):
            # peft would leave out what a subclass does to weight or input, and splits no groups.
            is_called = path != "" and type(module) in _CALLED and not _is_grouped(module)
            is_read = not is_called or _reads(backbone.get_submodule(parent), child)
            yield _Weight(path, module, "weight", is_read)
        for name in _IN_ATTENTION:
            if getattr(module, name, None) is not None:
                yield _Weight(path, module, name, True)


def _reads(parent: nn.Module, child: str) -> bool:
    """Whether a module's code takes the weight of a child instead of calling the child.

    So do ``nn.TransformerEncoderLayer`` in evaluation mode and WavLM's attention.
    """
    reading = re.compile(rf"\.{re.escape(child)}\.weight\b(?!\.(dtype|device|shape))")
    classes: list[Any] = [
        cls for cls in type(parent).__mro__ if issubclass(cls, nn.Module) and cls is not nn.Module
    ]
    try:
        return any(reading.search(_source(cls)) for cls in classes)
    except (OSError, TypeError):  # there is no source; a parametrized weight is right either way
        return True


@cache
def _source(cls: type[Any]) -> str:
    return inspect.getsource(cls)


def _is_grouped(module: nn.Module) -> bool:
    return isinstance(module, _CONVOLUTIONS) and module.groups > 1


def _chosen(encoder: ComplementEncoder, targets: list[str] | str | None) -> list[_Weight]:
    found = list(_weights(encoder.backbone))
    if found and targets is not None:
        return _named(found, targets)
    scope = encoder.layers if isinstance(encoder, MainEncoder) else [encoder]
    inside = {id(module) for part in scope for module in part.modules()}
    chosen = [w for w in found if id(w.owner) in inside and not _is_grouped(w.owner)]
    if not chosen:
        raise ConfigError(
            f"The transfer 'lora' found no linear map in {type(encoder).__name__} (its model is a "
            f"{type(encoder.backbone).__name__}). Use adapter or fine_tune."
        )
    return chosen


def _named(found: list[_Weight], targets: list[str] | str) -> list[_Weight]:
    if isinstance(targets, str):
        patterns = {targets: targets}
    else:
        patterns = {end: rf"(.*\.)?{re.escape(end)}" for end in targets}
    chosen: list[_Weight] = []
    for given, pattern in patterns.items():
        try:
            fitting = [weight for weight in found if re.fullmatch(pattern, weight.path)]
        except re.error as error:
            raise ConfigError(f"targets: {given!r} is no regular expression: {error}.") from error
        if not fitting:
            ends = sorted({weight.path.rpartition(".")[2] for weight in found})
            raise ConfigError(
                f"targets: {given!r} fits no module that can have updates.{suggest(given, ends)} "
                f"Such names end in: {', '.join(ends)}; a whole one is {found[-1].path!r}."
            )
        chosen += [weight for weight in fitting if weight not in chosen]
    if not chosen:
        raise ConfigError("targets is empty; name modules, or leave it out for the default.")
    return chosen


def _inject(
    backbone: nn.Module, called: list[_Weight], rank: int, alpha: float, dropout: float
) -> None:
    peft = require("peft", "peft")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="|".join(re.escape(weight.path) for weight in called),
        fan_in_fan_out=all(isinstance(weight.owner, Conv1D) for weight in called),
    )
    peft.inject_adapter_in_model(config, backbone)
