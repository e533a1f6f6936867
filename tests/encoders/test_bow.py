"""Bag of words, by hand."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from fusionkit.encoders.bow import BagOfWords
from fusionkit.errors import ConfigError


@pytest.fixture
def tokenizer(tmp_path):
    ids = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "cat": 4, "dog": 5}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    )
    fast.save_pretrained(tmp_path / "words")
    return str(tmp_path / "words")


@pytest.fixture
def model(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = AutoConfig.for_model("bert", vocab_size=6, intermediate_size=8, **sizes)
    upstream = AutoModel.from_config(config)
    upstream.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model"), upstream.embeddings.word_embeddings.weight.detach()


def encode(encoder, *texts):
    preprocessor = encoder.preprocessor(train=False)
    return encoder.encode(preprocessor.collate([preprocessor(text) for text in texts]))


def test_mean_over_words_and_zeros_for_no_words(tokenizer):
    encoder = BagOfWords(tokenizer, dim=3).double()
    table = encoder.backbone.weight
    features = encode(encoder, "cat dog dog", "bird", "", None)
    expected = torch.stack([(table[4] + 2 * table[5]) / 3, table[1], 0 * table[0], 0 * table[0]])
    torch.testing.assert_close(features.pooled, expected, rtol=0, atol=1e-12)
    assert features.tokens.shape == (4, 3, 3)
    assert features.keep.sum(1).tolist() == [3, 1, 0, 0]


def test_order_and_batch_mates_do_not_matter(tokenizer):
    encoder = BagOfWords(tokenizer).double()
    assert encoder.out_dim == 256
    together = encode(encoder, "cat dog dog", "dog cat dog", "cat").pooled
    torch.testing.assert_close(together[0], together[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(encode(encoder, "cat").pooled[0], together[2], rtol=0, atol=1e-12)


def test_table_is_initialised_with_the_models_word_embeddings(tokenizer, model):
    folder, table = model
    encoder = BagOfWords(tokenizer, init_from=folder)
    assert encoder.out_dim == 8
    assert list(encoder.state_dict()) == ["backbone.weight"]
    torch.testing.assert_close(encode(encoder, "cat").pooled, table[4:5], rtol=0, atol=0)


def test_dim_must_be_the_models(tokenizer, model):
    assert BagOfWords(tokenizer, dim=8, init_from=model[0]).out_dim == 8
    with pytest.raises(ConfigError, match=r"dim is 9, but the word embeddings of .* are 8 wide"):
        BagOfWords(tokenizer, dim=9, init_from=model[0])


def test_long_texts_are_cut(tokenizer):
    assert encode(BagOfWords(tokenizer, max_length=5), "cat " * 9).tokens.shape[1] == 5


def test_builds_on_meta(tokenizer, model):
    with torch.device("meta"):
        tables = [
            BagOfWords(tokenizer).backbone.weight,
            BagOfWords(tokenizer, init_from=model[0]).backbone.weight,
            BagOfWords("bert-base-uncased").backbone.weight,
            BagOfWords("bert-base-uncased", init_from="bert-base-uncased").backbone.weight,
        ]
    assert all(table.is_meta for table in tables)
    shapes = [tuple(table.shape) for table in tables]
    assert shapes == [(6, 256), (6, 8), (30522, 256), (30522, 768)]


def test_gradients_reach_used_words_only(tokenizer):
    encoder = BagOfWords(tokenizer, dim=2)
    encode(encoder, "cat", "").pooled.sum().backward()
    assert encoder.backbone.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [4]


def test_compiles_as_one_graph(tokenizer):
    encoder = BagOfWords(tokenizer, dim=2)
    preprocessor = encoder.preprocessor(train=False)
    batch = preprocessor.collate([preprocessor("cat dog"), preprocessor("")])
    torch.compiler.reset()
    run = torch.compile(
        lambda inputs: encoder.encode(inputs).pooled, backend="eager", fullgraph=True
    )
    assert torch.equal(run(batch), encoder.encode(batch).pooled)
