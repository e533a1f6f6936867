"""The checks of what a main encoder promises about its layers and their prompts."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fusionkit.encoders.base import ENTERING, KEEP, TokenState
from fusionkit.encoders.stack import BlockStack
from fusionkit.errors import EncoderError
from fusionkit.testing.case import (
    PROMPT_ROWS,
    Context,
    NotApplicable,
    PromptList,
    Violation,
    real_tokens,
    weighted_sum,
)


def layers_keep_their_length(ctx: Context) -> None:
    """With 1 or 3 prompts, a layer returns tokens and masks of the shape it has without any."""
    encoder = ctx.main
    with torch.no_grad():
        for layer, state in ctx.states():
            bare = encoder.run_layer(layer, state, None)
            for n in (1, PROMPT_ROWS):
                prompted = encoder.run_layer(layer, state, ctx.prompts[layer][:, :n])
                shapes = [_shapes(prompted), _shapes(bare)]
                if shapes[0] != shapes[1]:
                    raise Violation(
                        f"Layer {layer} with {n} prompts returns (tokens, keep) of {shapes[0]}, "
                        f"without prompts of {shapes[1]}. Drop the outputs at the prompt positions."
                    )


def tokens_stay_in_place(ctx: Context) -> None:
    """Prefix tokens stay in front and all others in order.

    Attention that sees all tokens alike gives the same when its keys are repeated, so prompts that
    repeat the layer's own tokens (in another order) must change nothing. Where this does not hold
    (windows, causal masks, positions inside of attention), each output under one random prompt
    must resemble the output that its own position has without prompts more than that of any other
    position: residual connections see to that. One sample without padding is used.
    """
    encoder = ctx.main
    with torch.no_grad():
        state = encoder.embed({name: tensor.clone() for name, tensor in ctx.alone[0].items()})
        for layer, rows in enumerate(ctx.prompts):
            bare = encoder.run_layer(layer, state, None)
            if not _repeating_changes_nothing(ctx, layer, state, bare):
                for prompt in rows[:, :1].split(1):
                    _expect_in_place(encoder.run_layer(layer, state, prompt), bare, layer)
            state = bare


def no_rows_equal_no_prompts(ctx: Context) -> None:
    """Prompts of zero rows, and a callable that returns None, equal no prompts."""
    encoder = ctx.main
    remedy = "Treat prompts of shape (B, 0, D) like None."
    empty = [rows[:, :0] for rows in ctx.prompts]
    with torch.no_grad():
        bare = ctx.encode(ctx.inputs).pooled
        ctx.close(ctx.encode(ctx.inputs, empty).pooled, bare, "zero rows against none", remedy)
        nothing = [None] * len(empty)
        ctx.close(ctx.encode(ctx.inputs, nothing).pooled, bare, "None against none", remedy)
        for layer, state in ctx.states():
            ctx.close(
                encoder.run_layer(layer, state, empty[layer]).tokens,
                encoder.run_layer(layer, state, None).tokens,
                f"zero rows against none at layer {layer}",
                remedy,
            )


def checkpointing_changes_nothing(ctx: Context) -> None:
    """With ``gradient_checkpointing``, output and gradients are the same."""
    encoder = ctx.main
    plain = _gradients(ctx)
    encoder.gradient_checkpointing = True
    recomputed = _gradients(ctx)
    if plain.keys() != recomputed.keys():
        lost = sorted(plain.keys() ^ recomputed.keys())
        raise Violation(f"With checkpointing, other tensors get gradients: {lost[:5]}. {_PURE}")
    for name, gradient in plain.items():
        ctx.close(recomputed[name], gradient, f"{name} with checkpointing", _PURE)


def compiles_as_one_graph(ctx: Context) -> None:
    """``torch.compile(encoder.encode, fullgraph=True)`` traces without a break, same result."""
    encoder = ctx.main
    prompts = PromptList(ctx.prompts)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(encoder.encode, fullgraph=True, backend="eager")
        with torch.no_grad():
            pooled = compiled(dict(ctx.inputs), prompts).pooled
    except Exception as error:
        raise Violation(
            f"encode does not compile as one graph: {_first_lines(error)}. Use no .item(), no "
            f".tolist() and no branch on a tensor's values."
        ) from error
    finally:
        torch._dynamo.reset()
    with torch.no_grad():
        eager = ctx.encode(ctx.inputs, ctx.prompts).pooled
    ctx.close(pooled, eager, "compiled against eager", "Keep run_layer free of Python state.")


def equals_concatenation(ctx: Context) -> None:
    """A layer with prompts equals the case's reference, outputs and gradients."""
    encoder = ctx.main
    if ctx.case.reference_layer is None:
        raise NotApplicable(
            "BlockStack concatenates the prompts itself"
            if type(encoder).run_layer is BlockStack.run_layer
            else "the case has no `reference_layer`"
        )
    remedy = "Norm prompts like tokens, project them by the block's own weights, never mask them."
    for layer, state in ctx.states():
        found = []
        for run in (encoder.run_layer, partial(ctx.case.reference_layer, encoder)):
            tokens = state.tokens.detach().clone().requires_grad_()
            rows = ctx.prompts[layer].clone().requires_grad_()
            out = run(layer, state.with_tokens(tokens), rows)
            kept = real_tokens(out.tokens, out.keep)
            gradients = torch.autograd.grad(weighted_sum(kept), [tokens, rows], allow_unused=True)
            found.append([kept.detach(), *map(_dense, gradients)])
        for name, ours, theirs in zip(
            ("output", "gradient of the tokens", "gradient of the prompts"), *found, strict=True
        ):
            what = f"layer {layer}, {name}, against concatenation"
            ctx.close(ours, theirs, what, remedy)


def parts_equal_the_whole(ctx: Context) -> None:
    """Rows that all samples share give in a part of their own what they give in every sample's.

    Outputs, and gradients of tokens and of both parts.
    """
    encoder = ctx.main
    remedy = "Make keys and values of each part, and let those of (1, n, D) hold for all samples."
    for layer, state in ctx.states():
        batch = len(state.tokens)
        found = []
        for in_parts in (True, False):
            tokens = state.tokens.detach().clone().requires_grad_()
            shared = ctx.prompts[layer][:1, :1].clone().requires_grad_()
            own = ctx.prompts[layer][:, 1:].clone().requires_grad_()
            whole = torch.cat([shared.expand(batch, -1, -1), own], dim=1)
            rows = (shared, own) if in_parts else whole
            out = encoder.step(layer, state.with_tokens(tokens), rows)
            kept = real_tokens(out.tokens, out.keep)
            inputs = [tokens, shared, own]
            gradients = torch.autograd.grad(weighted_sum(kept), inputs, allow_unused=True)
            found.append([kept.detach(), *map(_dense, gradients)])
        names = ("output", "gradient of the tokens", "of the shared rows", "of the others")
        for name, ours, theirs in zip(names, *found, strict=True):
            ctx.close(ours, theirs, f"layer {layer}, {name}, in parts", remedy)


def pooled_alone_is_the_same(ctx: Context) -> None:
    """With ``pooled_only``, ``pooled`` and the gradients of the prompts are the same."""
    encoder = ctx.main
    remedy = "In `pooled_apart`, return what is pooled, and the other tokens without it."
    found = []
    for alone in (False, True):
        encoder.pooled_only = alone
        rows = [prompts.clone().requires_grad_() for prompts in ctx.prompts]
        seen = ctx.encode(ctx.inputs, rows)
        gradients = torch.autograd.grad(weighted_sum(seen.pooled), rows, allow_unused=True)
        found.append([seen.pooled.detach(), *map(_dense, gradients)])
        if alone and seen.tokens is not None:
            raise Violation("With pooled_only, features have tokens. Leave `encode` as it is.")
    for number, (whole, single) in enumerate(zip(*found, strict=True)):
        what = f"gradient of the prompts of layer {number - 1}" if number else "pooled"
        ctx.close(single, whole, f"{what}, run through the last layer alone", remedy)


