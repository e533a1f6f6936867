"""The two interfaces every encoder implements.

A :class:`ComplementEncoder` turns one modality into features. A :class:`MainEncoder` is a
complement whose Transformer layers can be run one by one with prompts, so it serves in either
role.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fusionkit.encoders.attention import PromptRows, join_parts, parts_of
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


def stored_features(inputs: Inputs) -> Features | None:
    """What a frozen encoder saw, if the inputs hold that instead of what it reads."""
    if POOLED not in inputs:
        return None
    return Features(inputs[POOLED], inputs.get(TOKENS), inputs.get(KEEP))


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


@dataclass(frozen=True, slots=True)
class ExtraTokens:
    """Further tokens of a main encoder's input, beside those of its own field.

    Unlike prompts they travel: what a layer makes of them enters the next. They are cut off before
    the readout. Where the field's tokens see only what came before, or a window of their own
    neighbourhood, so do these.

    Attributes:
        rows: (B, n, D_0), where word embeddings stand in a text encoder: before positions and norm.
        visible: (n, n) bool, True = the row's token sees the column's; None if all do. Each sees
            itself, whatever it says.
        blind: (n,) bool, True = the token sees none of the field's; None if all see them. The
            tokens of the field see all further ones.
    """

    rows: Tensor
    visible: Tensor | None = None
    blind: Tensor | None = None


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
            layer runs for the tokens that are pooled only, if :meth:`pooled_apart` says which.
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

    def pooled_apart(self, state: TokenState) -> tuple[TokenState, TokenState] | None:
        """The tokens that ``pooled`` is read from, and all others.

        Of what the last layer makes, only the former is of use where nobody reads ``tokens``; so
        they alone are run through it, as :meth:`query` runs rows that read the others. Called only
        if :attr:`takes_queries`.

        Args:
            state: What enters the last layer.

        Returns:
            A state (B, r, D) that :meth:`readout` takes once the tokens went through the layer,
            and one of all other tokens that :meth:`query` takes; None if all tokens are pooled.
        """
        return None

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
        return _append(state, extra.rows), state.tokens.shape[1]

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
            both = self.run_layer(layer, _append(state, rows), prompts).tokens
            return both[:, state.tokens.shape[1] :]
        seen = state.tokens if prompts is None else torch.cat([state.tokens, prompts], dim=1)
        return self.run_layer(layer, TokenState(rows, cache=state.cache), seen).tokens

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
        alone = self.pooled_only and self.takes_queries and edit is None and extra is None
        for layer in range(first, last + 1):
            if edit is not None:
                before, state = state, edit(layer, state)
                if extra is not None and layer == 0:  # a stand-in is for the field's tokens
                    state = _keep_rows(state, before, place, extra.rows.shape[1])
            rows = None if prompts is None else prompts(layer, state)
            if alone and layer == last and (apart := self.pooled_apart(state)) is not None:
                return self._read_alone(layer, *apart, rows)
            state = self.step(layer, state, rows)
        if edit is not None:
            state = edit(len(self.layer_widths), state)
        if extra is not None:
            state = _cut(state, place, extra.rows.shape[1])
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


def split_first(state: TokenState, count: int) -> tuple[TokenState, TokenState]:
    """The first ``count`` tokens, and the others: for encoders that pool those in front."""
    tokens, keep = state.tokens, state.keep
    first = TokenState(tokens[:, :count], None if keep is None else keep[:, :count], state.cache)
    others = None if keep is None else keep[:, count:]
    return first, TokenState(tokens[:, count:], others, state.cache)


def split_one(state: TokenState, index: Tensor) -> tuple[TokenState, TokenState]:
    """The token of each row at ``index``, (B,), and the others, among which it is masked."""
    tokens, keep = state.tokens, state.keep
    assert keep is not None
    rows = torch.arange(len(tokens), device=tokens.device)
    places = torch.arange(tokens.shape[1], device=tokens.device)
    one = TokenState(tokens[rows, index].unsqueeze(1), torch.ones_like(keep[:, :1]), state.cache)
    others = keep & (places < index.unsqueeze(1))
    return one, TokenState(tokens, others, state.cache)


def _needs_grad(state: TokenState, prompts: PromptRows | None) -> bool:
    return any(rows.requires_grad for rows in (state.tokens, *parts_of(prompts)))


def _append(state: TokenState, rows: Tensor) -> TokenState:
    """The state with further real tokens behind all others."""
    tokens = torch.cat([state.tokens, rows.to(state.tokens.dtype)], dim=1)
    keep = None if state.keep is None else F.pad(state.keep, (0, rows.shape[1]), value=True)
    return TokenState(tokens, keep, state.cache)


def _keep_rows(state: TokenState, before: TokenState, place: int, count: int) -> TokenState:
    """The state with ``count`` tokens from ``place`` on as they were before."""
    end, tokens = place + count, state.tokens
    kept = before.tokens[:, place:end]
    return state.with_tokens(torch.cat([tokens[:, :place], kept, tokens[:, end:]], dim=1))


def _cut(state: TokenState, place: int, count: int) -> TokenState:
    """The state without ``count`` tokens from ``place`` on."""

    def cut(rows: Tensor) -> Tensor:
        return torch.cat([rows[:, :place], rows[:, place + count :]], dim=1)

    keep = None if state.keep is None else cut(state.keep)
    return TokenState(cut(state.tokens), keep, state.cache)


def _check_prompts(layer: int, prompts: PromptRows, batch: int, width: int) -> None:
    parts = prompts if isinstance(prompts, tuple) else (prompts,)
    batches = (batch, 1) if isinstance(prompts, tuple) else (batch,)
    for rows in parts:
        if rows.ndim != 3 or rows.shape[0] not in batches or rows.shape[2] != width:
            raise EncoderError(
                f"Layer {layer} takes prompts of shape ({batch}, n, {width}), given "
                f"{tuple(rows.shape)}; build the prompts from this encoder's layer_widths."
            )
