"""What an experiment's config may say. Imports no torch, so that help answers at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fusionkit.errors import ConfigError, suggest
from fusionkit.registry import Kind, load

# Top-level keys that hold a registered name with its arguments.
COMPONENTS: dict[str, Kind] = {
    "main": "main_encoder",
    "main_transfer": "transfer",
    "complement": "complement_encoder",
    "complement_transfer": "transfer",
    "fusion": "fusion",
    "data": "dataset",
}

# Constructor arguments that the program gives, so that a config cannot state them.
GIVEN: dict[Kind, frozenset[str]] = {
    "main_encoder": frozenset(),
    "complement_encoder": frozenset(),
    "fusion": frozenset({"main", "complements"}),
    "transfer": frozenset({"encoder"}),
    "dataset": frozenset(),
}

Node = str | Mapping[str, Any] | None  # a name, or a mapping of `name` and arguments


@dataclass(frozen=True, slots=True)
class LoaderConfig:
    """How samples become batches.

    Args:
        batch_size: Samples per step and device in training.
        eval_batch_size: The same in validation, test and prediction; null for that of training.
        workers: Processes that read and preprocess; null for one per core, at most 8.
        bucket_by_length: Training batches of texts and sounds of similar length, to pad less.
        tokens_per_batch: Tokens that a batch has at most, padding included, instead of batch_size;
            in buckets.
        balanced: Epochs in which each class is drawn equally often.
        shots: Train on this many samples, in the proportions of the classes; null for all.
        shots_per_class: Train on this many samples of each class; null for all.
    """

    batch_size: int = 32
    eval_batch_size: int | None = None
    workers: int | None = None
    bucket_by_length: bool = False
    tokens_per_batch: int | None = None
    balanced: bool = False
    shots: int | None = None
    shots_per_class: int | None = None

    def __post_init__(self) -> None:
        _at_least(self, 1, "batch_size", "eval_batch_size", "tokens_per_batch")
        _at_least(self, 1, "shots", "shots_per_class")
        _at_least(self, 0, "workers")
        if self.shots is not None and self.shots_per_class is not None:
            raise ConfigError(
                f"shots is {self.shots} and shots_per_class is {self.shots_per_class}; set one of "
                f"them to null."
            )


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW and its schedule (arXiv 2312.03734, section 4.1).

    Args:
        lr: Learning rate of everything; null for 4e-4 where what is prompted or trained is
            vision and 5e-4 elsewhere.
        group_lr: Learning rate by parameter group: main, complement, complement_2, ..., fusion,
            head.
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

    def __post_init__(self) -> None:
        _at_least(self, 0, "lr", "weight_decay", "gamma")
        wrong = [f"group_lr.{k}: {v}" for k, v in self.group_lr.items() if v < 0]
        wrong += [f"milestones: {m}" for m in self.milestones if m < 1]
        if wrong:
            raise ConfigError(
                f"Rates are at least 0 and milestones at least 1; {', '.join(wrong)}."
            )


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """How long and where to train.

    Args:
        max_epochs: Passes over the training split.
        accelerator: auto takes a GPU when there is one.
        devices: How many, which ones, or auto.
        strategy: How several devices share the work.
        precision: auto is bf16-mixed on a GPU that has it, 16-mixed on others, 32-true on a CPU.
        accumulate_grad_batches: Batches per optimizer step.
        gradient_clip_val: Largest gradient norm; null for no clipping.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        compile: Have torch make kernels of the model: faster steps, after minutes at the first
            batches of training and of validation.
        early_stopping: Stop after this many epochs without a better validation metric; null for
            never.
        monitor: Validation metric that picks the best epoch; null for the task's own.
        save_every_n_steps: Steps between two points within an epoch from which a killed run can
            continue; null for the ends of epochs only.
        log_every_n_steps: Steps between two rows of the step log.
        limit_train_batches: Batches (int) or share (float) of each training epoch.
        limit_val_batches: The same for validation.
        limit_test_batches: The same for test.
        deterministic: Refuse operations that are not repeatable.
        profile: Show after training where a step's time went, by part.
        progress_bar: Show one.
    """

    max_epochs: int = 12
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int | str | list[int] = "auto"
    strategy: Literal["auto", "ddp"] = "auto"
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"] = "auto"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = 1.0
    gradient_checkpointing: bool = False
    compile: bool = False
    early_stopping: int | None = None
    monitor: str | None = None
    save_every_n_steps: int | None = None
    log_every_n_steps: int = 50
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    limit_test_batches: int | float = 1.0
    deterministic: bool = False
    profile: bool = False
    progress_bar: bool = True

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_epochs", "accumulate_grad_batches", "log_every_n_steps")
        _at_least(self, 1, "save_every_n_steps")
        _at_least(self, 0, "gradient_clip_val", "early_stopping")
        if self.compile and self.profile:
            raise ConfigError(
                "profile times the parts of a step, compile makes one of them; set one to false."
            )
        for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
            limit = getattr(self, name)
            if limit <= 0 or (isinstance(limit, float) and limit > 1):
                raise ConfigError(
                    f"{name} is a number of batches (1 or more) or a share above 0 and up to 1.0, "
                    f"given {limit}."
                )


@dataclass(frozen=True, slots=True)
class MissingConfig:
    """Samples that lack a field: a learned stand-in takes its place.

    Args:
        allow: Roles whose field a sample may lack: main, complement, complement_2, ...
        unreadable: Take a file that cannot be read for a missing field, and count it.
        dropout: Probability that a sample's field is dropped in training, never its last one; one
            number for every role of allow, or one by role.
        mask: CSV that says which fields of which samples are missing; `fusionkit mask` writes one.
    """

    allow: list[str] = field(default_factory=list)
    unreadable: bool = False
    dropout: float | dict[str, float] = 0.0
    mask: str | None = None

    def __post_init__(self) -> None:
        for role in self.allow:
            _check_role("allow", role)
        by_role = self.dropout if isinstance(self.dropout, dict) else {}
        for role in by_role:
            _check_role("dropout", role)
            if role not in self.allow:
                raise ConfigError(f"dropout names {role}, allow does not; add {role} to allow.")
        rates = list(by_role.values()) if isinstance(self.dropout, dict) else [self.dropout]
        if not all(0 <= rate < 1 for rate in rates):
            raise ConfigError(
                f"dropout is a probability, at least 0 and below 1, given {self.dropout}."
            )
        asked = {"unreadable": self.unreadable, "dropout": any(rates), "mask": self.mask}
        useless = [key for key, value in asked.items() if value]
        if useless and not self.allow:
            raise ConfigError(
                f"{' and '.join(useless)}: nothing may be missing yet. Say in allow which roles "
                f"may lack their field, such as [complement]."
            )

    def dropout_of(self, role: str) -> float:
        """Probability that the field of ``role`` is dropped in training."""
        if role not in self.allow:
            return 0.0
        return self.dropout.get(role, 0.0) if isinstance(self.dropout, dict) else self.dropout


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """What frozen encoders see, computed once; `cache: true` is short for `roles: all`.

    Args:
        roles: Which: main, complement, complement_2, ...; all for every complement that is read,
            and the main encoder if its first layers run without prompts; auto for those of them
            that can be.
        dtype: What values are kept as; float16 takes half the space and is not exact.
        folder: Where; null for $FUSIONKIT_CACHE, or fusionkit in the user's folder of caches.
    """

    roles: Literal["all", "auto"] | list[str] = field(default_factory=list)
    dtype: Literal["float32", "float16"] = "float32"
    folder: str | None = None

    def __post_init__(self) -> None:
        for role in () if isinstance(self.roles, str) else self.roles:
            _check_role("roles", role)


# A section that a config may give as a word, and what that stands for.
SHORT: dict[str, dict[Any, dict[str, Any]]] = {
    "cache": {True: {"roles": "all"}, False: {"roles": []}, "auto": {"roles": "auto"}}
}

SECTIONS: dict[
    str, type[CacheConfig | LoaderConfig | OptimizerConfig | TrainerConfig | MissingConfig]
] = {
    "cache": CacheConfig,
    "loader": LoaderConfig,
    "missing": MissingConfig,
    "optimizer": OptimizerConfig,
    "trainer": TrainerConfig,
}


@dataclass(frozen=True, slots=True)
class ConfigKeys:
    """The top level of a config, as it is written.

    Args:
        name: Folder of the run under output; null for the config file's own name.
        output: Folder in which runs are made.
        seed: Of everything random.
        system: Short for what a compared system sets: transfer modes and fusion. Keys that are
            stated beside it hold over it.
        main: The main encoder, whose layers are prompted.
        main_transfer: What of it is trained.
        main_field: Field of the data it reads; null for the only one of its modality.
        complement: The complementary encoder.
        complement_transfer: What of it is trained.
        complement_field: Field of the data it reads; null for the only one of its modality.
        more_complements: Further complements, a list of {encoder, transfer, field}.
        fusion: How complements and main encoder are fused.
        data: Where samples come from.
        loader: How samples become batches.
        cache: What frozen encoders see is computed once.
        missing: Samples that lack a field.
        optimizer: AdamW and its schedule.
        trainer: How long and where to train.
        baselines: Configs merged over this one, by label; trained and tested beside it.
        systems: For `fusionkit compare`: names of systems, or configs merged over this one, by
            label. A label that is a system's name stands for it.
        seeds: For `fusionkit compare --fit` and `fusionkit sweep`: everything is trained with each
            of them; empty for seed alone.
        sweep: For `fusionkit sweep`: the axes of a grid. A dotted key has a list of its values; a
            name of your own has configs to merge over this one, by label, or a pattern of files.
    """

    name: str | None = None
    output: str = "runs"
    seed: int = 0
    system: str | None = None
    main: Node = None
    main_transfer: Node = "frozen"
    main_field: str | None = None
    complement: Node = None
    complement_transfer: Node = "prompt"
    complement_field: str | None = None
    more_complements: list[dict[str, Any]] = field(default_factory=list)
    fusion: Node = "conditional_prompt"
    data: Node = None
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    missing: MissingConfig = field(default_factory=MissingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    baselines: dict[str, Any] = field(default_factory=dict)
    systems: list[str] | dict[str, Any] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    sweep: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least(self, 0, "seed")
        if any(seed < 0 for seed in self.seeds):
            raise ConfigError(f"seeds are at least 0, given {self.seeds}.")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds holds one of its numbers twice: {self.seeds}.")


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
        cache: See :class:`CacheConfig`.
        missing: See :class:`MissingConfig`.
        optimizer: See :class:`OptimizerConfig`.
        trainer: See :class:`TrainerConfig`.
        baselines: Other experiments to train and test beside this one, by label.
        systems: Experiments that `fusionkit compare` sets side by side, by label.
        seeds: With which it trains each of them; at least one.
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
    cache: CacheConfig
    missing: MissingConfig
    optimizer: OptimizerConfig
    trainer: TrainerConfig
    baselines: Mapping[str, Experiment]
    systems: Mapping[str, Experiment]
    seeds: tuple[int, ...]
    resolved: Mapping[str, Any]


def _check_role(key: str, role: str) -> None:
    if not re.fullmatch(r"main|complement(_([2-9]|[1-9]\d+))?", role):
        known = ("main", "complement", "complement_2")
        raise ConfigError(
            f"{key}: there is no role {role!r}.{suggest(role, known)} "
            f"Roles are main, complement, complement_2, ..."
        )


def _at_least(config: object, minimum: int, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if value is not None and not value >= minimum:  # `not >=` refuses nan too
            raise ConfigError(f"{key} is {value}; it must be at least {minimum}.")