def prompts_keep_the_autocast_dtype(ctx: Context) -> None:
    """Under bfloat16 autocast, a layer with float32 prompts returns the dtype it has without."""
    encoder = ctx.main.float()
    inputs = {
        name: tensor.float() if tensor.is_floating_point() else tensor.clone()
        for name, tensor in ctx.inputs.items()
    }
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        state = encoder.embed(inputs)
        for layer, rows in enumerate(ctx.prompts):
            bare = encoder.run_layer(layer, state, None).tokens.dtype
            prompted = encoder.run_layer(layer, state, rows.float())
            if prompted.tokens.dtype != bare:
                raise Violation(
                    f"Under bfloat16 autocast, layer {layer} returns {prompted.tokens.dtype} with "
                    f"float32 prompts, {bare} without. Cast the prompts to the dtype of the "
                    f"tokens: prompts.to(tokens)."
                )
            state = prompted
        encoder.readout(state)


def every_layer_uses_its_prompts(ctx: Context) -> None:
    """At every layer, every real token sees the prompts, and so does ``pooled``."""
    encoder = ctx.main
    remedy = "Hand the prompts to this layer's attention as keys and values, unmasked."
    with torch.no_grad():
        bare = ctx.encode(ctx.inputs).pooled
        for layer, state in ctx.states():
            without = encoder.run_layer(layer, state, None)
            tokens = encoder.run_layer(layer, state, ctx.prompts[layer]).tokens
            moved = (real_tokens(tokens, without.keep) - _real(without)).abs().amax(dim=-1) > 0
            if not bool(moved.all()):
                raise Violation(
                    f"Layer {layer}: {int((~moved).sum())} of {len(moved)} real tokens ignore the "
                    f"prompts. {remedy}"
                )
            only = [rows if i == layer else None for i, rows in enumerate(ctx.prompts)]
            if bool((ctx.encode(ctx.inputs, only).pooled == bare).all(dim=1).any()):
                raise Violation(f"Prompts at layer {layer} alone leave pooled as it is. {remedy}")


def layers_are_what_runs(ctx: Context) -> None:
    """``layers[i]`` holds weights of ``backbone`` that ``run_layer(i, ...)`` uses, and no other."""
    encoder, states = ctx.main, list(ctx.states())
    layers = encoder.layers
    if len(layers) != len(encoder.layer_widths):
        raise Violation(
            f"layers has {len(layers)} modules, layer_widths {len(encoder.layer_widths)} widths. "
            f"List one module for each layer, a shared one once for each use."
        )
    inside = {id(weight) for weight in encoder.backbone.parameters()}
    owned = [{id(weight) for weight in module.parameters()} for module in layers]
    with torch.no_grad():
        before = [encoder.run_layer(i, state, None).tokens for i, state in states]
        for number, module in enumerate(layers):
            if not owned[number] or not owned[number] <= inside:
                raise Violation(
                    f"layers[{number}] has no weights, or some outside of self.backbone. List the "
                    f"backbone's own modules."
                )
            saved = [weight.clone() for weight in module.parameters()]
            for weight in module.parameters():
                weight.mul_(1.5).add_(0.1)
            for i, state in states:
                changed = not torch.equal(encoder.run_layer(i, state, None).tokens, before[i])
                if changed != bool(owned[number] & owned[i]):
                    does = "changes" if changed else "leaves as it is"
                    raise Violation(
                        f"Changing the weights of layers[{number}] {does} what "
                        f"run_layer({i}, ...) returns. List the modules in the order they run."
                    )
            for weight, value in zip(module.parameters(), saved, strict=True):
                weight.copy_(value)


def resumes_from_tokens(ctx: Context) -> None:
    """From the real tokens that enter a layer, kept apart and padded anew, layers run on as ever.

    With prompts from that layer on, ``encode`` gives what it gives from the inputs.
    """
    encoder = ctx.main
    remedy = "Make in `resume` what `embed` puts into TokenState.cache, from the tokens alone."
    with torch.no_grad():
        alone = [[state for _, state in ctx.states(inputs)] for inputs in ctx.alone]
        for layer in range(1, len(encoder.layer_widths)):
            prompts = [None if i < layer else rows for i, rows in enumerate(ctx.prompts)]
            states = [row[layer] for row in alone]
            rows = [s.tokens[0] if s.keep is None else s.tokens[0][s.keep[0]] for s in states]
            stored = {f"{ENTERING}{layer}": pad_sequence(rows, batch_first=True)}
            if states[0].keep is not None:
                lengths = torch.tensor([len(row) for row in rows])
                stored[KEEP] = torch.arange(int(lengths.max())) < lengths[:, None]
            ctx.close(
                ctx.encode(stored, prompts).pooled,
                ctx.encode(ctx.inputs, prompts).pooled,
                f"from the tokens that enter layer {layer}",
                remedy,
            )


def prompts_have_no_order(ctx: Context) -> None:
    """The rows of a layer's prompts may be given in any order."""
    reverse = [rows.flip(1) for rows in ctx.prompts]
    encoder = ctx.main
    with torch.no_grad():
        for layer, state in ctx.states():
            ctx.close(
                _real(encoder.run_layer(layer, state, reverse[layer])),
                _real(encoder.run_layer(layer, state, ctx.prompts[layer])),
                f"layer {layer} with its prompts in reverse order",
                "Prompts get no position and no bias of their own, and all are visible to all.",
            )


def wrong_prompts_are_refused(ctx: Context) -> None:
    """Prompts of the wrong width or batch raise an error that names both shapes."""
    encoder = ctx.main
    width, n = encoder.layer_widths[0], PROMPT_ROWS
    for shape in ((ctx.batch, n, width + 1), (ctx.batch + 1, n, width), (ctx.batch, width)):
        wrong = [torch.zeros(shape, dtype=torch.float64), *ctx.prompts[1:]]
        try:
            ctx.encode(ctx.inputs, wrong)
        except EncoderError as error:
            if str(shape) in str(error) and f"({ctx.batch}, n, {width})" in str(error):
                continue
            raise Violation(
                f"The error for prompts of {shape} does not name both shapes."
            ) from error
        except Exception as error:
            raise Violation(
                f"Prompts of {shape} raise {type(error).__name__}. Leave MainEncoder.encode as it "
                f"is: it checks them."
            ) from error
        raise Violation(f"Prompts of {shape} are accepted. Leave MainEncoder.encode as it is.")


_PURE = "run_layer must give the same when it is called a second time with the same arguments."


def _shapes(state: TokenState) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    return tuple(state.tokens.shape), None if state.keep is None else tuple(state.keep.shape)


def _real(state: TokenState) -> Tensor:
    return real_tokens(state.tokens, state.keep)


def _repeating_changes_nothing(
    ctx: Context, layer: int, state: TokenState, bare: TokenState
) -> bool:
    repeated = state.tokens.flatten(1, -2).roll(1, dims=1)
    if repeated.shape[-1] != ctx.prompts[layer].shape[-1]:
        return False
    tokens = ctx.main.run_layer(layer, state, repeated).tokens
    bound = ctx.case.tolerance
    same_shape = tokens.shape == bare.tokens.shape
    return same_shape and torch.allclose(tokens, bare.tokens, rtol=bound, atol=bound)


def _expect_in_place(prompted: TokenState, bare: TokenState, layer: int) -> None:
    tokens, expected = prompted.tokens.flatten(0, -2), bare.tokens.flatten(0, -2)
    remedy = "Drop exactly the prompts' positions from the output of concatenated blocks."
    if tokens.shape != expected.shape:
        raise Violation(f"Layer {layer} returns more or fewer tokens when prompted. {remedy}")
    distances = torch.cdist(tokens, expected)
    moved = distances.diagonal() > distances.min(dim=1).values + 1e-12
    if bool(moved.any()):
        where = moved.nonzero().flatten().tolist()[:5]
        raise Violation(
            f"Layer {layer}, when prompted, returns something else at the positions {where} than "
            f"the tokens that were there. {remedy}"
        )


def _gradients(ctx: Context) -> dict[str, Tensor]:
    ctx.encoder.zero_grad(set_to_none=True)
    prompts = [rows.clone().requires_grad_() for rows in ctx.prompts]
    pooled = ctx.encode(ctx.inputs, prompts).pooled
    weighted_sum(pooled).backward()  # type: ignore[no-untyped-call]
    named = {f"gradient of the prompts of layer {i}": rows for i, rows in enumerate(prompts)}
    named.update({f"gradient of {name}": w for name, w in ctx.encoder.named_parameters()})
    found = {name: tensor.grad for name, tensor in named.items() if tensor.grad is not None}
    return {"pooled": pooled.detach(), **found}


def _dense(gradient: Tensor | None) -> Tensor:
    return torch.zeros(()) if gradient is None else gradient


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
