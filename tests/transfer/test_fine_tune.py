from __future__ import annotations

import copy

import pytest
import torch
from tiny import TinyComplement, TinyMain
from transformers import AlbertConfig

from fusionkit.encoders.bert import Bert
from fusionkit.errors import ConfigError
from fusionkit.transfer.fine_tune import FineTune


def trained(transfer):
    return {name for name, weight in transfer.named_parameters() if weight.requires_grad}


def test_the_last_layers_are_trained_whole_and_nothing_else():
    encoder = TinyMain(depth=3)
    last = {
        f"encoder.backbone.{i}.{n}" for i in (1, 2) for n, _ in encoder.layers[i].named_parameters()
    }
    assert trained(FineTune(encoder, last_layers=2)) == last


def test_as_many_last_layers_as_there_are_leave_embeddings_and_final_norm_frozen():
    config = AlbertConfig(hidden_size=8, embedding_size=4, num_attention_heads=2, vocab_size=9)
    config.update({"num_hidden_layers": 3, "intermediate_size": 8, "max_position_embeddings": 8})
    encoder = Bert(config=config.to_dict(), weights="random")
    names = trained(FineTune(encoder, last_layers=3))
    assert names
    assert not any("embedding" in name for name in names)


def test_layers_that_share_weights_count_once_for_each_use():
    config = AlbertConfig(hidden_size=8, embedding_size=4, num_attention_heads=2, vocab_size=9)
    config.update({"num_hidden_layers": 3, "intermediate_size": 8, "max_position_embeddings": 8})
    encoder = Bert(config=config.to_dict(), weights="random")
    one = trained(FineTune(encoder, last_layers=1))
    assert one == trained(FineTune(encoder, last_layers=3))
    with pytest.raises(ConfigError, match="last_layers is 4; Bert has 3 layers"):
        FineTune(encoder, last_layers=4)


def test_training_mode_reaches_the_last_layers_only():
    transfer = FineTune(TinyMain(depth=2), last_layers=1)
    for mode in (True, False, True):
        transfer.train(mode)
        first, last = transfer.encoder.layers
        assert not any(module.training for module in first.modules())
        assert all(module.training == mode for module in last.modules())


def test_statistics_of_the_last_layer_move_and_those_before_rest():
    transfer = FineTune(TinyMain(depth=2), last_layers=1).train()
    before = copy.deepcopy(dict(transfer.encoder.named_buffers()))
    transfer({"x": torch.randn(4, 24)})
    moved = {
        name
        for name, value in transfer.encoder.named_buffers()
        if not torch.equal(value, before[name])
    }
    assert moved == {
        f"backbone.1.batch_norm.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_layers_before_the_trained_ones_keep_no_graph():
    transfer = FineTune(TinyMain(depth=2), last_layers=1)
    needs = []
    transfer(
        {"x": torch.randn(4, 24)}, None, lambda i, s: needs.append(s.tokens.requires_grad) or s
    )
    assert needs == [False, False, True]


@pytest.mark.parametrize("count", [0, 3])
def test_a_number_of_layers_that_there_is_not_is_refused_with_both_numbers(count):
    with pytest.raises(
        ConfigError, match=f"last_layers is {count}; TinyMain has 2 layers, so give"
    ):
        FineTune(TinyMain(depth=2), last_layers=count)


def test_last_layers_of_an_encoder_without_layers_are_refused():
    with pytest.raises(ConfigError, match="TinyComplement has no layers; leave last_layers out"):
        FineTune(TinyComplement(), last_layers=1)
