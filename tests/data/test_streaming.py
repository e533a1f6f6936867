"""Streams into batches."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from served import serve
from shard_files import KINDS, files_of, write_shard, write_shards, write_table

from fusionkit.cli import main
from fusionkit.config.schema import LoaderConfig
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.data.loading import make_loader
from fusionkit.data.streaming import StreamLoader, share
from fusionkit.data.table import Table
from fusionkit.data.values import RoleInput
from fusionkit.data.webdataset import WebDataset
from fusionkit.encoders.images import ImagePreprocessor
from fusionkit.errors import CheckpointError, ConfigError, DataError
from fusionkit.training.assemble import read_splits
from fusionkit.training.run import prepare

FIELDS = {"image": "png", "text": "txt"}


class Letters:
    """Preprocessor of texts: their numbers."""

    def __call__(self, raw):
        return torch.tensor([float(raw.split()[-1])])

    def collate(self, rows):
        return {"x": torch.stack(list(rows))}


def roles(augment=None, **kwargs):
    pictures = ImagePreprocessor((8, 8), (0.5,) * 3, (0.5,) * 3, augment=augment)
    texts = RoleInput("complement", "text", Letters(), **kwargs)
    return [RoleInput("main", "image", pictures), texts]


def data(names, **kwargs):
    return WebDataset({"train": names, "val": names}, FIELDS, "cls", classes=[*KINDS], **kwargs)


def loader(dataset, split="val", workers=0, size=4, reads=None, train=None):
    found = make_loader(
        dataset.split(split),
        reads or roles(),
        "single_label",
        3,
        LoaderConfig(batch_size=size, workers=workers),
        train=split == "train" if train is None else train,
        seed=0,
    )
    assert isinstance(found, StreamLoader) or isinstance(dataset, Table)
    return found


def numbers(batches):
    """Which sample each row of each batch is."""
    return [batch["inputs"]["complement"]["x"][:, 0].long().tolist() for batch in batches]


def place(monkeypatch, rank, world):
    monkeypatch.setattr("fusionkit.data.streaming.process_place", lambda: (rank, world))


@pytest.mark.parametrize("sizes", [[11], [4, 3, 4]])
def test_evaluation_has_the_batches_of_a_table(tmp_path, sizes):
    write_table(tmp_path, 11)
    table = Table(
        {"train": str(tmp_path / "t.csv"), "val": str(tmp_path / "t.csv")},
        {"image": "image", "text": "text"},
        "label",
        classes=[*KINDS],
    )
    ours = list(loader(data(write_shards(tmp_path, sizes))))
    theirs = list(loader(table))
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one["target"], other["target"])
        assert torch.equal(one["index"], other["index"])
        for role in ("main", "complement"):
            for name, value in one["inputs"][role].items():
                assert torch.equal(value, other["inputs"][role][name])


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sizes", [[40], [11, 7, 9, 13]])
def test_evaluation_sees_each_sample_once_and_no_process_waits(
    tmp_path, monkeypatch, world, workers, sizes
):
    dataset = data(write_shards(tmp_path, sizes))
    seen, counts = [], []
    for rank in range(world):
        place(monkeypatch, rank, world)
        found = loader(dataset, workers=workers)
        batches = numbers(found)
        assert numbers(found) == batches  # persistent workers begin again
        seen += itertools.chain(*batches)
        counts.append(len(batches))
    assert sorted(seen) == list(range(40))
    assert len(set(counts)) == 1


def test_rows_of_an_evaluation_have_indices_of_their_own(tmp_path):
    batches = loader(data(write_shards(tmp_path, [5, 6])), workers=2)
    assert len({index for batch in batches for index in batch["index"].tolist()}) == 11


@pytest.mark.parametrize("count", range(1, 30))
@pytest.mark.parametrize("world", [1, 2, 3])
def test_share_gives_every_process_as_many_batches(count, world):
    if count < world:
        message = f"{count} samples of a reader cannot be shared by {world} processes. Set"
        with pytest.raises(DataError, match=message):
            list(share(range(count), 4, 0, world))
        return
    shares = [list(share(range(count), 4, rank, world)) for rank in range(world)]
    assert sorted(itertools.chain(*itertools.chain(*shares))) == list(range(count))
    assert len({len(batches) for batches in shares}) == 1
    sizes = [len(batch) for batches in shares for batch in batches]
    assert min(sizes) >= 1
    assert max(sizes) <= 5


@pytest.mark.parametrize("workers", [0, 2])
def test_training_without_a_length_reads_each_sample_once_in_a_new_order(tmp_path, workers):
    found = loader(data(write_shards(tmp_path, [9, 8, 7]), buffer=6), "train", workers)
    with pytest.raises(TypeError):
        len(found)
    next(iter(found))  # an epoch that was left
    epochs = []
    for epoch in (0, 0, 1):
        found.dataset.epoch = epoch
        epochs.append(numbers(found))
        assert sorted(itertools.chain(*epochs[-1])) == list(range(24))
    assert epochs[0] == epochs[1] != epochs[2]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("length", [8, 24, 100])
def test_a_stated_epoch_has_full_batches_and_as_many_in_every_process(
    tmp_path, monkeypatch, workers, length
):
    dataset = data(write_shards(tmp_path, [6, 6, 6, 6]), samples_per_epoch=length, buffer=6)
    by_rank = []
    for rank in range(2):
        place(monkeypatch, rank, 2)
        found = loader(dataset, "train", workers)
        batches = numbers(found)
        assert len(batches) == len(found) == -(-length // 8)
        assert all(len(batch) == 4 for batch in batches)
        by_rank.append(set(itertools.chain(*batches)))
    if length == 24 and not workers:  # no reader had to begin again
        assert not by_rank[0] & by_rank[1]


def test_workers_read_over_http_what_the_first_process_looked_up(tmp_path):
    write_shards(tmp_path, [5, 6])
    with serve(tmp_path) as address:
        dataset = data(f"{address}/train-{{000..001}}.tar")
        assert sorted(itertools.chain(*numbers(loader(dataset, workers=2)))) == list(range(11))
        with pytest.raises(DataError, match=f"The shard {address}/x.tar does not exist"):
            data(f"{address}/x.tar").split("val")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_where_it_stopped(tmp_path, workers):
    dataset = data(write_shards(tmp_path, [9, 8, 7]), samples_per_epoch=24, buffer=6)
    first, second = (loader(dataset, "train", workers) for _ in range(2))
    first.set_epoch(1)
    batches = iter(first)
    begun = numbers(next(batches) for _ in range(2))
    state = first.state_dict()
    assert state == {"epoch": 1, "batches": 2, "processes": 1, "workers": workers}
    second.load_state_dict(state)
    assert len(begun) + len(rest := numbers(second)) == 6
    assert begun + rest == begun + numbers(batches)
    again = loader(dataset, "train", 1)
    with pytest.raises(CheckpointError, match=f"{workers} workers read, .* Set loader.workers to "):
        again.load_state_dict(state)


def test_what_is_random_of_a_row_follows_seed_epoch_and_sample(tmp_path):
    reads = roles("crop", may_lack=True, dropout=0.5)
    dataset = data(write_shards(tmp_path, [9, 8]))
    dropped = []
    for workers, epoch in ((0, 0), (2, 0), (0, 1)):
        found = loader(dataset, "train", workers, 1, reads)
        found.dataset.epoch = epoch
        lacking = [b["target"].item() for b in found if "x" not in b["inputs"]["complement"]]
        dropped.append(sorted(lacking))
    assert dropped[0] == dropped[1] != dropped[2]
    assert 0 < len(dropped[0]) < 17


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_names_shard_and_key_or_is_missing(tmp_path, workers):
    broken = {**files_of(1), "png": b"no picture"}
    write_shard(tmp_path / "s.tar", [("a", files_of(0)), ("b", broken), ("c", files_of(2))])
    dataset = data(str(tmp_path / "s.tar"))
    message = (
        r"s.tar, sample b: field 'image' \(of 10 bytes\) cannot be read: The image of 10 bytes "
        r"cannot be read: .* missing.allow: \[main\], missing.unreadable: true"
    )
    with pytest.raises(DataError, match=message):
        list(loader(dataset, workers=workers))
    lenient = [RoleInput("main", "image", roles()[0].preprocessor, may_lack=True, unreadable=True)]
    found = loader(dataset, workers=workers, reads=lenient)
    present = torch.cat([b["inputs"]["main"]["fusionkit.present"] for b in found])
    assert sorted(present.tolist()) == [False, True, True]
    assert found.dataset.unreadable.describe("val") == [
        "val: unreadable and taken for missing, field 'image': 1 (s.tar, sample b)"
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_missing_names_shard_and_key_or_has_a_stand_in(tmp_path, workers):
    lacking = {ext: content for ext, content in files_of(1).items() if ext != "txt"}
    write_shard(tmp_path / "s.tar", [("a", files_of(0)), ("b", lacking)])
    dataset = data(str(tmp_path / "s.tar"))
    with pytest.raises(DataError, match=r"s.tar, sample b \(it has cls, json, png\): field 'text'"):
        list(loader(dataset, workers=workers))
    found = loader(dataset, workers=workers, reads=roles(may_lack=True))
    present = torch.cat([b["inputs"]["complement"]["fusionkit.present"] for b in found])
    assert sorted(present.tolist()) == [False, True]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_shards_arrive_as_they_are(tmp_path, workers, split):
    names = write_shards(tmp_path, [3, 3])
    Path(names[1]).write_bytes(Path(names[1]).read_bytes()[:4000])
    with pytest.raises(DataError, match=r"^\S*train-001.tar is cut off or no tar: .* it again\.$"):
        list(loader(data(names), split, workers))


def test_a_reader_without_samples_says_so(tmp_path):
    dataset = data(write_shards(tmp_path, [1]), samples_per_epoch=4)
    with pytest.raises(DataError, match="Reader 2 of 2 finds no sample: .* Set loader.workers"):
        list(loader(dataset, "train", workers=2, size=1))


# What runs of it.

CONFIG = """
main: {name: bert, model: fusionkit/claims-transformer}
complement: {name: timm_vit, model: fusionkit/digits-vit}
complement_transfer: frozen
fusion: {name: conditional_prompt, experts: 2, prompt_length: 1, mapper_dim: 8}
data:
  name: webdataset
  shards: {train: "train-*.tar", val: val-000.tar, test: "test-{000..001}.tar"}
  fields: {image: png, text: {ext: json, key: title}}
  label: {ext: json, key: kind}
  classes: [bags, shirts, shoes]
