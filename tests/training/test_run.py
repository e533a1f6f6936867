from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

import fusionkit
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.errors import CheckpointError, ConfigError, DataError
from fusionkit.training import checkpoint
from fusionkit.training.evaluate import evaluate, predict
from fusionkit.training.run import fit
from fusionkit.training.task import FusionTask


def run(config: dict, ckpt_path: str | None = None, **sections):
    merged = {**config}
    for key, value in sections.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return fit(experiment_from_mapping(merged), ckpt_path)


def test_a_run_leaves_config_metrics_and_a_slim_checkpoint(tiny_config):
    result = run(tiny_config)
    folder = result.folder
    assert folder == Path(tiny_config["output"]) / "tiny" / "000"
    assert {"config.yaml", "metrics.json", "metrics.csv", "model.safetensors", "last.ckpt"} <= {
        path.name for path in folder.iterdir()
    }
    assert list((folder / "tensorboard").glob("events*"))
    summary = json.loads((folder / "metrics.json").read_text())
    assert set(summary["metrics"]) == {"test/loss", "test/accuracy", "test/f1_macro", "test/auroc"}
    assert summary["trained_parameters"] == result.trained
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert experiment_from_mapping(saved).resolved == saved
    with (folder / "metrics.csv").open() as file:
        assert {"epoch", "val/accuracy", "train/loss"} <= set(next(csv.reader(file)))


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("multi_label", {"accuracy", "f1_macro", "f1_micro", "auroc", "loss"}),
        ("regression", {"r2", "mae", "loss"}),
    ],
)
def test_other_tasks_train(tiny_config, task, metrics):
    result = run(tiny_config, data={"task": task})
    assert set(result.metrics) == {f"test/{name}" for name in metrics}


def test_a_regression_starts_at_the_mean_of_its_target(tiny_config):
    mae = run(
        tiny_config,
        data={"task": "regression"},
        optimizer={"lr": 0.0},
    ).metrics["test/mae"]
    assert mae < 60  # targets are around 100, with a standard deviation of about 25


def test_runs_get_new_folders_and_the_same_seed_the_same_result(tiny_config):
    first = run(tiny_config)
    second = run(tiny_config)
    assert second.folder.name == "001"
    assert first.metrics == second.metrics


def test_a_continued_run_equals_an_uninterrupted_one(tiny_config):
    whole = run(tiny_config, name="whole", trainer={"max_epochs": 4})
    run(tiny_config, name="halves", trainer={"max_epochs": 2})
    halves = run(tiny_config, "last", name="halves", trainer={"max_epochs": 4})
    assert halves.folder.name == "000"
    last = [torch.load(r.folder / "last.ckpt", weights_only=True) for r in (whole, halves)]
    for name, value in last[0]["state_dict"].items():
        torch.testing.assert_close(value, last[1]["state_dict"][name], rtol=0, atol=0)


def test_the_resume_checkpoint_holds_no_frozen_weights(tiny_config):
    folder = run(tiny_config).folder
    names = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert not any("backbone" in name for name in names)


def test_few_shots_are_of_the_training_split_alone(tiny_config):
    result = run(tiny_config, loader={"shots": 20, "batch_size": 4}, trainer={"max_epochs": 1})
    last = torch.load(result.folder / "last.ckpt", weights_only=True)
    assert last["global_step"] == 5
    with pytest.raises(DataError, match=r"loader.shots is 65, but there are 64 training samples"):
        run(tiny_config, loader={"shots": 65})
    with pytest.raises(ConfigError, match="shots is 4 and shots_per_class is 2; set one of them"):
        run(tiny_config, loader={"shots": 4, "shots_per_class": 2})


def test_statistics_are_of_the_shots(tiny_config):
    scales = set()
    for shots in (8, 32, None):
        result = run(tiny_config, data={"task": "regression"}, loader={"shots": shots})
        scales.add(fusionkit.load(result.folder).model.head.target_mean.item())
    assert len(scales) == 3


def test_classes_are_balanced(tiny_config):
    result = run(tiny_config, loader={"balanced": True})
    assert 0 <= result.metrics["test/accuracy"] <= 1


LONG_TEXTS = """
main: {name: bert, model: fusionkit/claims-transformer}
fusion: main_only
data: {name: table, files: {train: t.csv, val: v.csv}, fields: {text: text}, label: kind}
loader: {batch_size: 16, workers: 0}
trainer: {max_epochs: 1, accelerator: cpu, limit_train_batches: 1, progress_bar: false}
"""


def long_texts(folder: Path, most: int) -> None:
    rows = [f"{'it is even ' * (1 + i * 7 % most)},{i % 2}" for i in range(400)]
    (folder / "t.csv").write_text("\n".join(["text,kind", *rows]))
    (folder / "v.csv").write_text("\n".join(["text,kind", *rows[:20]]))


