"""Run a frozen encoder, or the layers below the first prompt, over samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from fusionkit.cache.plan import Plan
from fusionkit.cache.store import StoredRow
from fusionkit.config.schema import LoaderConfig, TrainerConfig
from fusionkit.data.base import Dataset, Sample
from fusionkit.data.loading import make_loader
from fusionkit.data.values import RoleInput
from fusionkit.encoders.base import (
    ENTERING,
    KEEP,
    PRESENT,
    Features,
    Inputs,
    MainEncoder,
    TokenState,
)
from fusionkit.errors import EncoderError
from fusionkit.transfer.base import Transfer


class Batch(NamedTuple):
    """What was computed of some samples.

    Attributes:
        indices: Their numbers.
        rows: What is kept of each.
        padded: Whether samples differ in their number of tokens.
    """

    indices: list[int]
    rows: list[StoredRow]
    padded: bool


@dataclass(frozen=True, slots=True)
class Computer:
    """Computes what a plan keeps.

    Attributes:
        plan: What that is.
        transfer: The encoder, frozen.
        role: How its values are read.
        dataset: The samples' data set.
        loader: Batch sizes and workers.
        trainer: Where to compute.
        say: Told what could not be read.
    """

    plan: Plan
    transfer: Transfer
    role: RoleInput
    dataset: Dataset
    loader: LoaderConfig
    trainer: TrainerConfig
    say: Callable[[str], None]

    def batches(self, samples: Sequence[Sample]) -> Generator[Batch]:
        """All samples whose value can be read, a batch at a time.

        Raises:
            DataError: A value cannot be read, and may not be missing.
            EncoderError: The encoder's layers do not run on from stored tokens.
        """
        role, dataset = self.role.role, self.dataset
        config = replace(self.loader, tokens_per_batch=None, balanced=False)  # those of training
        loader = make_loader(
            samples, [self.role], dataset.task, dataset.outputs, config, train=False, seed=0
        )
        device = _device(self.trainer)
        self.transfer.to(device)
        try:
            for number, batch in enumerate(loader):
                inputs = {name: value.to(device) for name, value in batch["inputs"][role].items()}
                present, index = inputs.pop(PRESENT, None), batch["index"]
                if present is not None:  # what could not be read is left out
                    index = index[present.cpu()]
                if inputs:
                    yield Batch(index.tolist(), *self._see(inputs, check=number == 0))
        finally:
            self.transfer.to("cpu")
        for line in loader.dataset.unreadable.describe("cache"):
            self.say(line)

    @torch.inference_mode()
    def _see(self, inputs: Inputs, check: bool) -> tuple[list[StoredRow], bool]:
        """What is kept of each sample of a batch, and whether samples differ in length."""
        layer, encoder = self.plan.layer, self.transfer.encoder
        if layer is None:
            features: Features = self.transfer.encode(inputs)
            arrays, keep = {"pooled": features.pooled}, features.keep
            if self.plan.tokens and features.tokens is not None:
                arrays["tokens"] = features.tokens
        else:
            assert isinstance(encoder, MainEncoder)
            state = entering(encoder, inputs, layer)
            arrays, keep = {"entering": state.tokens}, state.keep
            if check:
                check_resumes(encoder, inputs, layer, state)
        whole = {name: tensor.float().cpu().numpy() for name, tensor in arrays.items()}
        real = None if keep is None else keep.cpu().numpy()
        rows: list[StoredRow] = [
            {
                name: array[i] if name == "pooled" or real is None else array[i][real[i]]
                for name, array in whole.items()
            }
            for i in range(len(whole[next(iter(whole))]))
        ]
        return rows, keep is not None and whole.keys() != {"pooled"}


def entering(encoder: MainEncoder, inputs: Inputs, layer: int) -> TokenState:
    """The state that enters ``layer`` without prompts."""
    state = encoder.embed(inputs)
    for below in range(layer):
        state = encoder.run_layer(below, state, None)
    return state


def check_resumes(encoder: MainEncoder, inputs: Inputs, layer: int, state: TokenState) -> None:
    """Compare what comes of stored tokens with what comes of the inputs.

    Args:
        encoder: The main encoder.
        inputs: A batch.
        layer: Whose input is stored.
        state: What enters it.

    Raises:
        EncoderError: They differ.
    """
    stored = {f"{ENTERING}{layer}": state.tokens}
    if state.keep is not None:
        stored[KEEP] = state.keep
    online, resumed = encoder.encode(inputs).pooled, encoder.encode(stored).pooled
    if not torch.allclose(online, resumed, rtol=1e-3, atol=1e-4):
        raise EncoderError(
            f"{type(encoder).__name__} gives something else when its layers run on from stored "
            f"tokens. Its `resume` has to make what `embed` puts into TokenState.cache (check 24 "
            f"of `fusionkit contract`); until then leave main out of cache.roles."
        )


def _device(config: TrainerConfig) -> torch.device:
    """The first that the trainer would take, or this process's own."""
    if config.accelerator in ("auto", "gpu") and torch.cuda.is_available():
        rank = int(os.environ.get("LOCAL_RANK", 0))
        listed = config.devices if isinstance(config.devices, list) else None
        return torch.device("cuda", rank if listed is None else listed[rank])
    if config.accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
