import os
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image

from fusionkit.config.schema import LoaderConfig
from fusionkit.data.base import Sample
from fusionkit.data.fields import pick_field
from fusionkit.data.loading import FusionDataset, make_loader
from fusionkit.data.values import RoleInput
from fusionkit.errors import ConfigError, DataError, MissingExtraError


class Pixels:
    def __call__(self, raw):
        with Image.open(raw) as image:
            return float(image.convert("L").getpixel((0, 0)))

    def collate(self, rows):
        return {"pixels": torch.tensor(rows)}


class Length:
    def __call__(self, raw):
        return len(raw)

    def collate(self, rows):
        return {"length": torch.tensor(rows)}


class NeedsExtra(Length):
    def __call__(self, raw):
        raise MissingExtraError("This needs 'soundfile', which is not installed.")


ROLES = (RoleInput("main", "image", Pixels()), RoleInput("complement", "text", Length()))


def samples(tmp_path, count=5, target=lambda i: i % 3):
    rows = []
    for i in range(count):
        path = tmp_path / f"{i}.png"
        Image.new("L", (2, 2), i).save(path)
        fields = {"image": str(path), "text": "x" * i}
        rows.append(Sample(str(i), fields, target(i), f"t.csv, row {i + 1}"))
    return rows


def loader(rows, *, task="single_label", outputs=3, train=False, seed=0, roles=ROLES, **config):
    config = LoaderConfig(**{"batch_size": 2, "workers": 0} | config)
    return make_loader(rows, roles, task, outputs, config, train, seed)


def test_rows_carry_inputs_target_and_index(tmp_path):
    row = FusionDataset(samples(tmp_path), ROLES)[3]
    inputs = {"main": 3.0, "complement": 3}
    assert row == {"inputs": inputs, "target": 0, "index": 3, "unreadable": []}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_in_order(tmp_path, workers):
    first, second, last = loader(samples(tmp_path), workers=workers)
    assert second["inputs"]["main"]["pixels"].tolist() == [2, 3]
    assert second["inputs"]["complement"]["length"].tolist() == [2, 3]
    assert (first["target"].tolist(), first["target"].dtype) == ([0, 1], torch.long)
    assert (last["index"].tolist(), last["index"].dtype) == ([4], torch.long)


def test_targets_by_task(tmp_path):
    rows = samples(tmp_path, 2, lambda i: [(), (0, 2)][i])
    (batch,) = loader(rows, task="multi_label")
    assert batch["target"].tolist() == [[0, 0, 0], [1, 0, 1]]
    (batch,) = loader(samples(tmp_path, 2, float), task="regression", outputs=1)
    assert (batch["target"].tolist(), batch["target"].dtype) == ([0, 1], torch.float)
    (batch,) = loader(samples(tmp_path, 2, lambda i: None))
    assert batch["target"] is None


def test_training_order_is_seeded_and_changes_with_the_epoch(tmp_path):
    rows = samples(tmp_path, 20)
    orders = []
    for seed in (1, 1, 2):
        batches = loader(rows, train=True, seed=seed)
        epochs = []
        for epoch in range(2):
            batches.set_epoch(epoch)
            epochs.append([i for b in batches for i in b["index"].tolist()])
        orders.append(epochs)
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][0] != orders[0][1]
    assert all(sorted(epoch) == list(range(20)) for epoch in orders[0])


def test_evaluation_has_its_own_batch_size(tmp_path):
    rows = samples(tmp_path)
    assert [len(loader(rows, train=t, eval_batch_size=5)) for t in (True, False)] == [3, 1]


