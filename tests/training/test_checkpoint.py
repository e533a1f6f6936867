from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import TinyComplement, TinyMain

from fusionkit.errors import CheckpointError
from fusionkit.fusion.conditional_prompt import ConditionalPrompt
from fusionkit.fusion.model import FusionModel
from fusionkit.training import checkpoint
from fusionkit.transfer.fine_tune import FineTune
from fusionkit.transfer.frozen import Frozen
from fusionkit.transfer.prompt import Prompt


def model(complement=None, **options) -> FusionModel:
    complement = Frozen(TinyComplement()) if complement is None else complement
    return FusionModel(ConditionalPrompt(Frozen(TinyMain()), [complement], experts=2, **options), 2)


def description(of: FusionModel) -> checkpoint.Description:
    return checkpoint.Description(
        config={"name": "x"},
        task="single_label",
        classes=["a", "b"],
        fields={"main": "a"},
        frozen=checkpoint.frozen_hashes(of),
        metrics={},
        epoch=1,
        versions={"fusionkit": "9.9"},
    )


def same_backbones(of: FusionModel, **options) -> FusionModel:
    other = model(**options)
    for role in ("main", "complement"):
        state = of.fusion.encoders[role].encoder.state_dict()
        other.fusion.encoders[role].encoder.load_state_dict(state)
    return other


def test_a_checkpoint_holds_what_is_trained_and_nothing_else(tmp_path):
    trained = model()
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, trained, description(trained))
    names = set(load_file(path))
    assert names == {n for n, p in trained.named_parameters() if p.requires_grad}
    assert not any("backbone" in name for name in names)


def test_buffers_of_trained_encoders_and_of_the_fusion_are_saved():
    names = checkpoint.trained_names(model(FineTune(TinyComplement()), router="multimodal"))
    assert "fusion.encoders.complement.encoder.backbone.1.running_mean" in names
    assert "fusion.prompts.router.keys" in names
    assert not any(name.startswith("fusion.encoders.main") for name in names)


def test_save_and_load_give_the_same_predictions(tmp_path):
    trained = model().eval()
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, trained, description(trained))
    other = same_backbones(trained).eval()
    inputs = {"main": {"x": torch.randn(3, 24)}, "complement": {"x": torch.randn(3, 6)}}
    assert not torch.equal(other(inputs).logits, trained(inputs).logits)
    checkpoint.load_into(other, tmp_path)
    assert torch.equal(other(inputs).logits, trained(inputs).logits)


def test_other_frozen_weights_are_refused(tmp_path):
    trained = model()
    checkpoint.save(tmp_path / "model.safetensors", trained, description(trained))
    with pytest.raises(CheckpointError, match="other frozen weights of: complement, main"):
        checkpoint.load_into(model(), tmp_path)


def test_another_fusion_is_refused_with_names(tmp_path):
    trained = model()
    checkpoint.save(tmp_path / "model.safetensors", trained, description(trained))
    with pytest.raises(
        CheckpointError, match=r"0 trained tensors are missing \(none\), 3 are unex"
    ):
        checkpoint.load_into(same_backbones(trained, dynamic=False), tmp_path)


def test_another_shape_is_refused_with_both_shapes(tmp_path):
    trained = model()
    checkpoint.save(tmp_path / "model.safetensors", trained, description(trained))
    with pytest.raises(
        CheckpointError, match=r"has shape \(2, 2, 6, 8\), the model's has \(2, 2, 3, 8\)"
    ):
        checkpoint.load_into(same_backbones(trained, prompt_length=3), tmp_path)


def test_a_half_written_checkpoint_never_replaces_a_whole_one(tmp_path, monkeypatch):
    trained = model()
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, trained, description(trained))
    whole = path.read_bytes()

    def fails(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, trained, description(trained))
    assert path.read_bytes() == whole


def test_a_damaged_or_foreign_or_missing_file_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        checkpoint.describe(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not a fusionkit checkpoint"):
        checkpoint.describe(tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="No checkpoint at .*nowhere"):
        checkpoint.describe(tmp_path / "nowhere")


def test_a_newer_format_says_what_to_update(tmp_path):
    trained = model()
    path = tmp_path / "model.safetensors"
    newer = dataclasses.replace(description(trained), format=checkpoint.FORMAT + 1)
    checkpoint.save(path, trained, newer)
    with pytest.raises(CheckpointError, match="update fusionkit to 9.9 or later"):
        checkpoint.describe(path)


def test_an_older_format_says_what_to_do(tmp_path):
    trained = model()
    path = tmp_path / "model.safetensors"
    older = dataclasses.replace(description(trained), format=checkpoint.FORMAT - 1)
    checkpoint.save(path, trained, older)
    with pytest.raises(CheckpointError, match="has format 1, .* train again"):
        checkpoint.describe(path)


def test_metadata_are_plain_json(tmp_path):
    trained = model(Prompt(TinyMain()))
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, trained, description(trained))
    with safe_open(path, "pt") as file:
        content = json.loads(file.metadata()["fusionkit"])
    assert content["classes"] == ["a", "b"]
    assert set(content["frozen"]) == {"main", "complement"}


def test_the_hash_sees_a_change_of_any_frozen_value():
    first = model(FineTune(TinyComplement()))
    second = copy.deepcopy(first)
    assert checkpoint.frozen_hashes(first) == checkpoint.frozen_hashes(second)
    second.fusion.main.encoder.backbone[1].batch_norm.running_mean[3] += 1e-3
    assert checkpoint.frozen_hashes(first) != checkpoint.frozen_hashes(second)


def test_a_checkpoint_is_found_in_its_file_its_run_and_the_newest_run(tmp_path):
    for run in ("000", "002", "010"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "model.safetensors").touch()
    (tmp_path / "011").mkdir()  # a run that has saved nothing yet
    newest = tmp_path / "010" / "model.safetensors"
    assert checkpoint.find_file(tmp_path) == newest
    assert checkpoint.find_file(newest.parent) == newest
    assert checkpoint.find_file(newest) == newest
