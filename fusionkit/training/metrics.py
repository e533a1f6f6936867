"""Loss and metrics of each task."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelAUROC,
    MultilabelF1Score,
)
from torchmetrics.regression import MeanAbsoluteError, R2Score

from fusionkit.data.base import Task

# The validation metric that picks the best epoch, and whether more is better.
MONITOR: dict[Task, str] = {
    "single_label": "val/accuracy",
    "multi_label": "val/f1_macro",
    "regression": "val/mae",
}
LESS_IS_BETTER = ("loss", "mae")


def improves(metric: str, new: float, old: float | None) -> bool:
    """Whether a value of a metric is better than an older one; NaN never is."""
    if new != new:
        return False
    if old is None:
        return True
    return new < old if metric.rpartition("/")[2] in LESS_IS_BETTER else new > old


def make_metrics(task: Task, outputs: int, prefix: str) -> MetricCollection:
    """The metrics of a task, named ``prefix + name``.

    F1 and AUROC follow the paper's protocol: sigmoid above 0.5 for multi-label (section 4.2 of
    arXiv 2312.03734). In single-label tasks micro F1 is the accuracy.
    """
    metrics: dict[str, Metric]
    if task == "single_label":
        metrics = {
            "accuracy": MulticlassAccuracy(outputs, average="micro"),
            "f1_macro": MulticlassF1Score(outputs, average="macro"),
            "auroc": MulticlassAUROC(outputs),
        }
    elif task == "multi_label":
        metrics = {
            "accuracy": MultilabelAccuracy(outputs, average="micro"),
            "f1_macro": MultilabelF1Score(outputs, average="macro"),
            "f1_micro": MultilabelF1Score(outputs, average="micro"),
            "auroc": MultilabelAUROC(outputs),
        }
    else:
        metrics = {"r2": R2Score(), "mae": MeanAbsoluteError()}
    return MetricCollection(metrics, prefix=prefix)


def loss_of(task: Task, logits: Tensor, target: Tensor, scale: Tensor | None) -> Tensor:
    """The mean loss of a batch.

    Args:
        task: Cross-entropy, binary cross-entropy or squared error.
        logits: (B, outputs).
        target: (B,) class index or number; (B, outputs) 0/1 for multi-label.
        scale: Standard deviation of the regression target; None for the other tasks.
    """
    logits = logits.float()
    if task == "single_label":
        return F.cross_entropy(logits, target)
    if task == "multi_label":
        return F.binary_cross_entropy_with_logits(logits, target)
    error = logits.squeeze(-1) - target
    return (error / scale).square().mean() if scale is not None else error.square().mean()


def predictions_of(task: Task, logits: Tensor) -> Tensor:
    """Probabilities (B, C), or numbers (B,) for regression."""
    logits = logits.float()
    if task == "single_label":
        return logits.softmax(dim=-1)
    return torch.sigmoid(logits) if task == "multi_label" else logits.squeeze(-1)
