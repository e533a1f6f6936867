"""The LightningModule: one model, one task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from fusionkit.config.schema import OptimizerConfig
from fusionkit.data.base import Task
from fusionkit.errors import CheckpointError
from fusionkit.fusion.model import FusionModel, ModelOutput
from fusionkit.training import checkpoint as slim
from fusionkit.training.compiling import compile_model, run_model
from fusionkit.training.metrics import loss_of, make_metrics, predictions_of
from fusionkit.training.optimizer import make_optimizer, make_schedule
from fusionkit.training.precision import hold_frozen


class FusionTask(L.LightningModule):
    """Trains, validates, tests and predicts with a :class:`FusionModel`.

    Lightning's own checkpoints hold only what is trained; the frozen weights are identified by
    their hash and must be the same when a run continues.

    Args:
        model: The model.
        task: What it predicts.
        outputs: Number of classes, or 1.
        optimizer: Learning rates and schedule.
        frozen: Hashes of the frozen weights by role.
        compiled: Whether to compile the model.
    """

    strict_loading = False  # frozen weights are not in the checkpoint; on_load_checkpoint is strict

    def __init__(
        self,
        model: FusionModel,
        task: Task,
        outputs: int,
        optimizer: OptimizerConfig,
        frozen: Mapping[str, str],
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if compiled:
            compile_model(model)
        self.model = model
        self.task = task
        self.optimizer_config = optimizer
        self.frozen = dict(frozen)
        self.train_loss = MeanMetric(nan_strategy="disable")  # a loss that is NaN has to show
        self.metrics = nn.ModuleDict(
            {stage: make_metrics(task, outputs, f"{stage}/") for stage in ("val", "test")}
        )

    def setup(self, stage: str) -> None:
        hold_frozen(self.model, self.trainer.precision)

    def forward(self, inputs: Any) -> ModelOutput:
        """Predict a batch; inputs by role."""
        return run_model(self.model, inputs)

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return loss_of(self.task, logits, target, self.model.target_std)

    def _training_loss(self, output: ModelOutput, target: Tensor) -> Tensor:
        if output.branches is None:
            return self._loss(output.logits, target)
        # Each by its own loss: that of the mean would let one branch leave the work to another.
        return torch.stack([self._loss(branch, target) for branch in output.branches]).mean()

    def total_loss(self, batch: dict[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """What training minimises, and the terms of it that the fusion adds, weighted, by name."""
        output = self(batch["inputs"])
        loss = self._training_loss(output, batch["target"])
        return sum(output.fused.losses.values(), loss), output.fused.losses

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        size = len(batch["target"])
        loss, terms = self.total_loss(batch)
        for name, term in terms.items():
            self.log(f"train/{name}_loss", term, batch_size=size)
        self.log("train/loss_step", loss, prog_bar=True, on_epoch=False)
        # Of a number, torchmetrics would make a tensor on the host, and wait for its copy.
        self.train_loss.update(loss.detach(), torch.full_like(loss.detach(), size))
        if self.fabric is None:  # which steps without epochs, to measure, and logs no metrics
            self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, batch_size=size)
        return loss

    def on_train_epoch_start(self) -> None:
        # Not at the end of an epoch: one that continues in its middle goes on with its sum.
        self.train_loss.reset()

    def _evaluate(self, stage: str, batch: dict[str, Any]) -> ModelOutput:
        output: ModelOutput = self(batch["inputs"])
        target, size = batch["target"], len(batch["target"])
        predicted = predictions_of(self.task, output.logits)
        metrics: Any = self.metrics[stage]
        metrics.update(predicted, target.long() if self.task == "multi_label" else target)
        shown = stage == "val"
        loss = self._loss(output.logits, target)
        self.log(f"{stage}/loss", loss, batch_size=size, sync_dist=True)
        self.log_dict(metrics, prog_bar=shown, batch_size=size)
        return output

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> ModelOutput:
        """What callbacks see of the batch."""
        return self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> ModelOutput:
        """What callbacks see of the batch."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> tuple[Tensor, Tensor]:
        """Row indices (B,) and probabilities (B, C) or numbers (B,)."""
        return batch["index"], predictions_of(self.task, self(batch["inputs"]).logits)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.model, self.optimizer_config)
        steps = self.trainer.estimated_stepping_batches
        known = 0 <= steps < math.inf  # not of a stream that nobody has counted
        schedule = make_schedule(optimizer, self.optimizer_config, int(steps) if known else None)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = slim.trained_names(self.model)
        checkpoint["state_dict"] = {
            name: value
            for name, value in checkpoint["state_dict"].items()
            if name.removeprefix("model.") in trained
        }
        checkpoint["frozen"] = self.frozen
        mean = self.train_loss
        sums = torch.stack([mean.mean_value, mean.weight])
        checkpoint["train_loss"] = self.all_gather(sums).reshape(-1, 2).tolist()  # by process

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model.

        Raises:
            CheckpointError: Trained tensors are missing or unexpected, or frozen weights differ.
        """
        where = str(self.trainer.ckpt_path)
        saved = {name.removeprefix("model.") for name in checkpoint["state_dict"]}
        slim.check_names(saved, slim.trained_names(self.model), where)
        slim.check_frozen(checkpoint["frozen"], self.frozen, where)
        by_process = checkpoint.get("train_loss", [])
        if len(by_process) == self.trainer.world_size:  # else an epoch begins, and with it the sum
            total, weight = by_process[self.trainer.global_rank]
            self.train_loss.mean_value.fill_(total)
            self.train_loss.weight.fill_(weight)


def read_lightning_checkpoint(path: str) -> dict[str, Any]:
    """Load a resume checkpoint, to say early what is wrong with it.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error
    return content
