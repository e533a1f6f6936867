from __future__ import annotations

import csv
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from filelock import FileLock
from rich.console import Console

from fusionkit.cache.compute import check_resumes, entering
from fusionkit.cache.digest import pickled
from fusionkit.cache.fill import ABOUT, fill
from fusionkit.cache.key import describe, key_of
from fusionkit.cache.plan import Plan, make_plans
from fusionkit.cache.store import FeatureStore, StoreWriter
from fusionkit.cli import main
from fusionkit.config.schema import CacheConfig, Component
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.encoders.base import Features
from fusionkit.encoders.vector import Vector
from fusionkit.encoders.weights import locate
from fusionkit.errors import ConfigError, DataError, EncoderError
from fusionkit.fusion.base import Fusion
from fusionkit.training.assemble import dry_build
from fusionkit.training.run import fit, prepare
from fusionkit.transfer.frozen import Frozen

DEEP = {"main": {"depth": 3}, "fusion": {"layers": [2, 3]}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FUSIONKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def config(base: dict[str, Any], **sections: Any) -> dict[str, Any]:
    merged = {**base, "trainer": {**base["trainer"], "log_every_n_steps": 1}}
    for key, value in sections.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


def train(base: dict[str, Any], **sections: Any) -> tuple[list[float], dict[str, float]]:
    """The loss of every step, and the test metrics."""
    result = fit(experiment_from_mapping(config(base, **sections)))
    with (result.folder / "metrics.csv").open() as file:
        losses = [float(row["train/loss_step"]) for row in csv.DictReader(file)
                  if row["train/loss_step"]]  # fmt: skip
    return losses, dict(result.metrics)


def fill_one(base: dict[str, Any], dry_run: bool = False, out: Any = None, **sections: Any):
    experiment = experiment_from_mapping(config(base, **{"cache": True, **sections}))
    dataset, splits, model, fields = prepare(experiment, {})
    return fill(experiment, dataset, model, fields, splits, out, dry_run)


LATE = {"fusion": {"name": "late_concat"}}
WAYS = {
    "features of a complement": {},
    "what enters a layer": DEEP,
    "of the main encoder alone": {**DEEP, "cache": {"roles": ["main"]}},
    "all there is": LATE,
    "with tokens": {"fusion": {"name": "cross_attention"}},
    "one that may be missing": {
        "missing": {"allow": ["complement"], "dropout": 0.3},
        "data": {"lack": "b"},
    },
    "routed by the tokens of the layer": {
        "main": {"depth": 3},
        "fusion": {"layers": [1, 3], "router": "multimodal"},
    },
    "with workers": {**DEEP, "loader": {"workers": 2}},
}


@pytest.mark.parametrize("way", WAYS)
def test_training_is_the_same_with_and_without(tiny_config, way, folder):
    base = {k: v for k, v in tiny_config.items() if k != "fusion" or way in ("", *WAYS)}
    if WAYS[way].get("fusion", {}).get("name"):  # another fusion takes other arguments
        base = {**base, "fusion": {}}
    losses, metrics = train(base, **{**WAYS[way], "cache": False})
    assert not folder.exists()
    cached, its_metrics = train(base, **{"cache": True, **WAYS[way]})
    assert len(losses) == 8
    assert cached == pytest.approx(losses, abs=1e-6, rel=0)
    assert its_metrics == pytest.approx(metrics, abs=1e-6)
    assert len(list(folder.glob("*/" + ABOUT))) == (2 if way in _BOTH else 1)


_BOTH = ("what enters a layer", "all there is", "with tokens", "routed by the tokens of the layer",
         "with workers")  # fmt: skip


def test_half_precision_is_close(tiny_config):
    losses, _ = train(tiny_config)
    halved, _ = train(tiny_config, cache={"roles": "all", "dtype": "float16"})
    assert halved != losses
    assert halved == pytest.approx(losses, abs=0.01)


def rows_of(monkeypatch, cls: Any, name: str) -> list[int]:
    """How many rows each call of a method of an encoder gets from now on."""
    function, rows = getattr(cls, name), []

    def watch(self: Any, inputs: Any) -> Any:
        rows.append(len(next(iter(inputs.values()))))
        return function(self, inputs)

    monkeypatch.setattr(cls, name, watch)
    return rows


def test_the_encoder_does_not_run_again(tiny_config, monkeypatch):
    fill_one(tiny_config)
    rows = rows_of(monkeypatch, tiny.TinyComplement, "encode")
    train(tiny_config, cache=True)
    assert rows == [1]  # one value, to compare


def test_nor_do_the_layers_below_the_first_prompt(tiny_config, monkeypatch):
    fill_one(tiny_config, **DEEP)
    rows = rows_of(monkeypatch, tiny.TinyMain, "embed")
    train(tiny_config, **DEEP, cache=True)
    assert set(rows) == {1}


def test_what_has_changed_unseen_is_not_used(tiny_config, monkeypatch):
    encode = tiny.TinyComplement.encode
    (done,) = fill_one(tiny_config)[1]
    monkeypatch.setattr(
        tiny.TinyComplement, "encode", lambda *given: Features(encode(*given).pooled + 1)
    )
    with pytest.raises(DataError, match=r"tiny train, row 1: what complement sees of field 'b'"):
        fill_one(tiny_config)
    shutil.rmtree(done.folder)
    assert fill_one(tiny_config)[1][0].lacking == 96


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"num_attention_heads": 2}])
def test_the_settings_of_a_local_model_are_part_of_the_name(tmp_path, change):
    component = Component("complement_encoder", "bert", {"model": str(tmp_path / "model")})
    shutil.copytree(locate("fusionkit/claims-transformer"), tmp_path / "model")

    def name() -> str:
        transfer = Frozen(component.build())
        return key_of(describe(component, transfer, Plan("complement", None, False), CacheConfig()))

    before = name()
    assert name() == before
    file = tmp_path / "model" / "config.json"
    settings = json.loads(file.read_text())
    assert settings | change != settings
    file.write_text(json.dumps(settings | change))
    assert name() != before


