"""Shards into samples."""

import gzip
import io
import itertools
import json
import re
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from shard_files import KINDS, files_of, write_shard, write_shards

from fusionkit.data.base import Stream
from fusionkit.data.shards import find_shards, read_shard
from fusionkit.data.webdataset import ShardField, Shards, WebDataset, _Maker
from fusionkit.errors import ConfigError, DataError

FIELDS = {"image": ["jpg", "png"], "text": "txt"}


def data(shards, fields=FIELDS, label="cls", classes=KINDS, **kwargs):
    classes = None if classes is None else [*classes]
    return WebDataset({"train": shards}, fields, label, classes=classes, **kwargs)


def stream(shards, **kwargs) -> Shards:
    found = data(shards, **kwargs).split("train")
    assert isinstance(found, Shards)
    assert isinstance(found, Stream)
    return found


def keys(samples):
    return [sample.id for sample in samples]


def one(tmp_path, files, **kwargs):
    """The only sample of a shard."""
    write_shard(tmp_path / "s.tar", [("a", files)])
    (sample,) = stream(str(tmp_path / "s.tar"), **kwargs)
    return sample


def test_samples_have_fields_targets_and_say_where_they_are(tmp_path):
    write_shards(tmp_path, [2, 1])
    first, second, third = stream(str(tmp_path / "train-*.tar"))
    assert keys([first, second, third]) == ["0000", "0001", "0002"]
    assert first.fields == {"image": files_of(0)["png"], "text": "number 0"}
    assert [s.target for s in (first, second, third)] == [0, 1, 2]
    assert third.origin == "train-001.tar, sample 0002"
    assert data("x").fields == {"image": "image", "text": "text"}


def test_constructing_opens_nothing_and_checks_need_no_file():
    made = data("nowhere-{0..9}.tar")
    assert (made.outputs, made.classes) == (3, list(KINDS))
    assert made.split("test") == []


def test_values_of_every_modality(tmp_path):
    vector = io.BytesIO()
    np.save(vector, np.arange(3.0))
    files = {
        **files_of(4),
        "npy": vector.getvalue(),
        "more.txt": "grüß".encode(),
        "PNG2": b"upper",
        "wav": b"RIFF",
    }
    fields = {
        "image": ["jpg", "png"],
        "text": {"ext": "json", "key": "title"},
        "note": {"ext": ".more.txt", "modality": "text"},
        "table": ShardField("json", "deep", columns=["age", "gone"]),
        "whole": ShardField("json", modality="table"),
        "vector": "npy",
        "audio": "wav",
        "other": "png2",
        "video": "mp4",
    }
    sample = one(tmp_path, files, fields=fields)
    whole = json.loads(files["json"])
    assert dict(sample.fields) == {
        "image": files["png"],
        "text": "number 4",
        "note": "grüß",
        "table": {"age": 4, "gone": None},
        "whole": whole,
        "vector": vector.getvalue(),
        "audio": b"RIFF",
        "other": b"upper",
        "video": None,
    }
    assert sample.origin.endswith("sample a (it has cls, json, more.txt, npy, png, png2, txt, wav)")


@pytest.mark.parametrize(
    ("ext", "content", "label", "task", "target"),
    [
        ("cls", b"2\n", "cls", "single_label", 2),
        ("cls", b"shoes", "cls", "single_label", 2),
        ("txt", b" shirts ", "txt", "single_label", 1),
        ("json", b'{"a": {"b": "bags"}}', ShardField("json", "a.b"), "single_label", 0),
        ("json", b'["shoes", "bags"]', "json", "multi_label", (0, 2)),
        ("txt", b"bags|shoes", "txt", "multi_label", (0, 2)),
        ("json", b"[]", "json", "multi_label", ()),
        ("cls", b"0|2", "cls", "multi_label", (0, 2)),
        ("json", b'{"y": 2.5}', ShardField("json", "y"), "regression", 2.5),
        ("price", b"-3", "price", "regression", -3.0),
    ],
)
def test_labels(tmp_path, ext, content, label, task, target):
    classes = None if task == "regression" else KINDS
    files = {"png": b"", ext: content}
    made = one(tmp_path, files, fields={"image": "png"}, label=label, task=task, classes=classes)
    assert made.target == target


def test_a_number_in_cls_is_an_index_and_elsewhere_a_name(tmp_path):
    digits = ["7", "8", "0"]
    files = {"png": b"", "cls": b"0", "txt": b"0"}
    for label, target in (("cls", 0), ("txt", 2)):
        sample = one(tmp_path, files, fields={"image": "png"}, label=label, classes=digits)
        assert sample.target == target


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7, 11])
@pytest.mark.parametrize("shuffle", [None, "0 0 0"])
def test_parts_cover_each_sample_once(tmp_path, parts, shuffle):
    found = stream(write_shards(tmp_path, [5, 3, 4]), buffer=3)
    by_part = [keys(found.read(part, parts, shuffle)) for part in range(parts)]
    assert sorted(itertools.chain(*by_part)) == [f"{n:04d}" for n in range(12)]
    if parts == 3:  # a shard each
        assert sorted(map(len, by_part)) == [3, 4, 5]


