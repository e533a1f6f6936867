"""A model's forward and backward pass as compiled kernels (``trainer.compile``)."""

from __future__ import annotations

from typing import Any

import torch

from fusionkit.errors import ConfigError
from fusionkit.fusion.model import FusionModel, ModelOutput

# Kinds of batches are compiled apart: of training and of validation, of one sample and of more,
# whether or not keys fill up to a multiple of eight. Torch's own limit of 8 is soon used up.
_KINDS = 32


def compile_model(model: FusionModel) -> None:
    """Compile forward and backward pass when they are first called, and again for further kinds.

    Sizes that vary are one kind, compiled when the second size comes. Weights keep their names.

    Args:
        model: Changed in place. What torch cannot compile as a whole raises: nothing runs
            uncompiled without being seen.
    """
    from torch._dynamo import config  # slow to import

    config.recompile_limit = max(config.recompile_limit, _KINDS)
    model.compile(fullgraph=True)


def run_model(model: FusionModel, inputs: Any) -> ModelOutput:
    """Call a model, compiled or not.

    Raises:
        ConfigError: It was compiled and cannot be. What is wrong with an uncompiled model raises
            as if it had never been compiled.
    """
    try:
        output: ModelOutput = model(inputs)
        return output
    except Exception as error:
        if not _of_compiler(error):
            raise
        reason = _reason(error)
        with torch.compiler.set_stance("force_eager"):
            model(inputs)
        raise ConfigError(
            f"trainer.compile: torch cannot compile this model. {reason} "
            f"Set trainer.compile to false; without it the model runs."
        ) from error


def _of_compiler(error: Exception) -> bool:
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # slow to import

    return isinstance(error, (FailOnRecompileLimitHit, TorchDynamoException))


def _reason(error: Exception) -> str:
    """What happened, and where in whose code, of the compiler's pages."""
    while isinstance(error.__cause__, Exception) and _of_compiler(error.__cause__):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    told = next((line for line in lines if line.startswith("Explanation: ")), lines[0])
    places = [f" ({line})" for line in lines if line.startswith("File ")]
    return told.removeprefix("Explanation: ").rstrip(".") + "".join(places[-1:]) + "."
