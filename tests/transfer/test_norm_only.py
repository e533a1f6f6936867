from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d, LayerNorm2d, RmsNorm
from tiny import TinyMain
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fusionkit.errors import ConfigError
from fusionkit.transfer.norm_only import NormOnly, affine


@pytest.mark.parametrize(
    ("norm", "count"),
    [
        (nn.LayerNorm(4), 2),
        (nn.LayerNorm((3, 4)), 2),  # its parameters are no vectors
        (nn.LayerNorm(4, elementwise_affine=False), 0),
        (nn.RMSNorm(4), 1),
        (nn.GroupNorm(2, 4), 2),
        (nn.BatchNorm2d(4), 2),
        (nn.InstanceNorm1d(4, affine=True), 2),
        (LayerNorm2d(4), 2),
        (BatchNormAct2d(4), 2),
        (RmsNorm(4), 1),
        (LlamaRMSNorm(4), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_scale_and_shift_of_norms_of_all_libraries_are_found(norm, count):
    assert len(affine(norm)) == count


class PreNormBlock(nn.Module):
    """Named after a norm, and none."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.norm = nn.LayerNorm(4)


class NormalizedTable(nn.Module):
    """Named after a norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


@pytest.mark.parametrize("module", [nn.Linear(4, 4), PreNormBlock(), NormalizedTable()])
def test_other_modules_are_left_alone(module):
    assert affine(module) == []


def test_an_encoder_without_norms_is_told_what_to_use():
    encoder = TinyMain()
    encoder.backbone = nn.ModuleList([nn.Linear(8, 8), nn.LayerNorm(8, elementwise_affine=False)])
    with pytest.raises(ConfigError, match="TinyMain .* none with parameters. Use lora or adapter"):
        NormOnly(encoder)