def test_workers_default_to_the_cores_of_this_process(tmp_path):
    expected = min(8, len(os.sched_getaffinity(0)))
    assert loader(samples(tmp_path), workers=None).num_workers == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_value_is_reported_with_its_row(tmp_path, workers):
    rows = samples(tmp_path)
    path = rows[3].fields["image"]
    with open(path, "w") as file:
        file.write("no image")
    with pytest.raises(DataError) as caught:
        list(loader(rows, workers=workers))
    message = str(caught.value)
    assert message.startswith(
        f"t.csv, row 4: field 'image' ({path!r}) cannot be read: UnidentifiedImageError: "
    )
    assert message.endswith(
        "Repair what it holds, remove the row, or take it for missing: "
        "missing.allow: [main], missing.unreadable: true."
    )
    assert "Traceback" not in message


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_library_is_not_the_fault_of_a_row(tmp_path, workers):
    roles = [RoleInput("main", "text", NeedsExtra())]
    with pytest.raises(MissingExtraError, match=r"^This needs 'soundfile'"):
        list(loader(samples(tmp_path), roles=roles, workers=workers))


def test_long_values_are_cut_in_messages():
    row = Sample("1", {"text": 5, "image": "no/" * 100}, 0, "t.csv, row 1")
    with pytest.raises(
        DataError, match=r"\('(no/){66}n\.\.\.\) cannot be read: FileNotFoundError"
    ) as caught:
        FusionDataset([row], ROLES[:1])[0]
    assert isinstance(caught.value.__cause__, OSError)


def test_nothing_to_train_on():
    with pytest.raises(DataError, match="training split is empty"):
        loader([], train=True)
    assert list(loader([])) == []


class Noise(Length):
    """Augmentation that draws from all three sources of randomness."""

    def __call__(self, raw):
        return torch.rand(()).item() + random.random() + np.random.rand()

    def collate(self, rows):
        return {"noise": torch.tensor(rows, dtype=torch.float64)}


def noise(rows, epoch=0, **config):
    made = loader(rows, train=True, roles=[RoleInput("main", "text", Noise())], **config)
    made.set_epoch(epoch)
    return drawn(made)


def drawn(batches):
    return [
        (i, x)
        for b in batches
        for i, x in zip(b["index"].tolist(), b["inputs"]["main"]["noise"].tolist(), strict=True)
    ]


def test_augmentation_depends_on_the_sample_and_the_epoch_not_on_workers(tmp_path):
    rows = samples(tmp_path, 12)
    alone = noise(rows, workers=0)
    assert noise(rows, workers=1) == noise(rows, workers=2) == alone
    assert dict(noise(rows, batch_size=5)) == dict(alone)
    other = dict(noise(rows, epoch=1))
    assert all(value != other[index] for index, value in alone)
    assert len({value for _, value in alone}) == 12


def test_workers_that_outlive_an_epoch_draw_what_new_ones_would(tmp_path):
    rows = samples(tmp_path, 12)
    made = loader(rows, train=True, roles=[RoleInput("main", "text", Noise())], workers=2)
    next(iter(made))  # an epoch that was left
    for epoch in (1, 0):
        made.set_epoch(epoch)
        assert drawn(made) == noise(rows, epoch)


def test_a_sample_that_is_drawn_again_is_augmented_anew(tmp_path):
    rows = samples(tmp_path, 12, lambda i: int(i == 0))
    found = noise(rows, balanced=True)
    assert sum(index == 0 for index, _ in found) == 6
    assert len({value for _, value in found}) == 12


@pytest.mark.parametrize("train", [True, False])
def test_batches_by_length_hold_every_sample_once(tmp_path, train):
    rows = [
        Sample(str(i), {"text": "x" * (i * 37 % 50)}, i % 3, f"t.csv, row {i + 1}")
        for i in range(50)
    ]
    roles = [RoleInput("complement", "text", Measured())]
    made = loader(rows, train=train, roles=roles, batch_size=5, bucket_by_length=True)
    batches = list(made)
    assert sorted(i for b in batches for i in b["index"].tolist()) == list(range(50))
    assert len(batches) == len(made) == 10
    spread = [b["inputs"]["complement"]["length"] for b in batches]
    assert sum(int(x.max() - x.min()) for x in spread) < 50 * (4 if train else 1)


class Measured(Length):
    def length(self, raw):
        return len(raw)


