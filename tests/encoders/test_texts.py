"""Text preprocessing, with a tokenizer of ten words made here."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, ByT5Tokenizer, PreTrainedTokenizerFast

from fusionkit.encoders import transformers_weights
from fusionkit.encoders.base import Preprocessor
from fusionkit.encoders.bert import Bert
from fusionkit.encoders.texts import TextPreprocessor, load_tokenizer, make_preprocessor
from fusionkit.errors import ConfigError, EncoderError, WeightsError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["a", "the", "cat", "dog", "sat", "ran"]


@pytest.fixture
def folder(tmp_path):
    return make_tokenizer(tmp_path / "tokenizer")


def make_tokenizer(path, **options):
    """Ids: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, then the words from 4."""
    ids = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_padding(length=7)  # as some tokenizer files of the hub do
    names = ("pad_token", "unk_token", "cls_token", "sep_token")
    special = dict(zip(names, SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special, **options)
    tokenizer.save_pretrained(path)
    return str(path)


def ids(preprocessor, text):
    return preprocessor(text)["input_ids"].tolist()


def test_texts_become_ids_padded_to_the_longest_of_the_batch(folder):
    preprocessor = make_preprocessor(folder, None, vocab_size=10)
    assert isinstance(preprocessor, Preprocessor)
    batch = preprocessor.collate([preprocessor("the cat sat"), preprocessor("bird")])
    assert batch["input_ids"].tolist() == [[2, 5, 6, 8, 3], [2, 1, 3, 0, 0]]
    assert batch["attention_mask"].tolist() == [[True] * 5, [True] * 3 + [False] * 2]


@pytest.mark.parametrize("text", ["", None])
def test_no_text_keeps_its_special_tokens(folder, text):
    assert ids(make_preprocessor(folder, None, 10), text) == [2, 3]


def test_without_special_tokens_an_empty_batch_has_one_padded_position(folder):
    preprocessor = make_preprocessor(folder, None, 10, special_tokens=False)
    assert ids(preprocessor, "a dog") == [4, 7]
    batch = preprocessor.collate([preprocessor(""), preprocessor(None)])
    assert batch["input_ids"].tolist() == [[0], [0]]
    assert batch["attention_mask"].tolist() == [[False], [False]]


def test_long_texts_are_cut_and_keep_the_last_special_token(folder):
    text = "cat " * 900
    assert ids(make_preprocessor(folder, 4, 10), text) == [2, 6, 6, 3]
    assert len(ids(make_preprocessor(folder, None, 10), text)) == 512
    assert len(ids(make_preprocessor(folder, None, 10, positions=24), text)) == 24


def test_length_that_the_tokenizer_states_is_kept(tmp_path):
    folder = make_tokenizer(tmp_path, model_max_length=6)
    assert len(ids(make_preprocessor(folder, None, 10), "cat " * 50)) == 6


def test_pad_id_is_the_tokenizers(tmp_path):
    tokenizer = load_tokenizer(make_tokenizer(tmp_path))
    tokenizer.pad_token = "[SEP]"
    preprocessor = TextPreprocessor(tokenizer, 8)
    batch = preprocessor.collate([preprocessor("a cat"), preprocessor("")])
    assert batch["input_ids"][1].tolist() == [2, 3, 3, 3]


def test_survives_pickling(folder):
    preprocessor = make_preprocessor(folder, 4, 10)
    copied = pickle.loads(pickle.dumps(preprocessor))
    assert ids(copied, "a cat sat the dog") == ids(preprocessor, "a cat sat the dog")


@pytest.mark.parametrize("raw", [float("nan"), 3, ["a", "cat"], b"cat"])
def test_what_is_no_text_is_refused_by_type(folder, raw):
    with pytest.raises(EncoderError, match=f"given {type(raw).__name__}: .* which column"):
        make_preprocessor(folder, None, 10)(raw)


def test_tokenizers_in_python_work_too():
    preprocessor = TextPreprocessor(ByT5Tokenizer(), max_length=4)
    assert ids(preprocessor, "abcdef") == [100, 101, 102, 1]  # bytes + 3, then end of text


def test_tokenizer_with_more_tokens_than_embeddings_is_refused(folder):
    with pytest.raises(ConfigError, match="has 10 tokens, the model embeds 9"):
        make_preprocessor(folder, None, vocab_size=9)


def test_missing_tokenizer_says_what_to_give(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers_weights, "_hub_answers", lambda: False)
    with pytest.raises(
        WeightsError, match=r"a tokenizer of 'bert-base-uncased'.*`tokenizer: PATH`"
    ):
        load_tokenizer("bert-base-uncased")
    BertConfig().save_pretrained(tmp_path)  # transformers makes an empty tokenizer of this
    with pytest.raises(WeightsError, match="`tokenizer: PATH`"):
        load_tokenizer(str(tmp_path))


def test_encoder_loads_its_tokenizer_in_preprocessor_only(folder):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {"model_type": "bert", "vocab_size": 10, "intermediate_size": 8, **sizes}
    Bert(config=config, weights="random", tokenizer="no/such-tokenizer")
    encoder = Bert(config=config, weights="random", tokenizer=folder, max_length=5).eval()
    preprocessor = encoder.preprocessor(train=True)
    batch = preprocessor.collate([preprocessor("a cat " * 9), preprocessor(None)])
    assert batch["input_ids"].shape == (2, 5)
    assert encoder.encode(batch).pooled.shape == (2, 8)


def test_forked_workers_do_not_warn(folder):
    code = f"""
from torch.utils.data import DataLoader
from fusionkit.encoders.texts import make_preprocessor
p = make_preprocessor({folder!r}, None, 10)
p("a cat")  # in the parent, before the fork
texts = [p.collate([p("a cat")])] * 2
class Texts(list):
    def __getitem__(self, i): return p("the dog")
loader = DataLoader(Texts("ab"), 2, collate_fn=p.collate, num_workers=1,
                    multiprocessing_context="fork")
print(len(list(loader)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "1", done.stderr
    assert "parallelism" not in done.stderr


def test_ids_are_long(folder):
    assert make_preprocessor(folder, None, 10)("a")["input_ids"].dtype == torch.int64


@pytest.mark.parametrize("special", [True, False])
def test_tokens_are_counted_before_texts_are_cut(folder, special):
    short, long = (
        make_preprocessor(folder, length, 100, special_tokens=special) for length in (4, 500)
    )
    for text in ("", "red", "a red shirt " * 9):
        assert short.count_tokens(text) == len(long(text)["input_ids"])


def test_tokenizers_in_python_count_too():
    assert TextPreprocessor(ByT5Tokenizer(), 4).count_tokens("shirt") == 6  # bytes and the end
