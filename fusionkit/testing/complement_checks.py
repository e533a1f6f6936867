"""The checks that apply to every encoder, in either role."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from fusionkit.encoders.base import MainEncoder, Modality, Preprocessor
from fusionkit.testing.case import (
    Context,
    NotApplicable,
    Violation,
    as_double,
    prepare,
    real_tokens,
    select,
    weighted_sum,
)


def equals_upstream(ctx: Context) -> None:
    """Without prompts, ``pooled`` is what the upstream model returns itself."""
    if ctx.case.upstream is None:
        raise NotApplicable("the case has no `upstream`")
    with torch.no_grad():
        pooled = ctx.encode(ctx.inputs).pooled
        expected = ctx.case.upstream(ctx.encoder.backbone, dict(ctx.inputs))
    ctx.close(
        pooled,
        expected,
        "pooled features against upstream's own",
        "Follow upstream's forward step by step in embed, run_layer and readout (or encode).",
    )


def padding_changes_nothing(ctx: Context) -> None:
    """A sample alone and unpadded equals the same sample alone and padded to its batch's length."""
    if all(_row_shapes(own) == _row_shapes(ctx.inputs) for own in ctx.alone):
        raise NotApplicable("no sample was padded; if the encoder pads, give unequal lengths")
    remedy = "Mask padding as keys, and leave it out of means and of `features.keep`."
    for name, prompts in ctx.settings():
        for row, own in enumerate(ctx.alone):
            mine = None if prompts is None else [rows[row : row + 1] for rows in prompts]
            with torch.no_grad():
                bare = ctx.encode(own, mine)
                padded = ctx.encode(select(ctx.inputs, [row]), mine)
            what = f"sample {row}{name}, padded against unpadded"
            ctx.close(padded.pooled, bare.pooled, f"{what}, pooled", remedy)
            if padded.tokens is not None and bare.tokens is not None:
                ctx.close(
                    real_tokens(padded.tokens, padded.keep),
                    real_tokens(bare.tokens, bare.keep),
                    f"{what}, tokens",
                    remedy,
                )


def row_is_independent(ctx: Context) -> None:
    """Moving a row within the batch, or exchanging its mates and their prompts, leaves it alone."""
    batch = ctx.batch
    rolled = [*range(1, batch), 0]
    exchanged = [0, *[batch - 1] * (batch - 1)]
    for name, prompts in ctx.settings():
        with torch.no_grad():
            whole = ctx.encode(ctx.inputs, prompts)
        for rows in (rolled, exchanged, [0]):
            mine = None if prompts is None else [layer[rows] for layer in prompts]
            with torch.no_grad():
                part = ctx.encode(select(ctx.inputs, rows), mine)
            ctx.close(
                part.pooled,
                whole.pooled[rows],
                f"rows {rows} as a batch{name}, against the whole batch",
                "Check the order of rows where windows, heads or prompts are folded into the "
                "batch, and that no statistics are taken over it.",
            )


def nothing_is_modified(ctx: Context) -> None:
    """Inputs, layer states and prompts are as before after a call."""
    remedy = "Make a new tensor or dict instead of writing into the one given."
    inputs = {name: tensor.clone() for name, tensor in ctx.inputs.items()}
    with torch.no_grad():
        ctx.encoder.encode(inputs)
    if inputs.keys() != ctx.inputs.keys():
        changed = sorted(inputs.keys() ^ ctx.inputs.keys())
        raise Violation(f"encode added or removed the inputs {changed}. {remedy}")
    for name, tensor in ctx.inputs.items():
        if not torch.equal(inputs[name], tensor):
            raise Violation(f"encode changed inputs[{name!r}]. {remedy}")
    if not isinstance(ctx.encoder, MainEncoder):
        return
    with torch.no_grad():
        for layer, state in ctx.states():
            rows = ctx.prompts[layer].clone()
            tokens = state.tokens.clone()
            keep = None if state.keep is None else state.keep.clone()
            ctx.encoder.run_layer(layer, state, rows)
            if not torch.equal(state.tokens, tokens):
                raise Violation(f"run_layer({layer}, ...) changed state.tokens. {remedy}")
            if keep is not None and not torch.equal(_present(state.keep), keep):
                raise Violation(f"run_layer({layer}, ...) changed state.keep. {remedy}")
            if not torch.equal(rows, ctx.prompts[layer]):
                raise Violation(f"run_layer({layer}, ...) changed its prompts. {remedy}")


