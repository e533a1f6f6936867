"""What an experiment's config may say. Imports no torch, so that help answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fusionkit.registry import Kind, load


@dataclass(frozen=True, slots=True)
class LoaderConfig:
    """How samples become batches.

    Args:
        batch_size: Samples per step and device in training.
        eval_batch_size: The same in validation, test and prediction; null for batch_size.
        workers: Processes that read and preprocess; null for one per core, at most 8.
    """

    batch_size: int = 32
    eval_batch_size: int | None = None
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW and its schedule (arXiv 2312.03734, section 4.1).

    Args:
        lr: Learning rate of everything; null for 4e-4 where what is prompted or trained is
            vision and 5e-4 elsewhere.
        group_lr: Learning rate by parameter group: main, complement, complement_2, ..., fusion, head.
        weight_decay: AdamW's, on matrices only.
        schedule: step multiplies by gamma at each milestone; cosine falls to 0 over the run.
        milestones: Epochs at which the step schedule acts.
        gamma: Factor of the step schedule.
    """

    lr: float | None = None
    group_lr: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.01  # AdamW's own default; the paper gives none
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: list[int] = field(default_factory=lambda: [2, 5])
    gamma: float = 0.5


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """How long and where to train.

    Args:
        max_epochs: Passes over the training split.
        accelerator: auto takes a GPU when there is one.
        devices: How many, which ones, or auto.
        num_nodes: Machines.
        strategy: Lightning's: auto, ddp, fsdp, ...
        precision: auto is bf16-mixed on a GPU that has it, 32-true elsewhere.
        accumulate_grad_batches: Batches per optimizer step.
        gradient_clip_val: Largest gradient norm; null for no clipping.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        early_stopping: Stop after this many epochs without a better validation metric; null for never.
        monitor: Validation metric that picks the best epoch; null for the task's own.
        log_every_n_steps: Steps between two rows of the step log.
        limit_train_batches: Batches (int) or share (float) of each training epoch.
        limit_val_batches: The same for validation.
        limit_test_batches: The same for test.
        deterministic: Refuse operations that are not repeatable.
        progress_bar: Show one.
    """

    max_epochs: int = 12
    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = 1.0
    gradient_checkpointing: bool = False
    early_stopping: int | None = None
    monitor: str | None = None
    log_every_n_steps: int = 50
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    limit_test_batches: int | float = 1.0
    deterministic: bool = False
    progress_bar: bool = True


@dataclass(frozen=True, slots=True)
class Component:
    """A registered class and the arguments it is built with."""

    kind: Kind
    name: str
    init: Mapping[str, Any]

    def build(self, *given: Any) -> Any:
        """Import the class and make one; ``given`` are the arguments a config cannot state."""
        return load(self.kind, self.name)(*given, **self.init)


@dataclass(frozen=True, slots=True)
class ComplementConfig:
    """One complementary encoder: what it is, how it is transferred, which field it reads."""

    encoder: Component
    transfer: Component
    field: str | None


@dataclass(frozen=True, slots=True)
class Experiment:
    """A config that was read, merged and validated.

    Attributes:
        name: Folder under ``output``; by default the config file's stem.
        output: Where run folders are made.
        seed: Of everything random.
        main: The main encoder.
        main_transfer: What of it is trained.
        main_field: The field it reads; None for the only one of its modality.
        complements: The complementary encoders, in order.
        fusion: How they are fused.
        data: Where samples come from.
        loader: See :class:`LoaderConfig`.
        optimizer: See :class:`OptimizerConfig`.
        trainer: See :class:`TrainerConfig`.
        baselines: Other experiments to train and test beside this one, by label.
        resolved: The whole config as plain values: saved with each run, enough to repeat it.
    """

    name: str
    output: str
    seed: int
    main: Component
    main_transfer: Component
    main_field: str | None
    complements: tuple[ComplementConfig, ...]
    fusion: Component
    data: Component
    loader: LoaderConfig
    optimizer: OptimizerConfig
    trainer: TrainerConfig
    baselines: Mapping[str, Experiment]
    resolved: Mapping[str, Any]
