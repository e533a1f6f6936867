"""Run folders: ``output/name/000``, ``001``, ..."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

from fusionkit.errors import CheckpointError, ConfigError

RESUME = "last.ckpt"
CONFIG = "config.yaml"
METRICS = "metrics.json"
_CHOSEN = "FUSIONKIT_RUN_FOLDER"  # tells the processes that Lightning starts which folder is theirs

# What may change when a run continues.
_MAY_CHANGE = (
    "name",
    "output",
    "baselines",
    "cache",
    "loader.workers",
    "loader.eval_batch_size",
    "trainer.max_epochs",
    "trainer.accelerator",
    "trainer.compile",
    "trainer.early_stopping",
    "trainer.progress_bar",
    "trainer.save_every_n_steps",
    "trainer.log_every_n_steps",
    "trainer.limit_train_batches",
    "trainer.limit_val_batches",
    "trainer.limit_test_batches",
)


def is_first_process() -> bool:
    """Whether this process prints and writes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def new_folder(parent: Path) -> Path:
    """Make and return the next free numbered folder; further processes get the first one's.

    Raises:
        ConfigError: This process was started by something that does not hand the folder on.
    """
    if not is_first_process():
        if _CHOSEN not in os.environ:
            raise ConfigError(
                "Several processes were started from outside. Start one `fusionkit fit`: "
                "trainer.devices says how many processes it starts itself."
            )
        return Path(os.environ[_CHOSEN])
    parent.mkdir(parents=True, exist_ok=True)
    taken = [int(path.name) for path in parent.iterdir() if path.name.isdigit()]
    number = max(taken, default=-1) + 1
    while True:  # another run may take the number between looking and making
        folder = parent / f"{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        os.environ[_CHOSEN] = str(folder)
        return folder


def resume_folder(parent: Path, ckpt_path: str) -> Path:
    """The run folder to continue in.

    Args:
        parent: Where this experiment's runs are.
        ckpt_path: ``last``, a run folder, or its ``last.ckpt``.

    Raises:
        CheckpointError: There is nothing to continue.
    """
    if ckpt_path == "last":
        runs = sorted(
            (path for path in parent.glob("*") if (path / RESUME).is_file()),
            key=lambda path: (path / RESUME).stat().st_mtime,
        )
        if not runs:
            raise CheckpointError(
                f"No run to continue in {parent}: no folder there holds {RESUME}. "
                f"Leave --ckpt_path out to start one."
            )
        return runs[-1]
    given = Path(ckpt_path)
    folder = given.parent if given.name == RESUME else given
    if not (folder / RESUME).is_file():
        raise CheckpointError(
            f"{folder} holds no {RESUME} to continue from. Give a run folder, or `last`."
        )
    return folder


def check_same_config(folder: Path, resolved: Mapping[str, Any]) -> None:
    """Refuse to continue a run under another config.

    Raises:
        ConfigError: Lists the keys that differ and may not.
    """
    changed = changed_keys(folder, resolved, _MAY_CHANGE)
    if changed:
        raise ConfigError(
            f"The run in {folder} cannot continue under another config: {'; '.join(changed[:5])}"
            f"{'; ...' if len(changed) > 5 else ''}. Set them back, or start a new run."
        )


def changed_keys(
    folder: Path, resolved: Mapping[str, Any], may_change: tuple[str, ...]
) -> list[str]:
    """What differs between the config of a run folder and another, as ``key: old -> new``.

    Args:
        folder: Its :data:`CONFIG` is read.
        resolved: The other.
        may_change: Beginnings of keys that do not count.
    """
    before = _flat(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")))
    now = _flat(resolved)
    return [
        f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(may_change)
    ]


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def keep_metrics(folder: Path) -> None:
    """Put the step log of a run that continues aside, as ``metrics.1.csv`` and so on."""
    log = folder / "metrics.csv"
    if log.exists():
        number = len(list(folder.glob("metrics.*.csv"))) + 1
        log.rename(folder / f"metrics.{number}.csv")


def logged_by_epoch(folder: Path) -> Iterator[tuple[int, str, float]]:
    """(epoch counted from 1, metric, value) of all that a run has logged by epoch.

    Of an epoch that was begun again when the run was continued, what was logged last holds.
    """
    aside = sorted(folder.glob("metrics.*.csv"), key=lambda log: int(log.suffixes[0][1:]))
    seen: set[tuple[int, str]] = set()
    for log in (folder / "metrics.csv", *reversed(aside)):
        if not log.is_file():
            continue
        with log.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    by_epoch = name == "train/loss" or name.startswith("val/")
                    if not (by_epoch and value and row.get("epoch")):
                        continue
                    epoch = int(float(row["epoch"])) + 1
                    if (epoch, name) not in seen:
                        seen.add((epoch, name))
                        yield epoch, name, float(value)


def label_folders(labels: Iterable[str], section: str) -> dict[str, str]:
    """A folder name for each of the ``baselines`` or ``systems``.

    Raises:
        ConfigError: Two labels give the same one.
    """
    names = {label: re.sub(r"[^\w-]+", "_", label).strip("_") or "_" for label in labels}
    for label, name in names.items():
        twins = [other for other in names if names[other] == name]
        if len(twins) > 1:
            raise ConfigError(
                f"{section}: the labels {' and '.join(map(repr, twins))} share a folder; "
                f"rename {label!r}."
            )
    return names