def test_a_run_that_continues_finds_what_it_has_kept(tiny_config, monkeypatch):
    base = {**tiny_config, "complement": {"name": "vector", "dim": 6}}
    whole = fit(experiment_from_mapping(config({**base, "name": "whole"}, cache=True)))
    settings = config(base, cache=True, trainer={**base["trainer"], "max_epochs": 1})
    fit(experiment_from_mapping(settings))
    settings["trainer"]["max_epochs"] = 2
    rows = rows_of(monkeypatch, Vector, "encode")
    continued = fit(experiment_from_mapping(settings), "last")
    assert rows == [1]
    assert continued.metrics == whole.metrics


def test_a_budget_of_tokens_is_one_of_training(tiny_config):
    (done,) = fill_one(tiny_config, loader={"tokens_per_batch": 64})[1]
    assert done.lacking == 96


def test_vectors_have_no_padding(tiny_config, monkeypatch):
    encode = tiny.TinyComplement.encode

    def with_tokens(self, inputs):
        pooled = encode(self, inputs).pooled
        return Features(pooled, pooled.unsqueeze(1), torch.ones(len(pooled), 1, dtype=torch.bool))

    monkeypatch.setattr(tiny.TinyComplement, "encode", with_tokens)
    assert not fill_one(tiny_config)[0]["complement"]["train"].padded


def test_a_size_can_be_told_though_nothing_can_be_read(tiny_config):
    sections = {
        "data": {"unreadable": True},
        "complement_field": "a",
        "complement": {"in_dim": 24},
        "missing": {"allow": ["complement"], "unreadable": True},
    }
    fill_one(tiny_config, **sections)
    (told,) = fill_one(tiny_config, dry_run=True, **sections)[1]
    assert (told.lacking, told.bytes) == (3, 0)  # one in each split


def test_auto_passes_by_what_cannot_be_had(tiny_config, monkeypatch, tmp_path):
    def preprocessor(self, train):
        made = tiny.Vectors()
        made.train = train
        return made

    monkeypatch.setattr(tiny.TinyComplement, "preprocessor", preprocessor)
    said = Console(record=True, width=500, file=(tmp_path / "out").open("w"))
    stored, done = fill_one(tiny_config, cache="auto", out=said)
    assert (stored, done) == ({}, [])
    assert "cache: complement (TinyComplement) is augmented in training" in said.export_text()


def test_a_video_is_augmented_where_its_frames_are():
    frames = {"name": "timm_cnn", "model": "resnet10t", "weights": "random"}
    for augment, same in (("none", True), ("crop", False)):
        encoder = Component(
            "complement_encoder", "video", {"encoder": {**frames, "augment": augment}}
        ).build()
        made = [pickled(encoder.preprocessor(train)) for train in (True, False)]
        assert (made[0] == made[1]) == same


def test_each_value_is_computed_once_for_all_who_ask(tiny_config, folder):
    (done,) = fill_one(tiny_config)[1]
    assert (done.values, done.found, done.lacking) == (96, 0, 96)
    (again,) = fill_one(tiny_config, seed=0, fusion={"experts": 4}, optimizer={"lr": 0.1})[1]
    assert (again.found, again.seconds) == (96, None)
    (more,) = fill_one(tiny_config, data={"sizes": [80, 16, 16]})[1]
    assert (more.values, more.lacking) == (112, 16)
    assert len(FeatureStore(done.folder)) == 112
    about = json.loads((done.folder / ABOUT).read_text())
    assert about["encoder"] == "tiny_complement"
    assert about["what"] == "features"


def test_what_features_depend_on_makes_another_store(tiny_config, monkeypatch):
    def store(**sections: Any) -> Path:
        return fill_one(tiny_config, **sections)[1][0].folder

    first = store()
    assert store() == first
    others = {
        store(seed=1),  # other random weights
        store(complement={"dim": 7}),
        store(cache={"roles": "all", "dtype": "float16"}),
    }
    with monkeypatch.context() as patch:
        patch.setattr(tiny.Vectors, "__reduce__", lambda self: (tiny.Vectors, (), {"size": 7}))
        others.add(store())
    with monkeypatch.context() as patch:
        patch.setattr("fusionkit.cache.key._versions", lambda: {"torch": "3"})
        others.add(store())
    assert len(others | {first}) == 6


def test_an_interrupted_fill_goes_on_where_it_was(tiny_config, folder, monkeypatch):
    encode, calls = tiny.TinyComplement.encode, []

    def dies(self, inputs):
        calls.append(len(inputs["x"]))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(tiny.TinyComplement, "encode", dies)
        with pytest.raises(KeyboardInterrupt):
            fill_one(tiny_config)
    (place,) = folder.glob("tiny_complement-*")
    assert len(FeatureStore(place)) == 3 * 16
    (done,) = fill_one(tiny_config)[1]
    assert (done.found, done.lacking) == (48, 48)


def test_a_dead_process_leaves_nothing_half(tiny_config, folder):
    (done,) = fill_one(tiny_config)[1]
    (file,) = done.folder.glob("*.arrow")
    file.rename(done.folder / f"{file.name}.unfinished")
    (again,) = fill_one(tiny_config)[1]
    assert again.lacking == 96
    assert not list(done.folder.glob("*.unfinished"))


def test_one_process_computes_and_the_others_wait(tiny_config, tmp_path, monkeypatch):
    (done,) = fill_one(tiny_config)[1]
    whole = tmp_path / "whole"
    shutil.move(done.folder, whole)
    done.folder.mkdir()
    monkeypatch.setattr("fusionkit.cache.fill._PATIENCE", 0.05)
    said, found = Console(record=True, width=500, file=(tmp_path / "out").open("w")), []
    with FileLock(done.folder / "lock"):  # another process computes
        waiting = threading.Thread(target=lambda: found.extend(fill_one(tiny_config, out=said)[1]))
        waiting.start()
        waiting.join(5)
        assert waiting.is_alive()
        for path in whole.iterdir():
            if path.name != "lock":
                shutil.copy(path, done.folder)
    waiting.join(30)
    assert found[0].lacking == 96
    assert "another process is computing the same; waiting for it" in said.export_text()
    assert len(FeatureStore(done.folder)) == 96