def gradients_go_where_they_belong(ctx: Context) -> None:
    """Trainable weights and all prompt rows get gradients, a frozen backbone gets none."""
    encoder = ctx.encoder
    trainable = [weight for weight in encoder.parameters() if weight.requires_grad]
    if trainable:
        pooled = ctx.encode(ctx.inputs).pooled
        if not pooled.requires_grad:
            raise Violation(
                "encode cuts the graph: with trainable weights, pooled does not require grad. "
                "Leave freezing to the transfer: no no_grad, no detach."
            )
        weighted_sum(pooled).backward()  # type: ignore[no-untyped-call]
        if all(weight.grad is None for weight in trainable):
            raise Violation("No weight of the backbone gets a gradient. Remove detach or no_grad.")
    encoder.zero_grad(set_to_none=True)
    encoder.requires_grad_(False)
    prompts = [rows.clone().requires_grad_() for rows in ctx.prompts]
    pooled = ctx.encode(ctx.inputs, prompts or None).pooled
    if prompts:
        weighted_sum(pooled).backward()  # type: ignore[no-untyped-call]
    touched = [name for name, weight in encoder.named_parameters() if weight.requires_grad]
    touched += [name for name, weight in encoder.named_parameters() if weight.grad is not None]
    if touched or (pooled.requires_grad and not prompts):
        raise Violation(
            f"After requires_grad_(False), gradients reach {touched or 'pooled'}. Do not set "
            f"requires_grad in encode, and keep every trained tensor in self.backbone."
        )
    for layer, rows in enumerate(prompts):
        reached = torch.zeros(()) if rows.grad is None else rows.grad.abs().sum(dim=-1)
        if not (bool(torch.isfinite(reached).all()) and bool((reached > 0).all())):
            raise Violation(
                f"The prompts of layer {layer} get no gradient, or not a finite one, in at least "
                f"one row. Every row must be seen unmasked by the tokens, without detach."
            )


def weights_are_upstreams(ctx: Context) -> None:
    """All weights are in ``backbone``, under upstream's keys, and load strictly elsewhere."""
    outside = sorted(key for key in ctx.encoder.state_dict() if not key.startswith("backbone."))
    if outside:
        raise Violation(
            f"Weights outside of self.backbone: {', '.join(outside[:5])}. Hold the upstream model "
            f"as self.backbone and register nothing beside it, not even a part of it again."
        )
    saved = ctx.encoder.backbone.state_dict()
    theirs = set(saved if ctx.case.upstream_keys is None else ctx.case.upstream_keys)
    if set(saved) != theirs:
        raise Violation(
            f"backbone.state_dict() has {sorted(set(saved) - theirs)[:5]} that upstream lacks, and "
            f"lacks {sorted(theirs - set(saved))[:5]}. A module that replaces one of upstream's "
            f"must adopt its parameters under the same names."
        )
    torch.manual_seed(3)
    fresh = ctx.case.make().double().eval()
    fresh.backbone.load_state_dict(saved, strict=True)
    with torch.no_grad():
        ctx.close(
            fresh.encode(dict(ctx.inputs)).pooled,
            ctx.encode(ctx.inputs).pooled,
            "a fresh encoder with the saved weights against the saved one",
            "Something that shapes the output is not in backbone.state_dict().",
        )


def evaluation_is_deterministic(ctx: Context) -> None:
    """In evaluation mode, two passes are equal, whatever the random state."""
    with torch.no_grad():
        first = ctx.encode(ctx.inputs).pooled
        ctx.encoder.train()
        ctx.encoder.eval()
        torch.manual_seed(4)
        second = ctx.encode(ctx.inputs).pooled
    ctx.close(
        second,
        first,
        "two passes in evaluation mode",
        "Switch dropout, LayerDrop, masking and noise off when `self.training` is False.",
    )


