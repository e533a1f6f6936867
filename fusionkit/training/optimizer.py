"""Parameter groups, AdamW and the schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

from fusionkit.config.schema import OptimizerConfig
from fusionkit.errors import ConfigError, suggest
from fusionkit.fusion.model import FusionModel

VISION_LR, OTHER_LR = 4e-4, 5e-4  # arXiv 2312.03734, section 4.1


def learning_rates(model: FusionModel, config: OptimizerConfig) -> dict[str, float]:
    """Learning rate of each parameter group.

    ``group_lr`` goes before ``lr``, which goes before the paper's: 4e-4 where the encoder that is
    prompted or trained sees images or video, 5e-4 elsewhere. ``fusion`` and ``head`` prompt and
    read the main encoder, so they follow it.

    Raises:
        ConfigError: ``group_lr`` names a group that the model does not have.
    """
    fusion = model.fusion
    rates = {}
    for group in ("main", *fusion.complements, "fusion", "head"):
        transfer = fusion.complements.get(group, fusion.main)
        vision = transfer.encoder.modality in ("image", "video")
        rates[group] = config.lr if config.lr is not None else VISION_LR if vision else OTHER_LR
    for group, rate in config.group_lr.items():
        if group not in rates:
            raise ConfigError(
                f"optimizer.group_lr: no parameter group {group!r}.{suggest(group, rates)} "
                f"Groups: {', '.join(rates)}."
            )
        rates[group] = rate
    return rates


def make_optimizer(model: FusionModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over what is trained; weight decay on matrices only.

    Raises:
        ConfigError: Nothing is trained.
    """
    rates = learning_rates(model, config)
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for group, _, parameter in model.named_groups():
        if parameter.requires_grad:
            groups.setdefault((group, parameter.ndim > 1), []).append(parameter)
    if not groups:
        raise ConfigError("Nothing is trained: no parameter requires a gradient.")
    optimizer = torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": rates[group],
                "weight_decay": config.weight_decay if matrices else 0.0,
                "name": group if matrices else f"{group}, vectors",
            }
            for (group, matrices), parameters in groups.items()
        ],
        fused=True,
    )
    # Says that it unscales gradients itself, which a fused optimizer can. Lightning could then not
    # clip them under mixed precision; it unscales them before if this is False.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def make_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps: int | None
) -> dict[str, Any]:
    """Lightning's description of the learning-rate schedule.

    Args:
        optimizer: Its learning rates are the peaks.
        config: Which schedule.
        steps: Optimizer steps of the whole run; None if nobody knows how many.

    Raises:
        ConfigError: A cosine falls to 0 at a time that nobody knows.
    """
    scheduler: LRScheduler
    if config.schedule == "step":
        scheduler = MultiStepLR(optimizer, config.milestones, config.gamma)
        return {"scheduler": scheduler, "interval": "epoch"}
    if config.schedule == "cosine":
        if steps is None:
            raise ConfigError(
                "optimizer.schedule: cosine has to know how many steps training has, which is not "
                "known of this data. Set trainer.limit_train_batches to a number of batches."
            )
        total = max(steps, 1)
        scheduler = LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))
        )
    else:
        scheduler = LambdaLR(optimizer, lambda step: 1.0)
    return {"scheduler": scheduler, "interval": "step"}