def test_the_size_is_told_before_anything_is_kept(tiny_config, folder, tmp_path):
    (told,) = fill_one(tiny_config, dry_run=True)[1]
    assert not list(folder.rglob("*.arrow"))
    said = Console(record=True, width=500, file=(tmp_path / "out").open("w"))
    (done,) = fill_one(tiny_config, out=said)[1]
    assert done.bytes == pytest.approx(told.bytes, rel=0.6)  # Arrow's own few bytes count here
    before, after = said.export_text().splitlines()
    assert before.startswith("Cache: complement, features: computing 96 values, about 3.5 kB (")
    assert after.startswith("Cache: complement, features: 0 of 96 values found, 96 computed in 0 s")
    assert str(done.folder) in after


def test_a_disk_that_is_too_small_is_refused(tiny_config, folder, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"takes about 3\.5 kB, but .* has 1\.0 kB left. Set cache"):
        fill_one(tiny_config)
    assert not list(folder.rglob("*.arrow"))


def test_a_value_that_cannot_be_read_stops_with_its_row(tiny_config):
    sections = {"data": {"unreadable": True}, "complement_field": "a", "complement": {"in_dim": 24}}
    with pytest.raises(DataError, match=r"tiny train, row 4: field 'a' \('broken'\) cannot be"):
        fill_one(tiny_config, **sections)


def test_a_file_that_is_gone_is_said_as_ever(tiny_config, monkeypatch):
    def gone(*_: Any) -> bytes:
        raise FileNotFoundError("gone")

    monkeypatch.setattr("fusionkit.cache.fill.digest_value", gone)
    sections = {"data": {"unreadable": True}, "complement_field": "a", "complement": {"in_dim": 24}}
    with pytest.raises(DataError, match=r"tiny train, row 4: field 'a' \('broken'\) cannot be"):
        fill_one(tiny_config, **sections)


def test_it_counts_as_missing_where_that_is_asked_for(tiny_config, caplog):
    sections = {
        "data": {"unreadable": True},
        "complement_field": "a",
        "complement": {"in_dim": 24},
        "main": {"dim": 6},
        "main_field": "b",
        "missing": {"allow": ["complement"], "unreadable": True},
    }
    losses, _ = train(tiny_config, **sections)
    caplog.clear()
    cached, _ = train(tiny_config, **sections, cache=True)
    assert cached == pytest.approx(losses, abs=1e-6, rel=0)
    assert "train: unreadable and taken for missing, field 'a': 1 (tiny train, row 4)" in (
        caplog.text
    )


def test_an_encoder_whose_states_cannot_be_resumed_is_refused(tiny_config, monkeypatch):
    resume = tiny.TinyMain.resume
    monkeypatch.setattr(
        tiny.TinyMain, "resume", lambda self, layer, tokens, keep: resume(self, 1, tokens + 1, keep)
    )
    with pytest.raises(EncoderError, match=r"TinyMain gives something else .* Its `resume` has to"):
        fill_one(tiny_config, **DEEP)
    encoder = tiny.TinyMain(depth=3).eval()
    inputs = {"x": torch.randn(2, 24)}
    monkeypatch.undo()
    check_resumes(encoder, inputs, 2, entering(encoder, inputs, 2))


def plans_of(base: dict[str, Any], **sections: Any):
    experiment = experiment_from_mapping(config(base, **{"cache": True, **sections}))
    return make_plans(experiment, dry_build(experiment)[0])


CONFLICTS = {
    r"cache: complement is trained \(complement_transfer: fine_tune\), so what it sees changes with"
    r" every step. Set complement_transfer: frozen, or leave complement out": {
        "complement_transfer": "fine_tune"
    },
    r"cache: main is trained \(main_transfer: fine_tune\)": {
        **DEEP,
        "main_transfer": "fine_tune",
    },
    r"'conditional_prompt' enters the main encoder at its first layer, so nothing stays the same. "
    r"Prompt later layers only, as with fusion.layers: \[1, 2\]": {"cache": {"roles": ["main"]}},
    r"cache: main may lack its field \(missing.allow\)": {
        **DEEP,
        "missing": {"allow": ["main"]},
    },
}


