from __future__ import annotations

from tiny import TinyComplement, TinyMain

from fusionkit.encoders.timm_cnn import TimmCNN
from fusionkit.fusion.conditional_prompt import ConditionalPrompt
from fusionkit.fusion.late_concat import LateConcat
from fusionkit.fusion.model import FusionModel
from fusionkit.training.fast_paths import fast_paths
from fusionkit.transfer.fine_tune import FineTune
from fusionkit.transfer.frozen import Frozen
from fusionkit.transfer.prompt import Prompt


class Quick(TinyMain):
    takes_parts = True
    pools_apart = True


def test_conditional_prompts_take_all_that_the_encoders_offer():
    fusion = ConditionalPrompt(Frozen(Quick()), [Prompt(Quick())], layers=(1, 2))
    assert fast_paths(FusionModel(fusion, 2)) == [
        "prompts as keys and values, shared ones once: main, complement",
        "last layer for the pooled token only: main, complement",
        "no graph in the first 1 layers: main",
        "experts of all layers mixed at once",
        "fused AdamW",
    ]


def test_where_tokens_are_read_the_last_layer_runs_for_all():
    fusion = ConditionalPrompt(Frozen(Quick()), [Prompt(Quick())], mapper="sequence", mapper_dim=8)
    lines = fast_paths(FusionModel(fusion, 2))
    assert not any("pooled token" in line for line in lines)


def test_a_router_that_waits_for_tokens_goes_layer_by_layer():
    fusion = ConditionalPrompt(Frozen(TinyMain()), [Frozen(TinyComplement())], router="multimodal")
    assert fast_paths(FusionModel(fusion, 2)) == [
        "prompts concatenated: main",
        "forward pass without a graph: complement",
        "fused AdamW",
    ]


def test_what_is_trained_has_a_graph():
    fusion = LateConcat(FineTune(TinyMain()), [FineTune(TinyComplement())])
    assert fast_paths(FusionModel(fusion, 2)) == ["fused AdamW"]


def test_convolutional_nets_are_channels_last():
    cnn = TimmCNN("resnet10t", "random")
    fusion = ConditionalPrompt(Frozen(TinyMain()), [Frozen(cnn)])
    assert "convolutions channels last: complement" in fast_paths(FusionModel(fusion, 2))