def shapes_are_declared(ctx: Context) -> None:
    """``out_dim``, ``layer_widths``, features and masks fit each other."""
    encoder = ctx.encoder
    if encoder.modality not in get_args(Modality):
        raise Violation(f"modality is {encoder.modality!r}, not one of {get_args(Modality)}.")
    if not isinstance(encoder.backbone, nn.Module):
        raise Violation("self.backbone is not a module. Hold the upstream model there.")
    with torch.no_grad():
        features = ctx.encode(ctx.inputs)
    _expect(features.pooled, (ctx.batch, encoder.out_dim), "features.pooled", "(B, out_dim)")
    if not bool(torch.isfinite(features.pooled).all()):
        raise Violation("features.pooled is not finite. Look for rows that are masked altogether.")
    if features.tokens is None and features.keep is not None:
        raise Violation("features.keep is given without features.tokens. Give both or neither.")
    if features.tokens is not None:
        length = features.tokens.shape[1] if features.tokens.ndim == 3 else -1
        _expect(features.tokens, (ctx.batch, length, encoder.out_dim), "features.tokens", "(B,T,C)")
        _expect_mask(features.keep, (ctx.batch, length), "features.keep")
    if not isinstance(encoder, MainEncoder):
        return
    widths = encoder.layer_widths
    if not (isinstance(widths, tuple) and widths and all(type(width) is int for width in widths)):
        raise Violation(f"layer_widths is {widths!r}. Return a non-empty tuple of ints.")
    with torch.no_grad():
        for layer, state in ctx.states():
            shape = (ctx.batch, state.tokens.flatten(1, -2).shape[1])
            _expect_mask(state.keep, shape, f"state.keep at layer {layer}")


def preprocessor_travels(ctx: Context) -> None:
    """Preprocessors can be pickled into data workers; without augmentation they are fixed."""
    for train in (False, True):
        made = ctx.encoder.preprocessor(train=train)
        if not isinstance(made, Preprocessor):
            raise Violation(f"preprocessor(train={train}) lacks __call__ or collate.")
        try:
            copy = pickle.loads(pickle.dumps(made))
        except Exception as error:
            raise Violation(
                f"preprocessor(train={train}) cannot be pickled ({error}). Use a class at module "
                f"level without lambdas or open files: data workers receive it pickled."
            ) from error
        inputs = copy.collate([copy(sample) for sample in ctx.case.samples])
        _expect_batch(inputs, ctx.batch)
        if not train and not _equal(as_double(inputs), ctx.inputs):
            raise Violation(
                "preprocessor(train=False) gives other inputs after pickling, or the second time. "
                "Augment only when train is True."
            )


def builds_on_meta(ctx: Context) -> None:
    """``with torch.device("meta")`` builds the encoder without weights; widths are known."""
    remedy = "Skip loading when fusionkit.encoders.weights.building_on_meta() says so."
    with torch.device("meta"):
        encoder = ctx.case.make()
    loaded = [name for name, weight in encoder.named_parameters() if not weight.is_meta]
    if loaded:
        raise Violation(f"Built on the meta device, but {loaded[:5]} have storage. {remedy}")
    real = prepare(ctx.case).encoder
    if encoder.out_dim != real.out_dim:
        raise Violation(f"out_dim is {encoder.out_dim} on meta, {real.out_dim} otherwise.")
    if isinstance(encoder, MainEncoder) and encoder.layer_widths != ctx.main.layer_widths:
        raise Violation("layer_widths differ on the meta device. Read them from the architecture.")


def _row_shapes(inputs: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape[1:] for name, tensor in inputs.items()}


def _present(mask: Tensor | None) -> Tensor:
    return torch.empty(0) if mask is None else mask


def _expect(tensor: Tensor, shape: tuple[int, ...], name: str, spoken: str) -> None:
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        raise Violation(
            f"{name} is {tuple(tensor.shape)} of {tensor.dtype}. Return floats of {shape}, that is "
            f"{spoken}."
        )


def _expect_mask(mask: Tensor | None, shape: tuple[int, ...], name: str) -> None:
    if mask is None:
        return
    if tuple(mask.shape) != shape or mask.dtype != torch.bool:
        raise Violation(
            f"{name} is {tuple(mask.shape)} of {mask.dtype}. Return bool of {shape}, True = real."
        )


def _expect_batch(inputs: object, batch: int) -> None:
    if not isinstance(inputs, dict) or not inputs:
        raise Violation(f"collate returned {type(inputs).__name__}. Return a dict of tensors.")
    for name, tensor in inputs.items():
        if not isinstance(tensor, Tensor) or tensor.ndim == 0 or len(tensor) != batch:
            raise Violation(
                f"inputs[{name!r}] is no tensor with {batch} rows. Put the batch first."
            )


def _equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )
