"""The checks of what a main encoder takes beside prompts, if it says that it does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fusionkit.encoders.base import ExtraTokens, Features, MainEncoder, TokenState
from fusionkit.errors import EncoderError
from fusionkit.testing.case import (
    PROMPT_ROWS,
    Context,
    NotApplicable,
    Violation,
    real_tokens,
    weighted_sum,
)

# Which of three further tokens sees which, and which of them sees nothing of the field: neither
# symmetric, nor the same in any two rows.
_VISIBLE = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)
_BLIND = torch.tensor([1, 0, 1], dtype=torch.bool)


def further_tokens_run_along(ctx: Context) -> None:
    """Further tokens are where ``embed_with`` says, are seen, and are gone from the features."""
    if not ctx.main.takes_tokens:
        raise NotApplicable("takes_tokens is False")
    ctx.main.requires_grad_(False)  # gradients here are to tell who sees whom
    rows = _rows(ctx, ctx.main.layer_widths[0], seed=5)
    _stand_where_it_says(ctx, rows)
    _leave_no_trace(ctx, rows)
    _depend_on_no_mate(ctx, rows)
    _are_seen(ctx, rows)
    _are_checked(ctx, rows)
    _hide_from_each_other(ctx, rows)


def queries_read_the_layers(ctx: Context) -> None:
    """``query`` equals a layer that runs on the tokens, the prompts and the rows together."""
    encoder = ctx.main
    if not encoder.takes_queries:
        raise NotApplicable("takes_queries is False")
    encoder.requires_grad_(False)
    alone = [list(ctx.states(own)) for own in ctx.alone]
    for layer, state in ctx.states():
        rows, prompts = _rows(ctx, encoder.layer_widths[layer], seed=6), ctx.prompts[layer]
        out = _query(encoder, layer, state, rows, prompts)
        for row, states in enumerate(alone):
            own = slice(row, row + 1)
            ctx.close(
                encoder.query(layer, states[layer][1], rows[own], prompts[own]),
                out[own],
                f"layer {layer}, rows of sample {row}, alone against in its batch",
                "Let the rows see the real tokens of their own sample, and no padding.",
            )
        expected = _concatenated(ctx, layer, alone[0][layer][1], rows[:1], prompts[:1])
        if expected is not None:
            remedy = "Let rows see all tokens, all prompts and each other, projected alike."
            what = f"layer {layer}, rows against concatenation"
            ctx.close(out[:1], expected, what, remedy)
        ctx.close(
            encoder.query(layer, state, rows, prompts[:, :0]),
            encoder.query(layer, state, rows),
            f"layer {layer}, rows with zero prompts against none",
            "Treat prompts of shape (B, 0, D) like None.",
        )


def _stand_where_it_says(ctx: Context, rows: Tensor) -> None:
    with torch.no_grad():
        state, place = ctx.main.embed_with(dict(ctx.inputs), ExtraTokens(rows))
        other, _ = ctx.main.embed_with(dict(ctx.inputs), ExtraTokens(rows.roll(1, dims=1)))
    own = slice(place, place + rows.shape[1])
    moved = (state.tokens != other.tokens).any(dim=-1)[:, own]
    real = torch.ones_like(moved) if state.keep is None else state.keep[:, own]
    if moved.shape != rows.shape[:2] or not bool((moved & real).all()):
        raise Violation(
            f"embed_with says that {rows.shape[1]} further tokens stand from {place} on, but not "
            f"all tokens there are made of their rows, or state.keep calls them padding. Return "
            f"where the first of them stands, and True for them in keep."
        )


def _leave_no_trace(ctx: Context, rows: Tensor) -> None:
    inputs = {name: tensor.clone() for name, tensor in ctx.inputs.items()}
    given = rows.clone()
    with torch.no_grad():
        bare, none = ctx.encode(inputs), ctx.encode(inputs, extra=ExtraTokens(rows[:, :0]))
        some = ctx.main.encode(inputs, extra=ExtraTokens(given))
    remedy = "Without rows, embed_with gives what embed gives."
    ctx.close(none.pooled, bare.pooled, "no further tokens against none, pooled", remedy)
    shapes = [_shapes(features) for features in (some, bare)]
    if shapes[0] != shapes[1]:
        raise Violation(
            f"With further tokens, (pooled, tokens, keep) are of {shapes[0]}, without of "
            f"{shapes[1]}. They are cut off before the readout: add as many as there are rows."
        )
    if some.keep is not None and not torch.equal(some.keep, _mask(bare.keep)):
        raise Violation("Further tokens change features.keep. Insert their keep where they stand.")
    changed = [name for name, tensor in ctx.inputs.items() if not torch.equal(inputs[name], tensor)]
    if changed or not torch.equal(given, rows):
        raise Violation(f"embed_with changed {changed or 'extra.rows'}. Make a new tensor instead.")


def _depend_on_no_mate(ctx: Context, rows: Tensor) -> None:
    remedy = "Mask padding wherever it stands now, and join rows to their own sample."
    with torch.no_grad():
        whole = ctx.encode(ctx.inputs, extra=ExtraTokens(rows))
        for row, inputs in enumerate(ctx.alone):
            own = slice(row, row + 1)
            bare = ctx.encode(inputs, extra=ExtraTokens(rows[own]))
            what = f"sample {row} with further tokens, in its batch against alone"
            ctx.close(whole.pooled[own], bare.pooled, f"{what}, pooled", remedy)
            if whole.tokens is not None and bare.tokens is not None:
                keep = None if whole.keep is None else whole.keep[own]
                found = real_tokens(whole.tokens[own], keep)
                ctx.close(found, real_tokens(bare.tokens, bare.keep), f"{what}, tokens", remedy)


def _are_seen(ctx: Context, rows: Tensor) -> None:
    stand_in = ctx.prompts[0][:1, :1]

    def replace(layer: int, state: TokenState) -> TokenState:
        return state if layer else state.with_tokens(stand_in.expand_as(state.tokens))

    for name, edit in (("", None), (" once an edit replaces the tokens of the field", replace)):
        leaf = rows.clone().requires_grad_()
        features = ctx.encode(ctx.inputs, edit=edit, extra=ExtraTokens(leaf))
        total = weighted_sum(features.pooled)
        if features.tokens is not None:  # in narrow windows, not all that is pooled sees them
            total = total + weighted_sum(real_tokens(features.tokens, features.keep))
        if not bool(_reached(total, leaf).all()):
            raise Violation(
                f"At least one further token leaves the features as they are, or gets no finite "
                f"gradient{name}. Let the tokens of the field see them, without detach."
            )


def _are_checked(ctx: Context, rows: Tensor) -> None:
    batch, n, width = rows.shape
    for shape in ((batch, n, width + 1), (batch + 1, n, width)):
        try:
            ctx.encode(ctx.inputs, extra=ExtraTokens(torch.zeros(shape, dtype=torch.float64)))
        except EncoderError as error:
            if str(shape) in str(error) and f"({batch}, n, {width})" in str(error):
                continue
            found = f"the error {str(error)[:80]!r}"
        except Exception as error:  # noqa: BLE001 - any other error is one that says too little
            found = type(error).__name__
        else:
            found = "no error"
        raise Violation(
            f"Further tokens of {shape} raise {found}, not an EncoderError that names both shapes. "
            f"Leave MainEncoder.encode as it is: it checks them."
        )


def _hide_from_each_other(ctx: Context, rows: Tensor) -> None:
    """Layer by layer: who sees whom directly is what it is without hiding, less what is hidden."""
    encoder = ctx.main
    hiding = ExtraTokens(rows, _VISIBLE, _BLIND)
    try:
        state, place = encoder.embed_with(dict(ctx.inputs), hiding)
    except EncoderError:  # it refuses, as those do whose layers have no mask to hide tokens with
        return
    plain, _ = encoder.embed_with(dict(ctx.inputs), ExtraTokens(rows))
    own = slice(place, place + len(_BLIND))
    allowed = ~_BLIND[:, None].expand(-1, plain.tokens.shape[1])
    allowed = torch.cat([allowed[:, :place], _VISIBLE, allowed[:, own.stop :]], dim=1)
    remedy = "Apply extra.visible and extra.blind to the masks of all layers, and to no more."
    for layer in range(len(encoder.layer_widths)):
        tokens = plain.tokens.detach()
        whole, sees = _influence(encoder, layer, plain.with_tokens(tokens), own)
        part, still_sees = _influence(encoder, layer, state.with_tokens(tokens), own)
        wrong = still_sees != (sees & allowed[:, None])
        if bool(wrong.any()):
            who, _, whom = wrong.nonzero()[0].tolist()
            raise Violation(
                f"Layer {layer}: whether the further token at {place + who} sees the token at "
                f"{whom} is not what `visible` and `blind` say. {remedy}"
            )
        rest = torch.ones(tokens.shape[1], dtype=torch.bool)
        rest[own] = False
        ctx.close(part[:, rest], whole[:, rest], f"layer {layer}, tokens of the field", remedy)
        plain = plain.with_tokens(whole)


def _influence(
    encoder: MainEncoder, layer: int, state: TokenState, own: slice
) -> tuple[Tensor, Tensor]:
    """Output (B, L, D) of a layer, and (n, B, L) bool, True = the further token sees it there."""
    leaf = state.tokens.clone().requires_grad_()
    out = encoder.run_layer(layer, state.with_tokens(leaf), None).tokens
    seen = [_reached(weighted_sum(token), leaf) for token in out[:, own].unbind(dim=1)]
    return out.detach(), torch.stack(seen)


def _query(
    encoder: MainEncoder, layer: int, state: TokenState, rows: Tensor, prompts: Tensor
) -> Tensor:
    """The rows' output, once who is seen and what is changed are checked."""
    leaves = [tensor.detach().clone() for tensor in (state.tokens, rows, prompts)]
    tokens, own, extra = (leaf.requires_grad_() for leaf in leaves)
    out = encoder.query(layer, state.with_tokens(tokens), own, extra)
    if out.shape != rows.shape:
        raise Violation(
            f"query({layer}, ...) returns {tuple(out.shape)} for rows of {tuple(rows.shape)}. "
            f"Return the layer's output at the rows alone."
        )
    for before, after in zip((state.tokens, rows, prompts), leaves, strict=True):
        if not torch.equal(before, after):
            raise Violation(f"query({layer}, ...) changed what it was given.")
    real = torch.ones(tokens.shape[:2], dtype=torch.bool) if state.keep is None else state.keep
    total = weighted_sum(out)
    for name, leaf, expected in (
        ("tokens", tokens, real),
        ("rows", own, torch.ones(own.shape[:2], dtype=torch.bool)),
        ("prompts", extra, torch.ones(extra.shape[:2], dtype=torch.bool)),
    ):
        wrong = _reached(total, leaf) != expected
        if bool(wrong.any()):
            does = "ignores a real one" if bool((wrong & expected).any()) else "sees padding"
            raise Violation(
                f"query({layer}, ...) {does} among the {name}. Let rows see what is real, without "
                f"detach, and nothing else."
            )
    return out.detach()