loader: {batch_size: 4, workers: 0}
trainer: {max_epochs: 2, accelerator: cpu, progress_bar: false}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path, [8, 9])
    write_shards(tmp_path, [7], "val")
    write_shards(tmp_path, [3, 4], "test")
    (tmp_path / "c.yaml").write_text(CONFIG)
    return yaml.safe_load(CONFIG)


def test_fit_and_test_and_predict(config, tmp_path, capsys):
    assert main(["check", "--config", "c.yaml"]) == 0
    assert "train (a stream), val (a stream), test (a stream)" in capsys.readouterr().out
    assert main(["fit", "--config", "c.yaml", "--loader.workers", "2"]) == 0
    out = capsys.readouterr().out
    assert "Samples: train (a stream), val (a stream), test (a stream)." in out
    told = json.loads((tmp_path / "runs/c/000/metrics.json").read_text())["metrics"]
    assert main(["test", "--ckpt_path", "runs/c"]) == 0
    shown = dict(re.findall(r"(test/\S+) +(\S+)", capsys.readouterr().out))
    assert float(shown["test/accuracy"]) == pytest.approx(told["test/accuracy"], abs=1e-4)
    assert main(["validate", "--ckpt_path", "runs/c"]) == 0
    assert main(["fit", "--config", "c.yaml", "--ckpt_path", "last", "--trainer.max_epochs=3"]) == 0
    write_table(tmp_path, 3)
    words = ["--ckpt_path", "runs/c", "--input", "t.csv", "--output", "p.csv"]
    assert main(["predict", *words]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 4
    assert main(["compare", "--config", "c.yaml", "--only", "late_concat", "--steps", "1"]) == 0


def test_a_run_on_shards_is_a_run_on_the_same_table(config, tmp_path, capsys):
    """Trained alike they cannot be, but what is trained is tested alike."""
    write_table(tmp_path, 7)
    assert main(["fit", "--config", "c.yaml", "--trainer.max_epochs=1"]) == 0
    capsys.readouterr()
    as_table = "{name: table, files: {test: t.csv}, fields: {image: image, text: text}, "
    as_table += "label: label, classes: [bags, shirts, shoes]}"
    found = []
    for words in ([], ["--data", as_table]):
        assert main(["test", "--ckpt_path", "runs/c", *words]) == 0
        found.append(re.findall(r"test/\S+ +\S+", capsys.readouterr().out))
    assert found[0] == found[1]
    assert len(found[0]) > 2


def test_a_stated_epoch_serves_the_cosine_schedule(config, tmp_path):
    words = ["--optimizer.schedule=cosine", "--data.samples_per_epoch=16"]
    words += ["--trainer.log_every_n_steps=1"]
    assert main(["fit", "--config", "c.yaml", *words]) == 0
    rows = (tmp_path / "runs/c/000/metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    column = next(i for i, name in enumerate(names) if name.startswith("lr-"))
    rates = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    assert len(rates) == 8  # two epochs of four steps
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(rates[0] * 0.5 * (1 + math.cos(7 / 8 * math.pi)))


def with_(config, **changes):
    return experiment_from_mapping({**config, "name": "c"}, overrides=changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer": {"schedule": "cosine"}},
            "optimizer.schedule: cosine has to know how long training is, and nobody knows how "
            "many samples this stream has; set data.samples_per_epoch, or trainer.limit_train",
        ),
        (
            {"trainer": {"save_every_n_steps": 2}},
            "trainer.save_every_n_steps: within an epoch only a stream with a stated epoch",
        ),
        (
            {"loader": {"shots": 4, "balanced": True}},
            "loader.shots and loader.balanced: batches of a stream are samples as they come",
        ),
        ({"cache": {"roles": "all"}}, "cache: what is in it is looked up before training, and a s"),
        ({"trainer": {"limit_val_batches": 0.5}}, "trainer.limit_val_batches: 0.5 is a share of"),
        (
            {"missing": {"allow": ["complement"], "mask": "m.csv"}},
            "missing.mask: a mask numbers the samples of a split, and a stream has no numbers",
        ),
    ],
)
def test_what_only_counted_samples_can_give_is_refused(config, changes, message):
    experiment = with_(config, **changes)
    dataset = experiment.data.build()
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_splits(experiment, dataset, ("train", "val", "test"))


