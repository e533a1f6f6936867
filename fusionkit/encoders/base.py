"""The two interfaces every encoder implements.

A :class:`ComplementEncoder` turns one modality into features. A :class:`MainEncoder` is a
complement whose Transformer layers can be run one by one with prompts, so it serves in either
role.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, final, runtime_checkable

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusionkit.errors import EncoderError
from fusionkit.registry import API_VERSION

Modality = Literal["image", "text", "audio", "video", "table", "vector", "other"]

Inputs = Mapping[str, Tensor]  # what an encoder's own preprocessor collated; batch first

# Where a sample may lack a field, the loader adds this key to a role's inputs: (B,) bool, True =
# present. The fusion takes it out; encoders never see it.
PRESENT = "fusionkit.present"


@dataclass(frozen=True, slots=True)
class Features:
    """What an encoder saw.

    Attributes:
        pooled: (B, C), one vector per sample: psi of arXiv 2312.03734, section 3.2.
        tokens: (B, T, C), the sequence it was pooled from, or None if there is none.
        keep: (B, T) bool, True = real token, or None if all are real.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    keep: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TokenState:
    """The tokens that enter a layer.

    Attributes:
        tokens: (B, L, D_i), or (B, H, W, D_i) for windowed encoders.
        keep: (B, L) bool, True = real token; None if all are real.
        cache: Private to the encoder: attention masks, lengths and the like.
    """

    tokens: Tensor
    keep: Tensor | None = None
    cache: Any = None

    def with_tokens(self, tokens: Tensor) -> TokenState:
        """The same state with other tokens."""
        return replace(self, tokens=tokens)


@runtime_checkable
class Preprocessor(Protocol):
    """Turns raw values into rows and rows into a batch; pickled into data workers."""

    def __call__(self, raw: Any) -> Any:
        """One raw value (an image or its path, a text, ...) to one row."""
        ...

    def collate(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """Rows to :data:`Inputs`, padded to the longest of this batch."""
        ...


@runtime_checkable
class Prompts(Protocol):
    """Hands each layer its prompt rows."""

    def __call__(self, layer: int, state: TokenState) -> Tensor | None:
        """Prompts of ``layer``, (B, n, D_layer), or None; ``state`` is what enters the layer."""
        ...


@runtime_checkable
class TokenEdit(Protocol):
    """Changes tokens between layers: what adapters and stand-ins for missing fields do."""

    def __call__(self, layer: int, state: TokenState) -> TokenState:
        """The state that enters ``layer`` instead of ``state``; layer N is the readout."""
        ...


class ComplementEncoder(nn.Module, ABC):
    """Anything that turns one modality into features.

    The upstream model is held as ``self.backbone``, with upstream's own parameter names.
    """

    modality: ClassVar[Modality]
    api_version: ClassVar[int] = API_VERSION

    backbone: nn.Module

    @property
    @abstractmethod
    def out_dim(self) -> int:
        """C, the width of the pooled feature."""

    @abstractmethod
    def encode(self, inputs: Inputs) -> Features:
        """Features of a batch.

        Args:
            inputs: What :meth:`preprocessor` collated, batch first.
        """

    @abstractmethod
    def preprocessor(self, train: bool) -> Preprocessor:
        """The backbone's own preprocessing: its normalisation, its tokenizer.

        Args:
            train: Whether augmentation may be applied.
        """

    def fit_statistics(self, values: Iterable[Any]) -> None:
        """Take what the encoder must know of the data, such as means and spreads, into buffers.

        Called once before training, never when a trained model is rebuilt. Pretrained encoders
        know all they need and leave this as it is.

        Args:
            values: Raw values of the training split, those of samples that lack it left out.
        """

    def forward(self, inputs: Inputs) -> Features:
        """Same as :meth:`encode`, for callers that expect a module."""
        return self.encode(inputs)


class MainEncoder(ComplementEncoder):
    """A Transformer whose layers run one by one, each with its own prompts.

    Attributes:
        gradient_checkpointing: Recompute layer activations in the backward pass.
    """

    gradient_checkpointing: bool = False

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The N modules that :meth:`run_layer` runs, in order: what transfer modes act on."""

    @property
    @abstractmethod
    def layer_widths(self) -> tuple[int, ...]:
        """D_0 .. D_{N-1}: the token width of each layer, N layers."""

    @abstractmethod
    def embed(self, inputs: Inputs) -> TokenState:
        """The tokens that enter layer 0, positions included."""

    @abstractmethod
    def run_layer(self, layer: int, state: TokenState, prompts: Tensor | None) -> TokenState:
        """Run one layer.

        Args:
            layer: 0 .. N-1.
            state: What enters the layer. Not modified.
            prompts: (B, n, D_layer), n >= 0, or None. They are seen by every token as keys and
                values, have no position and are never masked; their own outputs are dropped.

        Returns:
            The state that enters the next layer, with as many tokens as this layer makes
            without prompts.
        """

    @abstractmethod
    def readout(self, state: TokenState) -> Features:
        """Final norm and pooling, upstream's own. Prompts never enter it."""

    @final
    def encode(
        self, inputs: Inputs, prompts: Prompts | None = None, edit: TokenEdit | None = None
    ) -> Features:
        """Embed, run all layers with their prompts, read out.

        Args:
            inputs: What :meth:`preprocessor` collated, batch first.
            prompts: Called once per layer, outside of checkpointed code; None for no prompts.
            edit: Called before each layer, ahead of its prompts, and before the readout; None to
                leave the tokens as they are.

        Raises:
            EncoderError: Prompts of the wrong shape; the message names both shapes.
        """
        state = self.embed(inputs)
        for layer, width in enumerate(self.layer_widths):
            if edit is not None:
                state = edit(layer, state)
            rows = None if prompts is None else prompts(layer, state)
            if rows is not None:
                _check_prompts(layer, rows, len(state.tokens), width)
            if self.gradient_checkpointing and _needs_grad(state, rows):
                state = checkpoint(self.run_layer, layer, state, rows, use_reentrant=False)
            else:
                state = self.run_layer(layer, state, rows)
        if edit is not None:
            state = edit(len(self.layer_widths), state)
        return self.readout(state)


def _needs_grad(state: TokenState, rows: Tensor | None) -> bool:
    return state.tokens.requires_grad or (rows is not None and rows.requires_grad)


def _check_prompts(layer: int, rows: Tensor, batch: int, width: int) -> None:
    if rows.ndim != 3 or rows.shape[0] != batch or rows.shape[2] != width:
        raise EncoderError(
            f"Layer {layer} takes prompts of shape ({batch}, n, {width}), given "
            f"{tuple(rows.shape)}; build the prompts from this encoder's layer_widths."
        )
