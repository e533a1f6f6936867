from __future__ import annotations

import math

import pytest
import torch
from sklearn import metrics as reference

from fusionkit.training.metrics import improves, loss_of, make_metrics, predictions_of


def test_single_label_metrics_equal_scikit_learn():
    logits, target = torch.randn(60, 4), torch.arange(60) % 4
    found = make_metrics("single_label", 4, "val/")
    found.update(predictions_of("single_label", logits), target)
    values = {name: value.item() for name, value in found.compute().items()}
    best = logits.argmax(-1)
    assert values["val/accuracy"] == pytest.approx(reference.accuracy_score(target, best))
    assert values["val/f1_macro"] == pytest.approx(
        reference.f1_score(target, best, average="macro")
    )
    assert values["val/auroc"] == pytest.approx(
        reference.roc_auc_score(target, logits.softmax(-1), multi_class="ovr"), abs=1e-6
    )


def test_multi_label_metrics_equal_scikit_learn_at_one_half():
    logits, target = torch.randn(60, 5), (torch.rand(60, 5) < 0.4).float()
    found = make_metrics("multi_label", 5, "test/")
    found.update(predictions_of("multi_label", logits), target.long())
    values = {name: value.item() for name, value in found.compute().items()}
    chosen = logits > 0
    for average in ("macro", "micro"):
        assert values[f"test/f1_{average}"] == pytest.approx(
            reference.f1_score(target, chosen, average=average)
        )
    assert values["test/auroc"] == pytest.approx(reference.roc_auc_score(target, logits), abs=1e-6)


def test_regression_metrics_equal_scikit_learn():
    target = torch.randn(30) * 4 + 7
    guess = target + torch.randn(30)
    found = make_metrics("regression", 1, "val/")
    found.update(predictions_of("regression", guess.unsqueeze(-1)), target)
    values = {name: value.item() for name, value in found.compute().items()}
    assert values["val/r2"] == pytest.approx(reference.r2_score(target, guess), rel=1e-4)
    assert values["val/mae"] == pytest.approx(
        reference.mean_absolute_error(target, guess), rel=1e-5
    )


def test_losses_by_hand():
    logits = torch.tensor([[1.0, 0.0]])
    assert loss_of("single_label", logits, torch.tensor([1]), None).item() == pytest.approx(
        math.log(1 + math.e)
    )
    both = loss_of("multi_label", logits, torch.tensor([[1.0, 0.0]]), None).item()
    assert both == pytest.approx((math.log(1 + 1 / math.e) + math.log(2)) / 2)
    error = loss_of("regression", torch.tensor([[30.0]]), torch.tensor([10.0]), torch.tensor(10.0))
    assert error.item() == pytest.approx(4.0)


def test_more_is_better_but_for_losses_and_nan_is_never():
    assert improves("val/accuracy", 0.9, None)
    assert improves("val/accuracy", 0.9, 0.8)
    assert not improves("val/accuracy", 0.8, 0.8)
    assert improves("val/mae", 1.0, 2.0)
    assert improves("val/loss", 1.0, 2.0)
    assert not improves("val/accuracy", math.nan, None)