def test_order_is_a_function_of_the_seed_and_is_shuffled_within_and_among_shards(tmp_path):
    found = stream(write_shards(tmp_path, [6, 6, 6, 6]), buffer=12)
    stored = keys(found)
    assert stored == sorted(stored)
    first, again, other = (keys(found.read(0, 1, seed)) for seed in ("0 0 0", "0 0 0", "0 1 0"))
    assert first == again != other
    assert first != stored
    order = [int(key) // 6 for key in keys(stream(found.names, buffer=1).read(0, 1, "0 0 0"))]
    assert order != sorted(order)  # a buffer of one leaves only the shards to shuffle
    assert sum(a != b for a, b in itertools.pairwise(order)) == 3


@pytest.mark.parametrize("buffer", [1, 5, 16])
def test_no_more_than_the_buffer_is_held(tmp_path, monkeypatch, buffer):
    made = []
    whole = _Maker.sample
    monkeypatch.setattr(_Maker, "sample", lambda *args: made.append(1) or whole(*args))
    held, most = 0, 0
    samples = stream(write_shards(tmp_path, [20, 20]), buffer=buffer).read(0, 1, "0")
    for given, _ in enumerate(samples):
        held = len(made) - given
        most = max(most, held)
    assert most == buffer


def test_shards_are_found_by_path_range_glob_list_and_url(tmp_path):
    write_shards(tmp_path, [1, 1, 1])
    names = [str(tmp_path / f"train-00{i}.tar") for i in range(3)]
    start = str(tmp_path / "train-")
    assert find_shards(f"{start}{{000..002}}.tar") == tuple(names)
    assert find_shards(f"{start}*.tar") == tuple(names)
    assert find_shards([names[2], names[0]]) == (names[2], names[0])
    memory = fsspec.filesystem("memory")
    for name in names:
        memory.pipe(f"/shards/{name[-7:]}", Path(name).read_bytes())
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in names:
            archive.write(name, f"in/{name[-13:]}")
    url = f"zip://in/train-00*.tar::file://{tmp_path}/all.zip"
    for stated in ("memory://shards/*.tar", "memory://shards/{000..002}.tar", url):
        assert keys(stream(stated)) == ["0000", "0001", "0002"]
    assert next(iter(stream(url))).origin == "train-000.tar, sample 0000"


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("{}/gone.tar", "The shard .*gone.tar does not exist. Correct `shards`"),
        ("{}/train-{{000..003}}.tar", r"train-001.tar, of .*\{000..003\}.tar does not exist"),
        ("{}/x-*.tar", r"No shard is called .*x-\*.tar"),
        ("memory://nix/a.tar", "memory://nix/a.tar does not exist"),
        ("nosuch://a.tar", "nosuch://a.tar cannot be read: .*Protocol not known: nosuch"),
        ("{}/train-{{0..", "has a brace that is not closed"),
        (["{0}/train-000.tar", "{0}/train-*.tar"], "train-000.tar is named twice"),
    ],
)
def test_shards_that_are_not_there(tmp_path, stated, message):
    write_shards(tmp_path, [1])
    named = [s.format(tmp_path) for s in ([stated] if isinstance(stated, str) else stated)]
    with pytest.raises(DataError, match=message):
        find_shards(named[0] if isinstance(stated, str) else named)


def test_cut_shards_are_never_taken_for_whole(tmp_path):
    """At any place, between files too, where tarfile sees nothing wrong."""
    (name,) = write_shards(tmp_path, [3])
    whole = Path(name).read_bytes()
    used = len(whole.rstrip(b"\0"))
    cut = tmp_path / "cut.tar"
    for length in [*range(512, used, 512), *range(700, used, 1111)]:
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut.tar is cut off or no tar: .*\. Write or copy"):
            list(read_shard(str(cut)))
    packed = gzip.compress(whole, 1)
    for length in range(40, len(packed) - 1, 301):
        (tmp_path / "cut.tar.gz").write_bytes(packed[:length])
        with pytest.raises(DataError, match=r"cut.tar.gz (is cut off|cannot be read): "):
            list(read_shard(str(tmp_path / "cut.tar.gz")))
    (tmp_path / "whole.tgz").write_bytes(packed)
    assert [key for key, _ in read_shard(str(tmp_path / "whole.tgz"))] == ["0000", "0001", "0002"]


