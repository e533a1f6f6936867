"""Training, testing and predicting where samples lack a field."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fusionkit
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.encoders.base import PRESENT
from fusionkit.errors import CheckpointError, ConfigError, DataError
from fusionkit.training.check import check
from fusionkit.training.evaluate import evaluate
from fusionkit.training.masking import make_mask
from fusionkit.training.run import RunResult, fit
from fusionkit.training.task import FusionTask

ALLOWED = {"allow": ["complement"]}
IMAGE = {"image": Image.new("L", (28, 28))}


def experiment(config: dict, **sections: Any):
    merged = {**config}
    for key, value in sections.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return experiment_from_mapping(merged)


def run(config: dict, ckpt_path: str | None = None, **sections: Any) -> RunResult:
    return fit(experiment(config, **sections), ckpt_path)


def raw(count: int = 6) -> list[dict]:
    return [{"a": torch.randn(24).tolist(), "b": torch.randn(6).tolist()} for _ in range(count)]


def test_samples_that_lack_a_field_are_counted_and_trained_on(tiny_config, capsys):
    result = run(tiny_config, data={"lack": "b"}, missing=ALLOWED)
    printed = capsys.readouterr().out
    assert "train: complement (b) missing in 22 of 64 samples" in printed
    assert "test: complement (b) missing in 6 of 16 samples" in printed
    assert "stand-ins" in printed
    saved = load_file(result.folder / "model.safetensors")["fusion.stand_ins.complement"]
    assert saved.shape == (5,)
    assert evaluate(str(result.folder), "test") == pytest.approx(result.metrics)


def test_nothing_is_said_of_what_nobody_lacks(tiny_config, capsys):
    run(tiny_config, missing=ALLOWED)
    assert "missing in" not in capsys.readouterr().out


def test_the_stand_in_is_trained(tiny_config):
    trained = run(tiny_config, data={"lack": "b"}, missing=ALLOWED).folder
    untouched = run(tiny_config, missing=ALLOWED).folder
    values = [
        load_file(folder / "model.safetensors")["fusion.stand_ins.complement"]
        for folder in (trained, untouched)
    ]
    assert not torch.allclose(*values, atol=1e-4)


def test_a_run_that_allows_nothing_is_as_before(tiny_config):
    folder = run(tiny_config).folder
    assert not any("stand_ins" in name for name in load_file(folder / "model.safetensors"))
    with pytest.raises(CheckpointError, match=r"missing \(fusion.stand_ins.complement\)"):
        evaluate(str(folder), "test", (), [("missing.allow", "[complement]")])


def test_allowing_a_missing_field_leaves_the_other_weights_as_they_start(tiny_config):
    folders = [
        run(tiny_config, optimizer={"lr": 0.0}, **sections).folder
        for sections in ({}, {"missing": ALLOWED})
    ]
    plain, allowed = (load_file(folder / "model.safetensors") for folder in folders)
    assert set(allowed) - set(plain) == {"fusion.stand_ins.complement"}
    assert all(torch.equal(value, allowed[name]) for name, value in plain.items())


def test_a_missing_field_is_refused_before_training(tiny_config, tmp_path):
    message = r"tiny train, row 1: field 'b' is missing in 22 samples, this one first, and comple"
    with pytest.raises(DataError, match=message):
        run(tiny_config, data={"lack": "b"})
    with pytest.raises(DataError, match=r"missing.allow: \[complement, main\]"):
        run(tiny_config, data={"lack": "a"}, missing=ALLOWED)
    assert not (tmp_path / "runs").exists()


def test_check_says_so_as_well(tiny_config):
    assert "field 'b' is missing" in check(experiment(tiny_config, data={"lack": "b"})).data
    report = check(experiment(tiny_config, data={"lack": "b"}, missing=ALLOWED))
    assert report.data == {"train": 64, "val": 16, "test": 16}
    assert [c.trained for c in report.counts if c.part == "stand-ins"] == [5]


def test_a_field_that_no_encoder_in_use_reads_may_be_missing(tiny_config):
    assert run(tiny_config, data={"lack": "b"}, fusion="main_only", complement=None).metrics


def test_a_baseline_that_needs_the_field_is_named_before_the_main_run(tiny_config, tmp_path):
    other = {"main_field": "b", "main": {"dim": 6}, "complement": None, "fusion": "main_only"}
    with pytest.raises(DataError, match="field 'b' is missing in 22 samples, .* and main reads it"):
        run(tiny_config, data={"lack": "b"}, missing=ALLOWED, baselines={"b only": other})
    assert not (tmp_path / "runs").exists()


def test_a_main_encoder_that_has_no_blank_is_refused_early(tiny_config):
    refused = experiment(tiny_config, missing={"allow": ["main"]})
    for ways in (fit, check):
        with pytest.raises(ConfigError, match="main encoder of modality vector cannot do without"):
            ways(refused)


def test_a_continued_run_with_dropout_equals_one_without_a_break(tiny_config):
    missing = {"allow": ["complement"], "dropout": 0.5}
    whole = run(tiny_config, name="whole", missing=missing, trainer={"max_epochs": 4})
    run(tiny_config, name="halves", missing=missing, trainer={"max_epochs": 2})
    halves = run(tiny_config, "last", name="halves", missing=missing, trainer={"max_epochs": 4})
    last = [torch.load(r.folder / "last.ckpt", weights_only=True) for r in (whole, halves)]
    assert "model.fusion.stand_ins.complement" in last[0]["state_dict"]
    for name, value in last[0]["state_dict"].items():
        assert torch.equal(value, last[1]["state_dict"][name]), name
    none = run(tiny_config, name="none", missing=ALLOWED, trainer={"max_epochs": 4})
    other = torch.load(none.folder / "last.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(other["model.head.weight"], last[0]["state_dict"]["model.head.weight"])


def test_each_epoch_drops_other_fields(tiny_config, monkeypatch):
    seen = []

    def watch(self, batch, batch_idx):
        present = batch["inputs"]["complement"][PRESENT].tolist()
        seen.extend(zip([self.current_epoch] * 16, batch["index"].tolist(), present, strict=True))
        return step(self, batch, batch_idx)

    step = FusionTask.training_step
    monkeypatch.setattr(FusionTask, "training_step", watch)
    run(tiny_config, missing={**ALLOWED, "dropout": 0.5})
    first, second = ([p for e, _, p in sorted(seen) if e == epoch] for epoch in (0, 1))
    assert len(first) == len(second) == 64
    assert first != second
    assert 0.25 < sum(first) / 64 < 0.75


@pytest.mark.parametrize("workers", [0, 2])
def test_dropout_does_not_depend_on_workers(tiny_config, workers):
    missing = {"allow": ["complement"], "dropout": 0.5}
    result = run(tiny_config, missing=missing, loader={"workers": workers})
    reference = run(tiny_config, missing=missing)
    assert result.metrics == reference.metrics


def test_dropout_makes_robust(tiny_config, tmp_path):
    """Both fields say the label, the complement more clearly; then it is taken away."""
    config = {
        **tiny_config,
        "data": {"name": "tiny_data", "redundant": True, "sizes": [256, 32, 512]},
        "loader": {"batch_size": 32, "workers": 0},
        "optimizer": {"lr": 0.05},
        "trainer": {**tiny_config["trainer"], "max_epochs": 6},
    }
    mask = str(tmp_path / "all.csv")
    make_mask(experiment(config, missing=ALLOWED), mask, 1.0, splits=["test"])
    accuracy = {}
    for dropout in (0.0, 0.5):
        result = run(config, missing={**ALLOWED, "dropout": dropout})
        assert result.metrics["test/accuracy"] > 0.95
        found = evaluate(str(result.folder), "test", (), [("missing.mask", mask)])
        accuracy[dropout] = found["test/accuracy"]
    assert accuracy[0.5] > accuracy[0.0] + 0.05


def test_a_mask_is_the_same_test_again_and_again(tiny_config, tmp_path):
    folder = str(run(tiny_config, missing=ALLOWED).folder)
    written = experiment_from_mapping({**tiny_config, "missing": ALLOWED})
    masks = {}
    for rate in (0.0, 0.5, 1.0):
        masks[rate] = str(tmp_path / f"{rate}.csv")
        achieved = make_mask(written, masks[rate], rate)
        assert [(a.split, a.field, a.missing, a.total) for a in achieved] == [
            ("train", "b", 64 * rate, 64), ("val", "b", 16 * rate, 16), ("test", "b", 16 * rate, 16)
        ]  # fmt: skip
    plain = evaluate(folder, "test")
    tested = {
        rate: evaluate(folder, "test", (), [("missing.mask", m)]) for rate, m in masks.items()
    }
    assert tested[0.0] == plain
    assert tested[0.5] == evaluate(folder, "test", (), [("missing.mask", masks[0.5])])
    assert tested[0.5]["test/loss"] != plain["test/loss"] != tested[1.0]["test/loss"]

    predictor = fusionkit.load(folder)
    samples = written.data.build().split("test")
    lines = Path(masks[0.5]).read_text().splitlines()
    gone = [line.endswith(",0") for line in lines if line.startswith("test")]
    rows = [
        {**sample.fields, **({"b": None} if away else {})}
        for sample, away in zip(samples, gone, strict=True)
    ]
    guesses = predictor.predict(rows).argmax(dim=1).tolist()
    right = [guess == sample.target for guess, sample in zip(guesses, samples, strict=True)]
    assert sum(right) / len(right) == pytest.approx(tested[0.5]["test/accuracy"])


def test_a_mask_acts_in_training_too(tiny_config, tmp_path, capsys):
    mask = str(tmp_path / "mask.csv")
    make_mask(experiment(tiny_config, missing=ALLOWED), mask, 0.25)
    run(tiny_config, missing={**ALLOWED, "mask": mask})
    assert "train: complement (b) missing in 16 of 64 samples" in capsys.readouterr().out


def test_a_mask_of_other_data_is_refused_before_training(tiny_config, tmp_path):
    mask = str(tmp_path / "mask.csv")
    make_mask(experiment(tiny_config, missing=ALLOWED), mask, 0.25)
    with pytest.raises(DataError, match=r"mask.csv has 64 rows of train, the data has 32"):
        run(tiny_config, data={"sizes": [32, 16, 16]}, missing={**ALLOWED, "mask": mask})
    with pytest.raises(
        DataError, match=r"train, row \d+ \(masked by mask.csv\): field 'b' is miss"
    ):
        run(tiny_config, missing={"allow": ["complement_2"], "mask": mask}, more_complements=[
            {"encoder": "tiny_complement", "transfer": "frozen", "field": "b"}
        ])  # fmt: skip


def test_what_masks_can_get_wrong(tiny_config, tmp_path):
    made, out = experiment(tiny_config, missing=ALLOWED), str(tmp_path / "m.csv")
    with pytest.raises(ConfigError, match="--rate is a share from 0 to 1, given 30"):
        make_mask(made, out, 30)
    with pytest.raises(ConfigError, match="--output is a CSV, given 'm.txt'"):
        make_mask(made, "m.txt", 0.3)
    with pytest.raises(
        ConfigError, match="--fields: 'c' is none of them. These fields are read: a"
    ):
        make_mask(made, out, 0.3, fields=["c"])
    with pytest.raises(ConfigError, match="--splits: 'tset' is none of them. Did you mean 'test'"):
        make_mask(made, out, 0.3, splits=["tset"])
    with pytest.raises(DataError, match="The val split is empty"):
        make_mask(experiment(tiny_config, data={"sizes": [8, 0, 8]}), out, 0.3, splits=["val"])
    achieved = make_mask(experiment(tiny_config, data={"sizes": [8, 0, 8]}), out, 0.5)
    assert [(a.split, a.field) for a in achieved] == [
        ("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")
    ]  # fmt: skip


def test_a_trained_model_predicts_rows_that_lack_a_field(tiny_config):
    predictor = fusionkit.load(run(tiny_config, data={"lack": "b"}, missing=ALLOWED).folder)
    rows = raw()
    rows[1]["b"] = None
    del rows[4]["b"]
    together = predictor.predict(rows)
    for number, row in enumerate(rows):
        torch.testing.assert_close(predictor.predict([row])[0], together[number])
    other = [dict(row) for row in rows]
    other[4]["b"] = raw(1)[0]["b"]
    assert not torch.allclose(predictor.predict(other)[4], together[4])
    del rows[2]["a"]
    message = (
        r"Row 3 has no field 'a'\. The model reads: a, b\. .*missing.allow: \[complement, main\]"
    )
    with pytest.raises(DataError, match=message):
        predictor.predict(rows)


def test_a_misspelt_field_is_not_a_missing_one(tiny_config):
    missing = {"allow": ["main", "complement"]}
    config = {**tiny_config, "main": {"name": "bert", "model": "fusionkit/claims-transformer"}}
    config |= {"main_field": None, "complement_field": None, "complement": {"name": "timm_vit"}}
    config["complement"]["model"] = "fusionkit/digits-vit"
    config["data"] = {"name": "digit_claims", "claims_per_image": 2}
    config["trainer"] = {**config["trainer"], "limit_train_batches": 1, "limit_val_batches": 1}
    config["trainer"] |= {"limit_test_batches": 1, "max_epochs": 1}
    predictor = fusionkit.load(run(config, missing=missing).folder)
    assert predictor.predict([{"claim": "it is odd"}, {"claim": "", "other": 1} | IMAGE]).ndim == 2
    with pytest.raises(DataError, match="Row 1 has no field 'claim'. Did you mean 'clam'"):
        predictor.predict([{"clam": "it is odd"} | IMAGE])
    with pytest.raises(DataError, match="Row 2 has none of the fields the model reads: claim, im"):
        predictor.predict([IMAGE, {"claim": float("nan")}])


def test_a_model_that_was_not_trained_to_do_without_says_how_to(tiny_config):
    predictor = fusionkit.load(run(tiny_config).folder)
    for lacking in ({"a": raw(1)[0]["a"]}, {**raw(1)[0], "b": None}):
        with pytest.raises(
            DataError, match=r"Row 1 has no field 'b'.*missing.allow: \[complement\]"
        ):
            predictor.predict([lacking])


def test_a_slim_checkpoint_restores_the_stand_ins(tiny_config):
    folder = run(tiny_config, data={"lack": "b"}, missing=ALLOWED).folder
    first, second = fusionkit.load(folder), fusionkit.load(folder)
    saved = load_file(folder / "model.safetensors")["fusion.stand_ins.complement"]
    assert torch.equal(first.model.fusion.stand_ins["complement"].data, saved)
    rows = [{"a": row["a"]} for row in raw()]
    assert torch.equal(first.predict(rows), second.predict(rows))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_values_are_counted_and_said_at_the_end(tiny_config, workers, caplog):
    config = {
        **tiny_config,
        "main": {"name": "tiny_main", "dim": 6},
        "main_field": "b",
        "complement": {"name": "tiny_complement", "in_dim": 24},
        "complement_field": "a",
        "loader": {"workers": workers, "batch_size": 16},
    }
    with pytest.raises(DataError, match=r"row 4: field 'a' \('broken'\) cannot be read"):
        run(config, data={"unreadable": True}, missing=ALLOWED)
    with caplog.at_level(logging.WARNING, logger="fusionkit"):
        result = run(config, data={"unreadable": True}, missing={**ALLOWED, "unreadable": True})
    assert caplog.messages == [
        f"{split}: unreadable and taken for missing, field 'a': 1 (tiny {split}, row 4)"
        for split in ("train", "val", "test")
    ]
    caplog.clear()
    evaluate(str(result.folder), "test")
    fusionkit.load(result.folder).predict([{"a": "broken", "b": raw(1)[0]["b"]}])
    assert caplog.messages == [
        "test: unreadable and taken for missing, field 'a': 1 (tiny test, row 4)",
        "predict: unreadable and taken for missing, field 'a': 1 (row 1)",
    ]


@pytest.mark.parametrize("trainer", [{"precision": "bf16-mixed"}, {"gradient_checkpointing": True}])
def test_ways_to_train(tiny_config, trainer):
    missing = {**ALLOWED, "dropout": 0.5}
    result = run(tiny_config, missing=missing, data={"lack": "b"}, trainer=trainer)
    assert 0 <= result.metrics["test/accuracy"] <= 1


def test_a_complement_may_be_missing_in_every_batch(tiny_config, tmp_path):
    mask = str(tmp_path / "all.csv")
    config = {**tiny_config, "complement_transfer": "fine_tune"}
    make_mask(experiment(config, missing=ALLOWED), mask, 1.0)
    folder = run(config, missing={**ALLOWED, "mask": mask}).folder
    saved = load_file(folder / "model.safetensors")
    norm = "fusion.encoders.complement.encoder.backbone.1"
    assert saved[f"{norm}.num_batches_tracked"] == 0
    assert not saved[f"{norm}.running_mean"].any()