@pytest.mark.parametrize("message", CONFLICTS)
def test_conflicts_are_said_when_a_config_is_checked(tiny_config, message, monkeypatch):
    monkeypatch.setattr("fusionkit.training.assemble.blank_of", lambda *_: None)
    with pytest.raises(ConfigError, match=message):
        plans_of(tiny_config, **CONFLICTS[message])


def test_auto_takes_what_there_is(tiny_config):
    plans, reasons = plans_of(tiny_config, **DEEP, complement_transfer="bias_only", cache="auto")
    assert [(plan.role, plan.layer) for plan in plans] == [("main", 2)]
    assert reasons[0].startswith("cache: complement is trained (complement_transfer: bias_only)")


def test_nothing_to_compute_once_is_said(tiny_config):
    static = {"dynamic": False, "mapped": False}
    plans, reasons = plans_of(tiny_config, fusion=static)
    assert plans == []
    assert reasons == [
        "cache: nothing can be computed once: no complement is read, and 'conditional_prompt' "
        "enters the main encoder at its first layer."
    ]


def test_roles_that_a_config_lacks_are_named(tiny_config):
    with pytest.raises(ConfigError, match=r"cache\.roles: this config has no complement_2\."):
        plans_of(tiny_config, cache={"roles": ["complement_2"]})
    with pytest.raises(ConfigError, match=r"there is no role 'complment'. Did you mean 'complem"):
        plans_of(tiny_config, cache={"roles": ["complment"]})


def test_an_augmented_encoder_is_refused_before_its_features_are_kept(tiny_config, monkeypatch):
    def preprocessor(self, train):
        made = tiny.Vectors()
        made.train = train
        return made

    monkeypatch.setattr(tiny.TinyComplement, "preprocessor", preprocessor)
    with pytest.raises(ConfigError, match=r"cache: complement \(TinyComplement\) is augmented in"):
        fill_one(tiny_config)


def test_a_fusion_that_says_nothing_has_no_layers_to_keep(tiny_config):
    class Silent(Fusion):
        out_dim = 1

        def forward(self, inputs):
            raise NotImplementedError

    silent = Silent(Frozen(tiny.TinyMain()), [])
    assert silent.layers_alone == 0
    assert silent.reads_tokens


def test_a_writer_starts_no_file_for_nothing(folder):
    with StoreWriter(folder):
        pass
    assert list(folder.iterdir()) == []


def test_the_command_fills_and_tells(tiny_config, tmp_path, capsys):
    import yaml

    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(config(tiny_config, **DEEP)))
    assert main(["data", "cache", "--config", str(file), "--dry-run"]) == 0
    assert "would take" in capsys.readouterr().out
    assert main(["data", "cache", "--config", str(file), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert [(d["role"], d["kept"], d["values"], d["found"]) for d in done] == [
        ("complement", "features", 96, 0),
        ("main", "tokens that enter layer 2", 96, 0),
    ]
    one = '{"roles": ["main"]}'
    assert main(["data", "cache", "--config", str(file), "--json", "--cache", one]) == 0
    assert [d["role"] for d in json.loads(capsys.readouterr().out)] == ["main"]
    assert main(["data", "cache", "--config", str(file), "--json", "--cache.dtype=float16"]) == 0
    assert [d["found"] for d in json.loads(capsys.readouterr().out)] == [0, 0]
    assert main(["data", "cache", "--config", str(file)]) == 0
    rows = [line.split()[-4] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert rows == ["96", "96"]
    assert main(["check", "--config", str(file), "--cache", "true"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "computed once complement: features; main: tokens that enter layer 2" in shown


def test_cache_is_a_word_or_a_section(tiny_config):
    def roles(**sections: Any) -> Any:
        return experiment_from_mapping(config(tiny_config, **sections)).cache.roles

    assert roles() == []
    assert roles(cache=True) == "all"
    assert roles(cache=False) == []
    assert roles(cache="auto") == "auto"
    with pytest.raises(ConfigError, match="cache: expected a mapping of its keys, given 'ture'"):
        roles(cache="ture")
