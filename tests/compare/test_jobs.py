from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from fusionkit.compare import jobs
from fusionkit.compare.jobs import Job, is_finished, read_result, run_config, run_jobs
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.training.folders import CONFIG, METRICS


def test_a_run_of_another_config_is_put_aside(tiny_config, tmp_path):
    config = run_config(experiment_from_mapping(tiny_config), 4)
    assert config["seed"] == 4
    assert config["trainer"]["progress_bar"] is False
    asked = Job("a", tmp_path / "a" / "seed-4", config, 1.0)

    def other(**section: dict) -> Job:
        merged = {k: {**config[k], **v} for k, v in section.items()}
        return Job("a", asked.folder, {**config, **merged}, 1.0)

    assert not is_finished(asked)
    asked.folder.mkdir(parents=True)
    (asked.folder / CONFIG).write_text(yaml.safe_dump(dict(config)))
    assert not is_finished(asked)  # begun
    summary = {"metrics": {"test/accuracy": 0.5}, "seconds": 7.0}
    (asked.folder / METRICS).write_text(json.dumps(summary))
    assert is_finished(asked)
    assert read_result(asked.folder) == ({"test/accuracy": 0.5}, 7.0)
    assert is_finished(other(loader={"workers": 7}))
    for number in (1, 2):
        assert not is_finished(other(trainer={"max_epochs": 9}))
        aside = asked.folder.with_name(f"seed-4.{number}")
        assert json.loads((aside / METRICS).read_text()) == summary
        assert not asked.folder.exists()
        asked.folder.mkdir()
        (asked.folder / CONFIG).write_text(yaml.safe_dump(dict(config)))
        (asked.folder / METRICS).write_text(json.dumps(summary))


def test_seconds_of_a_continued_run_are_not_known(tmp_path):
    (tmp_path / METRICS).write_text(json.dumps({"metrics": {}, "seconds": 7.0}))
    (tmp_path / "metrics.1.csv").touch()
    assert read_result(tmp_path) == ({}, None)


def test_time_left_follows_the_weight_of_what_is_left(monkeypatch, tmp_path):
    now = 100.0
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now)
    todo = [Job("a", tmp_path, {}, weight) for weight in (2.0, 6.0)]
    clock = jobs._Clock(todo)
    assert clock.left() == ""
    now = 110.0
    clock.tick(todo[0])
    assert clock.left() == "30 s left, "
    now = 125.0
    assert clock.left() == "15 s left, "
    now = 999.0
    assert clock.left() == "0 s left, "


@pytest.mark.parametrize(("free", "most"), [(131, 3), (129, 1)])
def test_without_a_number_runs_start_as_memory_allows(monkeypatch, tmp_path, free, most):
    class Large:
        """A training of 100 bytes that takes five looks."""

        running = most = 0
        memory, error = 100, None

        def __init__(self, folder: Path, threads: int | None) -> None:
            self.looks = 0
            assert threads == 1
            Large.running += 1
            Large.most = max(Large.most, Large.running)

        @property
        def ended(self) -> bool:
            self.looks += 1
            Large.running -= self.looks == 5
            return self.looks == 5

    monkeypatch.setattr(jobs, "Training", Large)
    monkeypatch.setattr(jobs, "_POLL", 0)
    monkeypatch.setattr(jobs, "_SETTLED", 0.0)
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(jobs.torch, "get_num_threads", lambda: 3)
    memory = SimpleNamespace(available=free)
    monkeypatch.setattr(jobs.psutil, "virtual_memory", lambda: memory)
    todo = [Job(str(n), tmp_path / str(n), {}, 1.0) for n in range(5)]
    names = []
    run_jobs(todo, None, False, lambda job, error: names.append(job.name) or job.name)
    assert sorted(names) == ["0", "1", "2", "3", "4"]
    assert Large.most == most


@pytest.fixture
def memory(monkeypatch) -> SimpleNamespace:
    memory = SimpleNamespace(available=10_000)
    monkeypatch.setattr(jobs.psutil, "virtual_memory", lambda: memory)
    return memory


def running(*sizes: int) -> list:
    return [SimpleNamespace(memory=size) for size in sizes]


def test_the_first_run_shows_what_a_run_takes(monkeypatch, memory):
    now = 100.0
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now)
    room = jobs._Room(limited=True)
    room.started()
    room.look(running(100))
    assert not room.for_one_more()  # it may still grow
    now += jobs._SETTLED + 1
    assert room.for_one_more()
    short = jobs._Room(limited=True)
    short.started()
    short.look(running(100))
    short.ended(well=False)
    now += 2 * jobs._SETTLED
    assert not short.for_one_more()  # what a failed run took says nothing
    short.ended(well=True)
    assert short.for_one_more()  # at once, however short it was


def test_memory_that_runs_have_yet_to_take_is_not_given_twice(memory):
    room = jobs._Room(limited=True)
    room.started()
    room.look(running(100))
    room.ended(well=True)
    room.look(running())
    memory.available, started = 350, 0
    while room.for_one_more():
        room.started()
        started += 1
    assert started == 3  # 350, 250 and 150 were left for one of 100 and something to spare
    memory.available = 350 - 3 * 40
    room.look(running(40, 40, 40))
    assert not room.for_one_more()
    memory.available = 350 - 2 * 100
    room.look(running(100, 100))
    assert room.for_one_more()
