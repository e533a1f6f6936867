from __future__ import annotations

import json
import time

import pytest
from tiny import TinyComplement

from fusionkit.config.validate import experiment_from_mapping
from fusionkit.training.profile import WARM_UP, StepProfiler, profile_table
from fusionkit.training.run import fit

COMMON = {"data", "complement", "main", "head and loss", "backward", "optimizer", "rest"}


def profile(config: dict, **more) -> dict:
    trainer = {**config.get("trainer", {}), "profile": True, "max_epochs": 2}
    merged = {**config, **more, "trainer": {**trainer, **more.get("trainer", {})}}
    result = fit(experiment_from_mapping(merged))
    return json.loads((result.folder / "profile.json").read_text())


def test_parts_of_conditional_prompts(tiny_config, capsys):
    found = profile(tiny_config)
    assert set(found["seconds"]) == {*COMMON, "engine"}
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert found["steps"] > 0
    out = capsys.readouterr().out
    assert f"A training step, mean of {found['steps']}" in out
    assert "profile.json" in out


@pytest.mark.parametrize("router", ["complement", "multimodal"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_engine_is_told_from_the_main_encoder(tiny_config, router, checkpointing):
    found = profile(
        tiny_config,
        fusion={"name": "conditional_prompt", "router": router},
        trainer={"gradient_checkpointing": checkpointing, "accumulate_grad_batches": 2},
    )
    assert found["seconds"]["engine"] > 0


def test_a_fusion_without_engine(tiny_config):
    assert set(profile(tiny_config, fusion="late_concat")["seconds"]) == COMMON


def test_a_slow_complement_shows_in_its_part(tiny_config, monkeypatch):
    encode = TinyComplement.encode

    def slow(self, inputs):
        time.sleep(0.05)
        return encode(self, inputs)

    monkeypatch.setattr(TinyComplement, "encode", slow)
    seconds = profile(tiny_config)["seconds"]
    assert 0.05 <= seconds["complement"] < 0.1 + seconds["rest"]
    assert max(seconds, key=seconds.get) == "complement"


def test_without_it_nothing_is_hooked_or_written(tiny_config, monkeypatch):
    monkeypatch.setattr(StepProfiler, "watch", lambda *_: pytest.fail("watched"))
    result = fit(experiment_from_mapping(tiny_config))
    assert not (result.folder / "profile.json").exists()


def test_parts_add_up_to_the_step():
    profiler = StepProfiler()
    for _ in range(WARM_UP + 1):
        began = time.perf_counter()
        with profiler.profile("[_TrainingEpochLoop].train_dataloader_next"):
            time.sleep(0.01)
        with (
            profiler.profile("run_training_batch"),
            profiler.profile("[LightningModule]FusionTask.optimizer_step"),
        ):
            time.sleep(0.01)
            with profiler.profile("[Strategy]SingleDeviceStrategy.backward"):
                time.sleep(0.02)
        with profiler.profile("[Callback]Any.on_train_batch_end"):
            time.sleep(0.01)
        whole = time.perf_counter() - began
    seconds = profiler.seconds()
    assert list(seconds) == ["data", "backward", "optimizer", "rest"]
    assert sum(seconds.values()) == pytest.approx(whole, rel=0.2)
    assert all(seconds[part] >= 0.01 for part in seconds)
    assert seconds["backward"] >= 0.02
    assert profile_table(seconds, 1).columns[1].footer


def test_too_few_steps_say_so(tiny_config, capsys):
    found = profile(tiny_config, trainer={"max_epochs": 1, "limit_train_batches": 2})
    assert found == {"steps": 0, "seconds": {}}
    assert "No profile: fewer than 3 steps were trained." in capsys.readouterr().out
