from __future__ import annotations

import pytest
from tiny import TinyMain
from torch import nn

from fusionkit.errors import ConfigError
from fusionkit.transfer.bias_only import BiasOnly


def test_biases_of_maps_attention_and_norms_are_trained():
    encoder = TinyMain(depth=1)
    encoder.backbone.append(nn.MultiheadAttention(8, 2))
    transfer = BiasOnly(encoder)
    trained = {name for name, w in transfer.named_parameters() if w.requires_grad}
    own = {f"0.{part}.bias" for part in ("norm", "qkv", "out", "batch_norm")}
    expected = own | {"1.in_proj_bias", "1.out_proj.bias"}
    assert trained == {f"encoder.backbone.{name}" for name in expected}


def test_an_encoder_without_bias_is_told_what_to_use():
    encoder = TinyMain()
    encoder.backbone = nn.ModuleList([nn.Linear(8, 8, bias=False)])
    with pytest.raises(
        ConfigError, match=r"TinyMain \(its model is a ModuleList\) has none. Use lora or adapter"
    ):
        BiasOnly(encoder)
