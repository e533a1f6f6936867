"""What is hung into Lightning: the best weights so far, the progress bar, silence."""

from __future__ import annotations

import logging
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar

from fusionkit.training import checkpoint
from fusionkit.training.metrics import improves


class SaveBest(L.Callback):
    """Writes the slim checkpoint whenever the monitored metric improves.

    Args:
        path: Where to.
        monitor: Metric to follow; None saves after every epoch (there is nothing to validate on).
        describe: Makes the description from the metrics and the number of finished epochs.
    """

    def __init__(
        self,
        path: Path,
        monitor: str | None,
        describe: Callable[[dict[str, float], int], checkpoint.Description],
    ) -> None:
        self.path = path
        self.monitor = monitor
        self.describe = describe
        self.best: float | None = None
        self.best_epoch: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.monitor is None or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics[self.monitor].item()
        if self.best_epoch is None or improves(self.monitor, value, self.best):
            self.best = value if value == value else None
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.monitor is None:
            self._save(trainer, pl_module)

    def _save(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.best_epoch = trainer.current_epoch + 1
        if not trainer.is_global_zero:
            return
        metrics = {
            name: value.item()
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        checkpoint.save(self.path, pl_module.model, self.describe(metrics, self.best_epoch))


class SeedSteps(L.Callback):
    """Makes the randomness of each step a function of seed, epoch, batch and process.

    So a continued run draws the same order, dropout, dropped fields and routing noise as one
    without a break, wherever the break was.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._loader: Sequence[dict[str, int]] = ()

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        self._loader = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", ())

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        # Lightning saves where the loader is, but gives it back only where nothing has asked for
        # the number of steps before, as the schedule does.
        for state in self._loader:
            trainer.train_dataloader.load_state_dict(state)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        trainer.train_dataloader.set_epoch(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        rng = random.Random(f"{self.seed} {trainer.current_epoch} {batch_idx}")
        seed = rng.getrandbits(48) + trainer.global_rank
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes thirty times as long
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(seed)


class SaveLast(Checkpoint):
    """Writes what a run needs to continue: at the end of each epoch, and between if asked to.

    A file is there whole or not at all, whenever the process is killed.

    Args:
        path: Where to; each file takes the place of the one before.
        every_n_steps: Optimizer steps from one to the next within an epoch; None for none.
    """

    def __init__(self, path: Path, every_n_steps: int | None) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        step, ends = trainer.global_step, trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        if self.every_n_steps is None or ends or step == self._step:  # no step while accumulating
            return
        self._step = step
        if step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        trainer.save_checkpoint(unfinished)
        if trainer.is_global_zero:
            os.replace(unfinished, self.path)
        for logger in trainer.loggers:  # what a killed run has logged up to here is not lost
            logger.save()


_REDRAW = 0.1  # seconds between two pictures of the progress bar


class ProgressBar(RichProgressBar):
    """One line: epoch, batches, time left, loss and the monitored metric."""

    def __init__(self, monitor: str | None = None) -> None:
        super().__init__(leave=False)
        self.monitor = monitor
        self._drawn = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        # Showing a loss waits for the device to have computed it, so not after every batch.
        now = time.monotonic()
        if now - self._drawn >= _REDRAW or trainer.is_last_batch:
            self._drawn = now
            super().on_train_batch_end(trainer, *args)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        # Not its metrics: they take all processes, and only the first has a progress bar.
        self.refresh()

    def get_metrics(self, trainer: L.Trainer, pl_module: Any) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        shown = {"train/loss_step": "loss", self.monitor: self.monitor}
        return {shown[name] or "": value for name, value in metrics.items() if name in shown}


class StopWithoutValues(L.Callback):
    """Stops after an epoch in which nothing of a field could be read.

    Lightning asks for as many batches as there are, so what a loader does after its last one is
    not reached.
    """

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Raises DataError where :meth:`fusionkit.data.missing.Unreadable.check` does."""
        if trainer.is_last_batch:
            trainer.train_dataloader.dataset.unreadable.check(least=2)


_NOT_HERE = (
    ".*IterableDataset. has .__len__. defined.*",  # StreamLoader ends its epochs itself
    ".*custom batch sampler.*for prediction.*",  # it leaves nothing out
    ".*does not have many workers.*",  # loader.workers says how many
    ".*exists and is not empty.*",  # the folder of a continued run, whose log is kept
    ".*number of training batches.*smaller than the logging interval.*",
    ".*No (positive|negative) samples in targets.*",  # AUROC of a class that a split lacks
    ".*module.s. in eval mode at the start of training.*",  # the frozen encoders
    ".*isinstance.treespec, LeafSpec.*",  # Lightning's own use of torch
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence advice and advertisements of Lightning that do not apply here."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in _NOT_HERE:
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            logger.setLevel(level)