def test_a_number_of_batches_will_do_for_the_cosine(config):
    limits = {"optimizer": {"schedule": "cosine"}, "trainer": {"limit_train_batches": 2}}
    experiment = with_(config, **limits)
    assert len(read_splits(experiment, experiment.data.build(), ("train", "val"))) == 2


def test_masks_are_refused(config, capsys):
    assert main(["mask", "--config", "c.yaml", "--rate", "0.5", "--output", "m.csv"]) == 2
    assert "webdataset reads them as a stream, which has no numbers" in capsys.readouterr().err


def test_several_processes_need_a_length(config, capsys):
    words = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    assert main(["fit", "--config", "c.yaml", *words]) == 2
    assert "2 processes have to end an epoch together" in capsys.readouterr().err


def test_two_processes_train_and_test_one_model(config, tmp_path):
    words = "--trainer.devices 2 --trainer.strategy ddp --data.samples_per_epoch 17"
    command = [sys.executable, "-m", "fusionkit", "fit", "--config", "c.yaml", *words.split()]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FUSIONKIT", "PYTEST"))}
    done = subprocess.run(
        command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads((tmp_path / "runs/c/000/metrics.json").read_text())["metrics"]
    alone = subprocess.run(
        [sys.executable, "-m", "fusionkit", "test", "--ckpt_path", "runs/c"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    shown = dict(re.findall(r"(test/\S+) +(\S+)", alone.stdout))
    assert float(shown["test/accuracy"]) == pytest.approx(told["test/accuracy"], abs=1e-4)


def test_regression_and_statistics_read_the_stream_once_more(config):
    price = {"ext": "json", "key": "deep.age"}
    table = {"ext": "json", "key": "deep", "columns": ["age"], "modality": "table"}
    stated = {**config["data"], "label": price, "classes": None, "task": "regression"}
    stated["fields"] = {"text": "txt", "table": table}
    complement = {"name": "table", "numeric": ["age"]}
    experiment = with_({**config, "data": stated, "complement": complement})
    _, _, model, _ = prepare(experiment, {})
    ages = torch.arange(17.0)
    scale = model.fusion.encoders["complement"].encoder.backbone.scale
    for mean, std in ((model.head.target_mean, model.head.target_std), (scale.mean, scale.std)):
        assert mean.item() == pytest.approx(ages.mean().item())
        assert std.item() == pytest.approx(ages.std(correction=0).item())


def test_python_of_the_page_writes_shards(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data", 5)
    table = (tmp_path / "data/t.csv").read_text().replace("text,label", "title,category")
    (tmp_path / "data/products.csv").write_text(table)
    page = (root / "docs/shards.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(compile(block, "shards.md", "exec"), {})
    fields = {"image": "png", "text": {"ext": "json", "key": "title"}}
    label = {"ext": "json", "key": "kind"}
    found = WebDataset({"val": "data/train-*.tar"}, fields, label, classes=[*KINDS]).split("val")
    assert [sample.target for sample in found] == [0, 1, 2, 0, 1]
    assert next(iter(found)).fields["text"] == "number 0"