def test_budgets_count_every_role_and_blanks(tmp_path):
    texts = ["x" * 9, "", "x" * 4, None, "x"] * 4
    rows = [
        Sample(str(i), {"text": text, "other": "y" * (i % 6)}, i % 3, f"t.csv, row {i + 1}")
        for i, text in enumerate(texts)
    ]
    roles = [
        RoleInput("main", "text", Measured(), may_lack=True, blank="zzz"),
        RoleInput("complement", "other", Measured()),
    ]
    for train in (True, False):
        batches = list(loader(rows, train=train, roles=roles, tokens_per_batch=30))
        assert len(batches) > 1
        for batch in batches:
            main, other = (batch["inputs"][r]["length"] for r in ("main", "complement"))
            assert main.min() >= 1  # a blank has three
            assert len(main) * (main.max() + other.max()) <= 30
    assert len(list(loader(rows, roles=roles, tokens_per_batch=30, eval_batch_size=20))) == 1


def test_a_sample_over_the_budget_is_named(tmp_path):
    roles = [RoleInput("complement", "text", Measured())]
    with pytest.raises(DataError, match=r"^t.csv, row 5 has 4 tokens, more than loader.tokens_per"):
        loader(samples(tmp_path), roles=roles, tokens_per_batch=3)


class Vectors:
    """What a cache has of each sample: one vector."""

    padded = False

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(2)

    def collate(self, rows) -> dict[str, torch.Tensor]:
        return {"pooled": torch.stack(rows)}


@pytest.mark.parametrize("setting", [{"bucket_by_length": True}, {"tokens_per_batch": 64}])
def test_what_has_no_length_cannot_be_bucketed(tmp_path, setting):
    (key,) = setting
    message = rf"^loader.{key}: nothing that .* has a length: main \(image\), complement \(text\)\."
    with pytest.raises(ConfigError, match=message):
        loader(samples(tmp_path), train=True, **setting)


def test_one_vector_of_a_text_in_the_cache_has_no_length(tmp_path):
    roles = [RoleInput("complement", "text", Measured(), stored=Vectors())]
    with pytest.raises(
        ConfigError, match=r"length: complement \(text, from the cache\)\. Leave it"
    ):
        loader(samples(tmp_path), train=True, roles=roles, bucket_by_length=True)


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_only_classes_can_be_balanced(tmp_path, task):
    with pytest.raises(ConfigError, match=f"balanced: samples of a {task} task have no class"):
        loader(samples(tmp_path), task=task, train=True, balanced=True)


def test_evaluation_does_not_ask_a_server_for_lengths():
    rows = [Sample("1", {"text": "https://example.org/1.wav"}, 0, "t.csv, row 1")]
    made = loader(rows, roles=[RoleInput("complement", "text", Measured())])
    assert made.batch_sampler.lengths is None


FIELDS = {"title": "text", "photo": "image", "summary": "text"}


def test_field_is_the_only_one_of_its_modality_or_the_one_asked_for():
    assert pick_field(FIELDS, "image", None, "main 'timm_vit'") == "photo"
    assert pick_field(FIELDS, "text", "summary", "complement 'bow'") == "summary"


@pytest.mark.parametrize(
    ("modality", "asked", "message"),
    [
        (
            "text",
            "photo",
            "complement 'bow' reads text, but field 'photo' is image; text fields: title, summary. "
            "Set complement_field.",
        ),
        (
            "text",
            None,
            "complement 'bow' reads text, of which there are several; text fields: title, summary. "
            "Set complement_field.",
        ),
        ("text", "titel", "there is no field 'titel'. Did you mean 'title'? text fields: title, "),
        ("audio", None, "reads audio, but the data has no such field; fields: title (text), photo"),
    ],
)
def test_field_that_does_not_fit(modality, asked, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        pick_field(FIELDS, modality, asked, "complement 'bow'")


def test_setting_is_named_after_the_role():
    with pytest.raises(ConfigError, match=r"Set complement_2_field\."):
        pick_field(FIELDS, "text", None, "complement_2 'bow'")