@pytest.mark.parametrize(
    ("most", "loader", "line"),
    [
        (9, {}, "train: about 4. % of the batches is padding; loader.bucket_by_length: true would"),
        (1, {}, None),
        (
            9,
            {"bucket_by_length": True},
            r"train: 25 batches of 16 to 16 samples; padding is .\.. % of them, in random batches",
        ),
        (
            9,
            {"tokens_per_batch": 400},
            r"train: \d\d batches of \d+ to \d\d samples; padding is .\.. %",
        ),
    ],
)
def test_padding_is_said(tmp_path, monkeypatch, capsys, most, loader, line):
    monkeypatch.chdir(tmp_path)
    long_texts(tmp_path, most)
    run(yaml.safe_load(LONG_TEXTS), loader=loader)
    printed = capsys.readouterr().out
    if line is None:
        assert "padding" not in printed
    else:
        assert re.search(line, printed.replace("%", " %").replace("  ", " ")), printed


def test_evaluation_by_length_finds_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    long_texts(tmp_path, 9)
    config = yaml.safe_load(LONG_TEXTS)
    config["data"]["files"]["test"] = "v.csv"
    folder = str(run(config).folder)
    by_length = evaluate(folder, "test", (), [("loader.eval_batch_size", "3")])
    predict(folder, "v.csv", "by_length.csv")
    monkeypatch.setattr("fusionkit.data.loading.is_quick", lambda *_: False)
    in_order = evaluate(folder, "test", (), [("loader.eval_batch_size", "3")])
    predict(folder, "v.csv", "in_order.csv")
    # Rounding breaks the ties of equal texts, which the area under the curve sees.
    del by_length["test/auroc"], in_order["test/auroc"]
    assert by_length == pytest.approx(in_order, abs=1e-6)
    first, second = (
        list(csv.DictReader((tmp_path / name).open())) for name in ("by_length.csv", "in_order.csv")
    )
    assert [row["text"] for row in first] == [row["text"] for row in second]
    for one, other in zip(first, second, strict=True):
        assert float(one["p(0)"]) == pytest.approx(float(other["p(0)"]), abs=1e-6)


def test_nothing_to_continue_says_so(tiny_config, tmp_path):
    with pytest.raises(CheckpointError, match="No run to continue"):
        run(tiny_config, "last")
    with pytest.raises(CheckpointError, match=r"holds no last.ckpt"):
        run(tiny_config, str(tmp_path))


def test_continuing_another_model_is_refused(tiny_config):
    run(tiny_config)
    with pytest.raises(ConfigError, match="fusion.dynamic: True -> False. Set them back"):
        run(tiny_config, "last", fusion={"dynamic": False}, trainer={"max_epochs": 3})
    with pytest.raises(ConfigError, match="optimizer.lr: None -> 1.0"):
        run(tiny_config, "last", optimizer={"lr": 1.0}, trainer={"max_epochs": 3})


def test_a_resume_checkpoint_of_another_model_is_refused(tiny_config):
    first = run(tiny_config).folder
    other = run(tiny_config, fusion={"dynamic": False}).folder
    (other / "last.ckpt").replace(first / "last.ckpt")
    with pytest.raises(CheckpointError, match="000/last.ckpt belongs to another model"):
        run(tiny_config, str(first), trainer={"max_epochs": 3})


def test_a_continued_run_keeps_its_earlier_log(tiny_config):
    run(tiny_config)
    folder = run(tiny_config, "last", trainer={"max_epochs": 3}).folder
    epochs = [
        {row["epoch"] for row in csv.DictReader((folder / name).open()) if row["val/accuracy"]}
        for name in ("metrics.1.csv", "metrics.csv")
    ]
    assert epochs == [{"0", "1"}, {"2"}]