def test_shards_that_are_none(tmp_path):
    (tmp_path / "text.tar").write_bytes(b"no tar at all" * 99)
    with pytest.raises(DataError, match=r"text.tar is cut off or no tar: "):
        list(stream(str(tmp_path / "text.tar")))
    write_shard(tmp_path / "empty.tar", [])
    with pytest.raises(DataError, match=r"empty.tar holds no samples. Remove it from `shards`"):
        list(stream(str(tmp_path / "empty.tar")))
    write_shard(tmp_path / "twice.tar", [("a", {"png": b"", "cls": b"0"}), ("a", {"png": b""})])
    with pytest.raises(DataError, match=r"twice.tar cannot be read: a.png: duplicate file name"):
        list(stream(str(tmp_path / "twice.tar")))


@pytest.mark.parametrize(
    ("files", "label", "message"),
    [
        ({"txt": b""}, "cls", "s.tar, sample a (it has txt) has no label: none of cls is among"),
        ({"cls": b"3"}, "cls", ".cls says class 3, but `classes` names 3, which are 0 to 2"),
        (
            {"cls": b"shoe"},
            "cls",
            "label 'shoe' is not among the declared classes: bags, shirts, shoes. Did you mean "
            "'shoes'?",
        ),
        ({"cls": b" "}, "cls", "the label in .cls is empty; fill it in"),
        ({"cls": b"\xff"}, "cls", ".cls is no UTF-8"),
        ({"json": b"{"}, ShardField("json", "kind"), ".json is no JSON: Expecting property name"),
        ({"json": b"{}"}, ShardField("json", "kind"), "the label in .json is empty"),
    ],
)
def test_labels_that_are_none_are_named(tmp_path, files, label, message):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        one(tmp_path, files, fields={"image": "png"}, label=label)
    assert "s.tar, sample a" in str(caught.value)


def test_fields_of_another_kind_are_named(tmp_path):
    files = {"json": b'{"a": 3, "b": {"c": 1}}', "cls": b"0"}
    for field, message in (
        (ShardField("json", "a"), "field 'text': key 'a' of .json is int, no text. Correct `field"),
        (ShardField("json"), "field 'text': .json is dict, no text"),
    ):
        with pytest.raises(DataError, match=re.escape(f"s.tar, sample a: {message}")):
            one(tmp_path, files, fields={"text": field})
    with pytest.raises(DataError, match=r"sample a: .txt is no UTF-8: .* Write the shard again"):
        one(tmp_path, {"txt": b"\xff", "cls": b"0"}, fields={"text": "txt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": {}}, "`shards` has the keys []; give train, val and test"),
        ({"shards": {"dev": "x"}}, "`shards` has the keys ['dev']"),
        ({"fields": {}}, "`fields` is empty"),
        ({"classes": None}, "`classes` is needed: a stream is not read to find them"),
        ({"task": "regression"}, "`classes` does not go with task: regression"),
        ({"classes": ["a", "a"]}, "`classes` names one twice: ['a', 'a']"),
        ({"samples_per_epoch": 0}, "`samples_per_epoch` is 0; it must be at least 1"),
        ({"buffer": 0}, "`buffer` is 0; it must be at least 1"),
        ({"fields": {"photo": "png"}}, "Field 'photo': 'photo' is no modality. Write photo: {ext:"),
        ({"fields": {"text": {"ext": "txt", "key": "a"}}}, "`key` and `columns` are those of a ."),
        ({"fields": {"image": {"ext": "json", "key": "a"}}}, "image is a file of its own, not in"),
        ({"fields": {"table": "csv"}}, "a table is in a .json; write ext: json"),
        ({"fields": {"vector": "txt"}}, "a vector is a .npy or a list in a .json"),
        ({"fields": {"text": {"ext": "json", "columns": ["a"]}}}, "only a table has `columns`"),
    ],
)
def test_arguments_that_contradict_each_other(change, message):
    given = {"shards": {"train": "x"}, "fields": FIELDS, "label": "cls", "classes": [*KINDS]}
    with pytest.raises(ConfigError, match=re.escape(message)):
        WebDataset(**{**given, **change})


def test_splits_that_there_are_not():
    made = WebDataset({"test": "x.tar"}, FIELDS, "cls", classes=[*KINDS])
    with pytest.raises(DataError, match="`shards` names none to train on"):
        made.split("train")
    with pytest.raises(ConfigError, match="give `fusionkit predict` a table with the same fields"):
        made.split("predict")
    with pytest.raises(DataError, match="`label` is not set, but training and testing need it"):
        WebDataset({"train": "x.tar"}, FIELDS, classes=[*KINDS]).split("train")