def _concatenated(
    ctx: Context, layer: int, state: TokenState, rows: Tensor, prompts: Tensor
) -> Tensor | None:
    """(1, n, D) of one sample, by the case's reference or by the layer itself; None if by neither.

    Tokens that are prompts, and rows that are tokens, are concatenated as the reference does with
    any prompts: all real tokens are seen, later rows are not where it is causal.
    """
    encoder = ctx.main
    tokens = state.tokens if state.keep is None else state.tokens[:, state.keep[0]]
    seen = torch.cat([tokens, prompts], dim=1)
    with torch.no_grad():
        if ctx.case.reference_layer is not None:
            keep = None if state.keep is None else torch.ones(rows.shape[:2], dtype=torch.bool)
            own = TokenState(rows, keep, state.cache)
            return ctx.case.reference_layer(encoder, layer, own, seen).tokens
        if encoder.causal or state.keep is not None:
            return None
        whole = state.with_tokens(torch.cat([seen, rows], dim=1))
        return encoder.run_layer(layer, whole, None).tokens[:, -rows.shape[1] :]


def _rows(ctx: Context, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ctx.batch, PROMPT_ROWS, width, generator=generator, dtype=torch.float64)


def _reached(total: Tensor, leaf: Tensor) -> Tensor:
    """(B, L) bool: where a finite gradient of ``total`` reaches (B, L, D)."""
    if not total.requires_grad:
        return torch.zeros(leaf.shape[:2], dtype=torch.bool)
    (gradient,) = torch.autograd.grad(total, [leaf], retain_graph=True, allow_unused=True)
    if gradient is None:
        return torch.zeros(leaf.shape[:2], dtype=torch.bool)
    size = gradient.abs().sum(dim=-1)
    return torch.isfinite(size) & (size > 0)


def _shapes(features: Features) -> Sequence[tuple[int, ...] | None]:
    parts = (features.pooled, features.tokens, features.keep)
    return [None if part is None else tuple(part.shape) for part in parts]


def _mask(keep: Tensor | None) -> Tensor:
    return torch.empty(0, dtype=torch.bool) if keep is None else keep