def test_an_interrupt_can_be_continued(tiny_config, monkeypatch):
    def interrupt(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    step = FusionTask.training_step
    monkeypatch.setattr(FusionTask, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_config)
    monkeypatch.undo()
    folder = Path(tiny_config["output"]) / "tiny" / "000"
    assert (folder / "model.safetensors").is_file()


def test_a_failed_start_leaves_no_folder(tiny_config):
    with pytest.raises(ConfigError):
        run(tiny_config, fusion={"layers": [0, 9]})
    assert not Path(tiny_config["output"]).exists()


def test_a_wrong_baseline_is_said_before_the_main_run(tiny_config):
    with pytest.raises(ConfigError, match=r"given \[0, 9\]"):
        run(tiny_config, baselines={"bad": {"fusion": {"layers": [0, 9]}}})
    with pytest.raises(ConfigError, match="'a b' and 'a/b' share a folder"):
        run(tiny_config, baselines={"a b": {"seed": 1}, "a/b": {"seed": 2}})
    assert not Path(tiny_config["output"]).exists()


def test_a_fine_tuned_encoder_trains_in_training_mode(tiny_config, monkeypatch):
    seen = []

    def watch(self, batch, batch_idx):
        encoders = self.model.fusion.encoders
        seen.append({role: transfer.encoder.training for role, transfer in encoders.items()})
        return step(self, batch, batch_idx)

    step = FusionTask.training_step
    monkeypatch.setattr(FusionTask, "training_step", watch)
    run(tiny_config, complement_transfer="fine_tune")
    assert all(modes == {"main": False, "complement": True} for modes in seen)


def test_mixed_precision_clips_gradients_and_keeps_large_numbers_apart(tiny_config):
    result = run(
        tiny_config,
        data={"task": "regression"},
        trainer={"precision": "bf16-mixed", "gradient_clip_val": 0.1},
    )
    guesses = fusionkit.load(result.folder).predict(
        [{"a": torch.randn(24).tolist(), "b": torch.randn(6).tolist()} for _ in range(30)]
    )
    assert len(guesses.unique()) == 30


def test_a_model_whose_weights_moved_is_loaded_with_an_override(tiny_config):
    folder = run(tiny_config).folder
    loaded = fusionkit.load(folder, {"trainer": {"accelerator": "auto"}})
    assert loaded.experiment.trainer.accelerator == "auto"
    assert loaded.experiment.main.init == {"dim": 8, "depth": 2}


def test_loading_a_model_leaves_the_random_state_alone(tiny_config):
    folder = run(tiny_config).folder
    state = torch.get_rng_state()
    fusionkit.load(folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_best_epoch_is_kept_not_the_last(tiny_config):
    result = run(tiny_config, trainer={"max_epochs": 6}, optimizer={"lr": 0.05})
    rows = list(csv.DictReader((result.folder / "metrics.csv").open()))
    values = [float(row["val/accuracy"]) for row in rows if row["val/accuracy"]]
    description = checkpoint.describe(result.folder)
    assert description.metrics["val/accuracy"] == pytest.approx(max(values))
    assert description.epoch == values.index(max(values)) + 1


def test_baselines_run_beside_and_are_named(tiny_config, capsys):
    run(tiny_config, baselines={"main only": {"fusion": "main_only"}})
    printed = capsys.readouterr().out
    assert "main only" in printed
    folder = Path(tiny_config["output"]) / "tiny" / "000" / "baselines" / "main_only"
    assert (folder / "model.safetensors").is_file()


def test_early_stopping_stops(tiny_config):
    result = run(tiny_config, optimizer={"lr": 0.0}, trainer={"max_epochs": 9, "early_stopping": 1})
    rows = list(csv.DictReader((result.folder / "metrics.csv").open()))
    assert sum(bool(row["val/accuracy"]) for row in rows) == 2


@pytest.mark.parametrize(
    "trainer",
    [
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 2},
        {"gradient_checkpointing": True},
        {"monitor": "val/loss"},
    ],
)
def test_ways_to_train(tiny_config, trainer):
    assert 0 <= run(tiny_config, trainer=trainer).metrics["test/accuracy"] <= 1


def test_without_validation_the_last_epoch_is_kept(tiny_config):
    result = run(tiny_config, data={"sizes": [32, 0, 16]})
    assert checkpoint.describe(result.folder).epoch == 2


def test_errors_before_training(tiny_config):
    with pytest.raises(DataError, match="training split is empty"):
        run(tiny_config, data={"sizes": [0, 8, 8]})
    with pytest.raises(ConfigError, match="no metric 'val/acuracy'. Did you mean 'val/accuracy'"):
        run(tiny_config, trainer={"monitor": "val/acuracy"})
    with pytest.raises(DataError, match="one class only"):
        run(tiny_config, data={"one_class": True})
    with pytest.raises(ConfigError, match="early_stopping needs a validation split"):
        run(tiny_config, data={"sizes": [8, 0, 8]}, trainer={"early_stopping": 1})


def test_an_unreadable_row_names_itself(tiny_config):
    with pytest.raises(DataError, match="tiny train, row 4"):
        run(tiny_config, data={"unreadable": True})


def test_a_loaded_model_predicts_raw_rows(tiny_config):
    result = run(tiny_config)
    predictor = fusionkit.load(result.folder)
    rows = [{"a": torch.randn(24).tolist(), "b": torch.randn(6).tolist()} for _ in range(20)]
    probabilities = predictor.predict(rows)
    assert probabilities.shape == (20, 2)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(20))
    alone = predictor.predict(rows[7:8])
    torch.testing.assert_close(alone[0], probabilities[7])
    with pytest.raises(DataError, match="Row 2 has no field 'b'"):
        predictor.predict([rows[0], {"a": rows[0]["a"]}])
