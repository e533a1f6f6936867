"""What a model takes from the training split before it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch

from fusionkit.config.schema import Experiment
from fusionkit.data.base import Sample, Samples, Stream
from fusionkit.data.missing import is_unreadable
from fusionkit.data.values import RoleInput, is_missing, read_value
from fusionkit.errors import DataError
from fusionkit.fusion.model import FusionModel
from fusionkit.training.assemble import role_inputs

START_SAMPLES = 32  # already thousands of tokens of images, hundreds of short texts


def fit_statistics(encoder: Any, samples: Samples, field: str, lenient: bool) -> None:
    """Show an encoder the training split; one that takes no statistics reads none of it.

    Args:
        encoder: Takes what it needs, see :meth:`ComplementEncoder.fit_statistics`.
        samples: The training split.
        field: What the encoder reads.
        lenient: Whether values that cannot be read are left out.

    Raises:
        DataError: A value cannot be used; the message names its sample.
    """
    last = ""

    def values() -> Iterator[Any]:
        nonlocal last
        for sample in samples:
            if (value := sample.fields.get(field)) is not None:
                if lenient and not _is_readable(encoder, value):
                    continue
                last = sample.origin
                yield value
                last = ""

    try:
        encoder.fit_statistics(values())
    except DataError as error:
        if not last:  # the sample could not be made, and says so itself
            raise
        raise DataError(f"{last}: field {field!r}: {error}") from error


def _is_readable(encoder: Any, value: Any) -> bool:
    try:
        encoder.preprocessor(train=False)(value)
    except DataError:
        return False
    return True


def start_from_samples(
    experiment: Experiment, model: FusionModel, samples: Samples, fields: Mapping[str, str]
) -> None:
    """Let transfer modes start from samples that the seed draws, see :meth:`Transfer.start_from`.

    They are prepared as in a test, without augmentation.

    Args:
        experiment: Its seed, and what may be missing.
        model: A new one, in training mode.
        samples: The training split.
        fields: The field of each role.

    Raises:
        DataError: A value cannot be read, or no sample has the field.
    """
    for role in role_inputs(model, fields, train=False, missing=experiment.missing):
        transfer: Any = model.fusion.encoders[role.role]
        if not transfer.starts_from_samples:
            continue
        rows = list(islice(_rows(_drawn(samples, experiment.seed), role), START_SAMPLES))
        if not rows:
            raise DataError(
                f"No training sample has the field {role.field!r}, and the weights of "
                f"{role.role}_transfer start from samples that have."
            )
        transfer.eval()
        with torch.no_grad():
            transfer.start_from(role.preprocessor.collate(rows))
        transfer.train()


def _drawn(samples: Samples, seed: int) -> Iterator[Sample]:
    """All of them, in random order."""
    if isinstance(samples, Stream):
        return samples.read(0, 1, str(seed))
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    return (samples[index] for index in order.tolist())


def _rows(samples: Iterator[Sample], role: RoleInput) -> Iterator[Any]:
    """What the preprocessor makes of the samples that have the field."""
    for sample in samples:
        if is_missing(sample, role):
            continue
        try:
            yield read_value(sample, role, role.preprocessor)
        except DataError as error:
            if not (role.unreadable and is_unreadable(error.__cause__)):
                raise
