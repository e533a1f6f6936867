"""Score averaging against models trained apart."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file
from tiny import TinyComplement, TinyData, TinyMain
from torch import Tensor, nn
from torch.nn import functional as F

import fusionkit
from fusionkit.config.schema import OptimizerConfig
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.data.base import Task
from fusionkit.encoders.base import PRESENT
from fusionkit.fusion.base import Fusion
from fusionkit.fusion.ensemble import Ensemble
from fusionkit.fusion.main_only import MainOnly
from fusionkit.fusion.model import EnsembleHead, FusionModel, group_of
from fusionkit.training.check import check
from fusionkit.training.parameters import count_parameters
from fusionkit.training.run import fit
from fusionkit.training.task import FusionTask
from fusionkit.transfer.fine_tune import FineTune
from fusionkit.transfer.frozen import Frozen

TASKS: list[Task] = ["single_label", "multi_label", "regression"]
CLASSES = 3


WIDTHS = {"main": 24, "complement": 6}


def encoders() -> dict[str, nn.Module]:
    """Without dropout, which would have to be drawn alike."""
    made = {"main": TinyMain(), "complement": TinyComplement(dim=7)}
    for encoder in made.values():
        for module in encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return made


def model(of: dict[str, nn.Module], task: Task, mode=FineTune) -> FusionModel:
    main, *complements = (mode(encoder) for encoder in of.values())
    return head_on(Ensemble(main, complements), task)


def head_on(fusion: Fusion, task: Task) -> FusionModel:
    made = FusionModel(fusion, 1 if task == "regression" else CLASSES, task == "regression")
    if task == "regression":
        made.fit_scale(torch.tensor([88.0, 112.0]))
    return made.double()


def steps_of(built: FusionModel, task: Task) -> FusionTask:
    made = FusionTask(built, task, built.head.out_features, OptimizerConfig(), {})
    made.log = lambda *_, **__: None
    made.log_dict = lambda *_, **__: None
    return made


def backward(built: FusionModel, task: Task, inputs: dict, target: Tensor) -> None:
    steps_of(built, task).training_step({"inputs": inputs, "target": target}, 0).backward()


def batch(size: int = 6) -> dict:
    return {role: {"x": torch.randn(size, width).double()} for role, width in WIDTHS.items()}


def target_of(task: Task, size: int = 6) -> Tensor:
    if task == "single_label":
        return torch.randint(CLASSES, (size,))
    if task == "multi_label":
        return torch.randint(2, (size, CLASSES)).float()
    return 100 + 10 * torch.randn(size)


@pytest.mark.parametrize("task", TASKS)
def test_gradients_are_half_those_of_two_models_trained_apart(task):
    of, inputs, target = encoders(), batch(), target_of(task)
    apart = deepcopy(of)
    together = model(of, task).train()
    backward(together, task, inputs, target)
    for branch, role in enumerate(WIDTHS):
        head = together.head.heads[branch]
        alone = head_on(MainOnly(FineTune(apart[role]), []), task).train()
        alone.head.load_state_dict(head.state_dict())
        backward(alone, task, {"main": inputs[role]}, target)
        pairs = [
            *zip(apart[role].parameters(), of[role].parameters(), strict=True),
            *zip(alone.head.parameters(), head.parameters(), strict=True),
        ]
        assert alone.head.weight.grad.any()
        for own, joint in pairs:
            torch.testing.assert_close(2 * joint.grad, own.grad, rtol=1e-10, atol=1e-10)


def test_no_gradient_of_an_encoder_depends_on_the_other():
    built, inputs, target = model(encoders(), "single_label").train(), batch(), torch.arange(6) % 3
    gradients = []
    for _ in range(2):
        built.zero_grad()
        backward(built, "single_label", inputs, target)
        gradients.append({name: p.grad.clone() for name, p in built.named_parameters()})
        inputs["complement"]["x"] = torch.randn_like(inputs["complement"]["x"])
    changed = {name for name in gradients[0] if not gradients[0][name].equal(gradients[1][name])}
    assert {"head.heads.1.weight", "head.heads.1.bias"} <= changed
    assert not [name for name in changed if ".main." in name or name.startswith("head.heads.0.")]


@pytest.mark.parametrize("task", TASKS)
def test_the_prediction_is_the_mean_of_the_scores(task):
    of, inputs = encoders(), batch()
    built = model(of, task, Frozen).eval()
    scores = []
    for (role, encoder), head in zip(of.items(), built.head.heads, strict=True):
        x = encoder.encode(inputs[role]).pooled @ head.weight.T + head.bias
        scores.append(x * 12 + 100 if task == "regression" else x)
    output = built(inputs)
    tolerance = 1e-4 if task == "regression" else 1e-10  # its head computes in float32
    expected = (scores[0] + scores[1]) / 2
    torch.testing.assert_close(output.logits.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(
        output.branches.double(), torch.stack(scores), rtol=0, atol=tolerance
    )


def test_training_takes_the_mean_of_losses_and_evaluation_the_loss_of_the_mean():
    built = model(encoders(), "single_label", Frozen).eval()
    task, inputs, target = steps_of(built, "single_label"), batch(), target_of("single_label")
    logged = {}
    task.log = lambda name, value, **_: logged.update({name: value})
    task.validation_step({"inputs": inputs, "target": target}, 0)
    expected = F.cross_entropy(built(inputs).branches.mean(0).float(), target)
    torch.testing.assert_close(logged["val/loss"], expected)
    trained = task.training_step({"inputs": inputs, "target": target}, 0)
    own = [F.cross_entropy(scores.float(), target) for scores in built(inputs).branches]
    torch.testing.assert_close(trained, (own[0] + own[1]) / 2)
    assert not torch.isclose(trained, expected)


def test_heads_belong_to_the_group_head_and_count_as_one_part():
    built = model(encoders(), "single_label", Frozen)
    assert isinstance(built.head, EnsembleHead)
    trained = [name for name, p in built.named_parameters() if p.requires_grad]
    assert {group_of(name) for name in trained} == {"head"}
    (part,) = [count for count in count_parameters(built) if count.part == "head"]
    assert part.trained == CLASSES * (8 + 1 + 7 + 1)


def test_a_missing_modality_leaves_the_others_scores_alone():
    built = model(encoders(), "single_label", Frozen)
    built.fusion.allow_missing(["complement"])
    built.double().eval()
    inputs = batch()
    whole = built(inputs).branches
    present = torch.tensor([True, False, True, True, False, True])
    inputs["complement"] = {"x": inputs["complement"]["x"][present], PRESENT: present}
    some = built(inputs).branches
    torch.testing.assert_close(some[0], whole[0], rtol=1e-10, atol=1e-10)
    stand_in = built.head.heads[1](built.fusion.stand_ins["complement"])
    torch.testing.assert_close(some[1, ~present], stand_in.expand(2, -1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("task", TASKS)
def test_it_is_checked_trained_saved_and_rebuilt(tiny_config, task):
    config = {
        **tiny_config,
        "fusion": "ensemble",
        "complement_transfer": "fine_tune",
        "main_transfer": "fine_tune",
        "data": {"name": "tiny_data", "task": task},
    }
    outputs = 1 if task == "regression" else 2
    experiment = experiment_from_mapping(config)
    head = {count.part: count.trained for count in check(experiment).counts}["head"]
    assert head == outputs * (8 + 1 + 5 + 1)
    folder = fit(experiment).folder
    saved = load_file(folder / "model.safetensors")
    assert {"head.heads.0.weight", "head.heads.1.bias"} <= set(saved)
    if task == "regression":
        targets = torch.tensor([s.target for s in TinyData(task).split("train")])
        for branch in (0, 1):
            mean, std = (saved[f"head.heads.{branch}.target_{what}"] for what in ("mean", "std"))
            torch.testing.assert_close(mean, targets.mean())
            torch.testing.assert_close(std, targets.std(correction=0))
    predictor = fusionkit.load(folder)
    rows = [dict(sample.fields) for sample in TinyData(task).split("test")]
    predicted = predictor.predict(rows)
    inputs = {
        "main": {"x": torch.tensor([row["a"] for row in rows])},
        "complement": {"x": torch.tensor([row["b"] for row in rows])},
    }
    fusion = predictor.model.fusion
    scores = []
    for branch, role in enumerate(("main", "complement")):
        x = fusion.encoders[role].encoder.encode(inputs[role]).pooled
        x = x @ saved[f"head.heads.{branch}.weight"].T + saved[f"head.heads.{branch}.bias"]
        if task == "regression":
            x = x * targets.std(correction=0) + targets.mean()
        scores.append(x)
    mean = (scores[0] + scores[1]) / 2
    expected = {
        "single_label": mean.softmax(-1),
        "multi_label": mean.sigmoid(),
        "regression": mean.squeeze(-1),
    }[task]
    torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-5)
