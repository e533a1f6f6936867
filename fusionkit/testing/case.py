"""What a contract check is given: the author's case, and a context prepared from it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.encoders.base import (
    ComplementEncoder,
    ExtraTokens,
    Features,
    Inputs,
    MainEncoder,
    TokenEdit,
    TokenState,
)

PROMPT_ROWS = 3
NO_LAYERS = "a complement encoder has no layers to prompt"


class Violation(AssertionError):
    """The encoder breaks a promise; the message says which and what to do."""


class NotApplicable(Exception):
    """A check does not apply to this encoder, or the case lacks what it needs."""


@dataclass(frozen=True)
class Case:
    """One encoder to be checked.

    Attributes:
        make: Builds a fresh encoder. It is called once per check, after seeding, so let it be a
            tiny one with random weights.
        samples: At least 3 raw values for the encoder's own preprocessor, of different lengths
            where the modality has lengths.
        upstream: ``(encoder.backbone, inputs)`` to the upstream model's own pooled output,
            (B, C). None skips check 1.
        reference_layer: ``(encoder, layer, state, prompts)`` to the state after that layer,
            computed by concatenation, not by the encoder's own code. None skips check 12, and
            part of check 23, which runs it on one sample with its tokens among the prompts.
        upstream_keys: The keys of upstream's own ``state_dict``. None skips that part of check 11.
        tolerance: Largest difference allowed in float64, absolute or relative. Only an upstream
            that computes in float32 inside needs a larger one.
    """

    make: Callable[[], ComplementEncoder]
    samples: Sequence[Any]
    upstream: Callable[[nn.Module, Inputs], Tensor] | None = None
    reference_layer: Callable[[MainEncoder, int, TokenState, Tensor], TokenState] | None = None
    upstream_keys: Collection[str] | None = None
    tolerance: float = 1e-10


@dataclass(frozen=True)
class PromptList:
    """The same prompts at each call, one tensor (or None) a layer."""

    rows: Sequence[Tensor | None]

    def __call__(self, layer: int, state: TokenState) -> Tensor | None:
        return self.rows[layer]


@dataclass(frozen=True)
class Context:
    """What one check works on; each check gets a fresh one.

    Attributes:
        case: The author's case.
        encoder: Fresh, float64, evaluation mode.
        inputs: All samples as one batch, floating tensors in float64.
        alone: Each sample as a batch of its own, so without padding.
        prompts: (B, 3, D_layer) for each layer, a different one for each row; empty for a
            complement.
    """

    case: Case
    encoder: ComplementEncoder
    inputs: dict[str, Tensor]
    alone: list[dict[str, Tensor]]
    prompts: list[Tensor]

    @property
    def main(self) -> MainEncoder:
        """The encoder, where a check needs layers."""
        if not isinstance(self.encoder, MainEncoder):
            raise NotApplicable(NO_LAYERS)
        return self.encoder

    @property
    def batch(self) -> int:
        """Number of samples."""
        return len(self.alone)

    def encode(
        self,
        inputs: Mapping[str, Tensor],
        prompts: Sequence[Tensor | None] | None = None,
        edit: TokenEdit | None = None,
        extra: ExtraTokens | None = None,
    ) -> Features:
        """Features of a copy of ``inputs``, with prompts and further tokens where there are any."""
        copy = {name: tensor.clone() for name, tensor in inputs.items()}
        if prompts is None and extra is None:
            return self.encoder.encode(copy)
        given = None if prompts is None else PromptList(prompts)
        return self.main.encode(copy, given, edit, extra)

    def settings(self) -> list[tuple[str, Sequence[Tensor] | None]]:
        """What to encode with: no prompts and, for a main encoder, prompts; each with a name."""
        without: list[tuple[str, Sequence[Tensor] | None]] = [("", None)]
        return [*without, (" with prompts", self.prompts)] if self.prompts else without

    def states(
        self, inputs: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[int, TokenState]]:
        """Each layer's number and what enters it without prompts; of the whole batch by default."""
        encoder, given = self.main, self.inputs if inputs is None else inputs
        state = encoder.embed({name: tensor.clone() for name, tensor in given.items()})
        for layer in range(len(encoder.layer_widths)):
            yield layer, state
            state = encoder.run_layer(layer, state, None)

    def close(self, actual: Tensor, expected: Tensor, what: str, remedy: str) -> None:
        """Raise a :class:`Violation` unless two tensors agree within the case's tolerance."""
        if actual.shape != expected.shape:
            raise Violation(
                f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}. {remedy}"
            )
        bound = self.case.tolerance
        if not torch.allclose(actual, expected.to(actual), rtol=bound, atol=bound):
            worst = (actual - expected.to(actual)).abs().max().item()
            raise Violation(f"{what}: off by {worst:.1e}, allowed are {bound:.0e}. {remedy}")


def prepare(case: Case) -> Context:
    """A fresh encoder with inputs and prompts, always the same ones.

    Raises:
        ValueError: The samples cannot tell a right encoder from a wrong one.
    """
    if len(case.samples) < 3:
        raise ValueError(f"A case needs at least 3 samples, given {len(case.samples)}.")
    torch.manual_seed(0)
    encoder = case.make().double().eval()
    preprocessor = encoder.preprocessor(train=False)
    rows = [preprocessor(sample) for sample in case.samples]
    inputs = as_double(preprocessor.collate(rows))
    if all(bool((tensor == tensor[:1]).all()) for tensor in inputs.values()):
        raise ValueError("The samples of a case must differ from each other, these do not.")
    prompts: list[Tensor] = []
    if isinstance(encoder, MainEncoder):
        generator = torch.Generator().manual_seed(1)
        prompts = [
            torch.randn(len(rows), PROMPT_ROWS, width, generator=generator, dtype=torch.float64)
            for width in encoder.layer_widths
        ]
    alone = [as_double(preprocessor.collate([row])) for row in rows]
    return Context(case, encoder, inputs, alone, prompts)


def as_double(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating tensors to float64, others as they are."""
    return {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }


def select(inputs: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """Some rows of a batch, padding included."""
    return {name: tensor[list(rows)] for name, tensor in inputs.items()}


def real_tokens(tokens: Tensor, keep: Tensor | None) -> Tensor:
    """(B, ..., D) and (B, L) to the (M, D) tokens that are not padding."""
    flat = tokens.flatten(1, -2)
    return flat.flatten(0, 1) if keep is None else flat[keep]


def weighted_sum(tensor: Tensor) -> Tensor:
    """A scalar that every element moves; a plain sum after a norm has no gradient at all."""
    generator = torch.Generator().manual_seed(2)
    return (tensor * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)).sum()
