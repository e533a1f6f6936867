"""Run folders: ``output/name/000``, ``001``, ..."""

from __future__ import annotations

import os
from pathlib import Path

from fusionkit.errors import CheckpointError

RESUME = "last.ckpt"
_CHOSEN = "FUSIONKIT_RUN_FOLDER"  # so that the processes of one distributed run share a folder


def new_folder(parent: Path) -> Path:
    """Make and return the next free numbered folder."""
    chosen = os.environ.get(_CHOSEN)
    if chosen and Path(chosen).parent == parent:
        return Path(chosen)
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
