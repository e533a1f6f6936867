"""The two interfaces every encoder implements.

A :class:`ComplementEncoder` turns one modality into features. A :class:`MainEncoder` is a
complement whose Transformer layers can be run one by one with prompts, so it serves in either
role.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, final, runtime_checkable

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusionkit.encoders.attention import PromptRows, join_parts, parts_of
from fusionkit.encoders.state import (
    ExtraTokens as ExtraTokens,
    Features as Features,
    TokenState as TokenState,
    append_tokens,
    cut_tokens,
    keep_tokens,
)
from fusionkit.errors import EncoderError
from fusionkit.registry import API_VERSION

Modality = Literal["image", "text", "audio", "video", "table", "vector", "other"]

Inputs = Mapping[str, Tensor]  # what an encoder's own preprocessor collated; batch first

# Where a sample may lack a field, the loader adds this key to a role's inputs: (B,) bool, True =
# present. The fusion takes it out; encoders never see it.
PRESENT = "fusionkit.present"

# Where a frozen encoder's work was done before, the loader puts what it saw in the place of a
# role's raw inputs: the features, (B, C), (B, T, C) and (B, T) bool of Features, or the tokens
# that enter a layer, whose number ends the key, (B, L, D_i) or (B, H, W, D_i), beside KEEP.
POOLED = "fusionkit.pooled"
TOKENS = "fusionkit.tokens"
KEEP = "fusionkit.keep"
ENTERING = "fusionkit.entering."


def stored_features(inputs: Inputs) -> Features | None:
    """What a frozen encoder saw, if the inputs hold that instead of what it reads."""
    if POOLED not in inputs:
        return None
    return Features(inputs[POOLED], inputs.get(TOKENS), inputs.get(KEEP))


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
class KnowsLength(Protocol):
    """A preprocessor whose rows differ in length, and are padded to the longest of a batch."""

    def length(self, raw: Any) -> int:
        """Tokens that one raw value becomes in the encoder, found without making its row.

        Exact where batches have a budget of tokens; about right will do for buckets.
        """
        ...


@runtime_checkable
class Prompts(Protocol):
    """Hands each layer its prompt rows."""

    def __call__(self, layer: int, state: TokenState) -> PromptRows | None:
        """Prompts of ``layer``; ``state`` is what enters the layer.

        Rows (B, n, D_layer), or parts of them, each (B, n_j, D_layer), or (1, n_j, D_layer) where
        all samples have the same rows; or None.
        """
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
        reserved: Places of the input that are kept for further tokens: the preprocessors of text
            encoders cut that much earlier. Whoever gives further tokens adds their number.
        pooled_only: Whether nobody reads ``tokens`` of the features, which are None then: the last
            layer runs for the tokens that are pooled only, if :attr:`pools_apart`.
        takes_parts: Whether :meth:`run_layer` takes prompts in parts as well, and makes keys and
            values of what all samples share only once.
    """

    takes_parts: ClassVar[bool] = False
    gradient_checkpointing: bool = False
    pooled_only: bool = False
    reserved: int = 0

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it."""
        return False

    @property
    def takes_tokens(self) -> bool:
        """Whether further tokens may enter its first layer, see :meth:`embed_with`."""
        return False

    @property
    def takes_queries(self) -> bool:
        """Whether rows may read the tokens in any layer, see :meth:`query`."""
        return False

    @property
    def pools_apart(self) -> bool:
        """Whether ``pooled`` is read from some of the tokens only, see :meth:`pooled_apart`."""
        return False

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
                Also parts of them, see :class:`Prompts`, if :attr:`takes_parts`.

        Returns:
            The state that enters the next layer, with as many tokens as this layer makes
            without prompts.
        """

    @abstractmethod
    def readout(self, state: TokenState) -> Features:
        """Final norm and pooling, upstream's own. Prompts never enter it."""

    def pooled_apart(self, state: TokenState) -> tuple[TokenState, TokenState]:
        """The tokens that ``pooled`` is read from, and all others.

        Of what the last layer makes, only the former is of use where nobody reads ``tokens``; so
        they alone are run through it, as :meth:`query` runs rows that read the others. Called only
        if :attr:`pools_apart` and :attr:`takes_queries`.

        Args:
            state: What enters the last layer.

        Returns:
            A state (B, r, D) that :meth:`readout` takes once the tokens went through the layer,
            and one of all other tokens that :meth:`query` takes.
        """
        raise NotImplementedError(f"{type(self).__name__} pools all of its tokens.")

    def resume(self, layer: int, tokens: Tensor, keep: Tensor | None) -> TokenState:
        """The state that enters ``layer``, from its tokens alone.

        As it is, for encoders whose states have no ``cache``. The tokens were computed without
        prompts, from what :meth:`preprocessor` made, perhaps in another batch.

        Args:
            layer: 1 .. N-1.
            tokens: (B, L, D_layer), or (B, H, W, D_layer) for windowed encoders.
            keep: (B, L) bool, True = real token; None if all are real.
        """
        return TokenState(tokens, keep)

    def embed_with(self, inputs: Inputs, extra: ExtraTokens) -> tuple[TokenState, int]:
        """The tokens that enter layer 0, further ones among them.

        As it is, for encoders whose layers mask tokens by ``keep`` at most and give them no
        position: the further tokens stand behind all others. Called only if :attr:`takes_tokens`.

        Args:
            inputs: What :meth:`preprocessor` collated.
            extra: The further tokens, B as in ``inputs``.

        Returns:
            The state, and where the first of the further tokens stands in it.

        Raises:
            EncoderError: The encoder cannot hide tokens from each other, or has no positions for
                as many.
        """
        if extra.visible is not None or extra.blind is not None:
            raise EncoderError(
                f"{type(self).__name__} cannot hide tokens from each other, as ExtraTokens.visible "
                f"and blind ask for; bert, gpt2, clip_text and open_clip_text can."
            )
        state = self.embed(inputs)
        return append_tokens(state, extra.rows), state.tokens.shape[1]

    def query(
        self, layer: int, state: TokenState, rows: Tensor, prompts: Tensor | None = None
    ) -> Tensor:
        """What a layer makes of further rows that read its tokens, which they leave as they are.

        As it is, for encoders whose layers mask tokens by ``keep`` at most and give them no
        position. Called only if :attr:`takes_queries`.

        Args:
            layer: 0 .. N-1.
            state: What enters the layer.
            rows: (B, n, D_layer); they see the tokens, the prompts and each other (only those
                before them if :attr:`causal`).
            prompts: (B, m, D_layer), or None.

        Returns:
            (B, n, D_layer), the layer's output at ``rows`` if it runs on ``[tokens, prompts,
            rows]``.
        """
        if state.keep is not None:  # prompts are never masked, so padding must not be among them
            both = self.run_layer(layer, append_tokens(state, rows), prompts).tokens
            return both[:, state.tokens.shape[1] :]
        seen = join_parts((state.tokens, *parts_of(prompts)), len(rows))
        return self.run_layer(layer, TokenState(rows, cache=state.cache), seen).tokens

    @property
    def reads_alone(self) -> bool:
        """Whether the last layer runs for the pooled tokens only."""
        return self.pooled_only and self.pools_apart and self.takes_queries

    @final
    def encode(
        self,
        inputs: Inputs,
        prompts: Prompts | None = None,
        edit: TokenEdit | None = None,
        extra: ExtraTokens | None = None,
    ) -> Features:
        """Embed, run all layers with their prompts, read out.

        Args:
            inputs: What :meth:`preprocessor` collated, batch first; or the tokens that enter a
                layer, see :data:`ENTERING`, from which on the layers run.
            prompts: Called once per layer, outside of checkpointed code; None for no prompts.
            edit: Called before each layer, ahead of its prompts, and before the readout; None to
                leave the tokens as they are. Further tokens are not changed before layer 0.
            extra: Further tokens that run along through all layers; None for none.

        Raises:
            EncoderError: Prompts or further tokens of the wrong shape, the message names both
                shapes; or further tokens for an encoder that takes none.
        """
        first, state, place = self._start(inputs, extra)
        last = len(self.layer_widths) - 1
        alone = self.reads_alone and edit is None and extra is None
        for layer in range(first, last + 1):
            if edit is not None:
                before, state = state, edit(layer, state)
                if extra is not None and layer == 0:  # a stand-in is for the field's tokens
                    state = keep_tokens(state, before, place, extra.rows.shape[1])
            rows = None if prompts is None else prompts(layer, state)
            if alone and layer == last:
                return self._read_alone(layer, *self.pooled_apart(state), rows)
            state = self.step(layer, state, rows)
        if edit is not None:
            state = edit(len(self.layer_widths), state)
        if extra is not None:
            state = cut_tokens(state, place, extra.rows.shape[1])
        seen = self.readout(state)
        return Features(seen.pooled) if self.pooled_only else seen

    @final
    def step(self, layer: int, state: TokenState, prompts: PromptRows | None) -> TokenState:
        """:meth:`run_layer` with its prompts checked, recomputed in the backward pass if asked for.

        Raises:
            EncoderError: Prompts of the wrong shape; the message names both shapes.
        """
        rows: Any = prompts  # parts only for encoders whose run_layer takes them
        if prompts is not None:
            batch = len(state.tokens)
            _check_prompts(layer, prompts, batch, self.layer_widths[layer])
            if isinstance(prompts, tuple) and not self.takes_parts:
                parts = parts_of(prompts)
                rows = join_parts(parts, batch) if parts else None
        if self.gradient_checkpointing and _needs_grad(state, prompts):
            run: TokenState = checkpoint(self.run_layer, layer, state, rows, use_reentrant=False)
            return run
        return self.run_layer(layer, state, rows)

    def _read_alone(
        self, layer: int, pooled: TokenState, others: TokenState, prompts: PromptRows | None
    ) -> Features:
        """Features of the tokens that are pooled, run through the last layer without the others."""
        batch, rows = len(pooled.tokens), None
        if prompts is not None:
            _check_prompts(layer, prompts, batch, self.layer_widths[layer])
            rows = join_parts(parts, batch) if (parts := parts_of(prompts)) else None
        run: Any = self.query
        if self.gradient_checkpointing and _needs_grad(others, rows):
            run = partial(checkpoint, self.query, use_reentrant=False)
        out = run(layer, others, pooled.tokens, rows)
        return Features(self.readout(pooled.with_tokens(out)).pooled)

    def _start(self, inputs: Inputs, extra: ExtraTokens | None) -> tuple[int, TokenState, int]:
        """The layer to begin with, what enters it, and where further tokens stand in that."""
        for name, tokens in inputs.items():
            if name.startswith(ENTERING):
                if extra is not None:
                    raise EncoderError(
                        "Further tokens enter with those of the field, but these inputs hold what "
                        "enters a later layer; do not cache this encoder."
                    )
                layer = int(name.removeprefix(ENTERING))
                return layer, self.resume(layer, tokens, inputs.get(KEEP)), 0
        if extra is None:
            return 0, self.embed(inputs), 0
        return 0, *self._join(inputs, extra)

    def _join(self, inputs: Inputs, extra: ExtraTokens) -> tuple[TokenState, int]:
        if not self.takes_tokens:
            raise EncoderError(f"{type(self).__name__} takes no further tokens in its input.")
        batch, width = len(next(iter(inputs.values()))), self.layer_widths[0]
        rows = extra.rows
        if rows.ndim != 3 or rows.shape[0] != batch or rows.shape[2] != width:
            raise EncoderError(
                f"{type(self).__name__} takes further tokens of shape ({batch}, n, {width}), given "
                f"{tuple(rows.shape)}."
            )
        return self.embed_with(inputs, extra)


def _needs_grad(state: TokenState, prompts: PromptRows | None) -> bool:
    return any(rows.requires_grad for rows in (state.tokens, *parts_of(prompts)))


def _check_prompts(layer: int, prompts: PromptRows, batch: int, width: int) -> None:
    parts = prompts if isinstance(prompts, tuple) else (prompts,)
    batches = (batch, 1) if isinstance(prompts, tuple) else (batch,)
    for rows in parts:
        if rows.ndim != 3 or rows.shape[0] not in batches or rows.shape[2] != width:
            raise EncoderError(
                f"Layer {layer} takes prompts of shape ({batch}, n, {width}), given "
                f"{tuple(rows.shape)}; build the prompts from this encoder's layer_widths."
            )
