"""TimmViT against timm's own forward and against concatenated prompts."""

from pathlib import Path

import pytest
import timm
import torch

from fusionkit.encoders.attention import run_concatenated
from fusionkit.encoders.timm_vit import TimmViT
from fusionkit.errors import EncoderError

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
DEIT = Path(__file__).parents[3] / "shared" / "weights" / "deit_tiny_patch16_224.safetensors"

VARIANTS = {
    "plain": ("vit_tiny_patch16_224", {}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 4, "no_embed_class": True}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "clip": ("vit_base_patch32_clip_224", {}),
    "scales": (
        "vit_tiny_patch16_224",
        {"init_values": 0.5, "qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True},
    ),
    "mean": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "map": ("vit_tiny_patch16_224", {"global_pool": "map"}),
}


def make(variant="plain", **options):
    """A tiny encoder in float64, with no parameter left at zero or one."""
    model, own = VARIANTS[variant]
    torch.manual_seed(0)
    encoder = TimmViT(model, weights="random", options={**TINY, **own, **options}).double().eval()
    for parameter in encoder.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return encoder


def pixels(batch=3, channels=3, side=32):
    generator = torch.Generator().manual_seed(1)
    shape = (batch, channels, side, side)
    return {"pixels": torch.randn(shape, generator=generator, dtype=torch.float64)}


def prompts_for(encoder, batch=3, n=5):
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(batch, n, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for width in encoder.layer_widths
    ]


def upstream(encoder, inputs):
    backbone = encoder.backbone
    return backbone.forward_head(backbone.forward_features(inputs["pixels"]), pre_logits=True)


def concatenated(encoder, inputs, prompts):
    state = encoder.embed(inputs)
    tokens = state.tokens
    for block, rows in zip(encoder.backbone.blocks, prompts, strict=True):
        tokens = run_concatenated(block, tokens, rows, encoder.prefix)
    return encoder.readout(state.with_tokens(tokens)).pooled


def gradients(encoder, prompts, pooled):
    """Of a sum of squares: for the prompts, then for every parameter of the backbone."""
    wanted = [*prompts, *encoder.backbone.parameters()]
    return torch.autograd.grad(pooled.square().sum(), wanted, allow_unused=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_prompts_it_is_upstream(variant):
    encoder, inputs = make(variant), pixels()
    features = encoder.encode(inputs)
    assert (features.pooled - upstream(encoder, inputs)).abs().max() < 1e-12
    assert features.pooled.shape == (3, encoder.out_dim)
    assert features.tokens.shape == (3, 16 + encoder.prefix, encoder.out_dim)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_prompts_as_keys_and_values_equal_concatenation(variant, fused):
    encoder, inputs = make(variant), pixels()
    for block in encoder.backbone.blocks:
        block.attn.fused_attn = fused
    prompts = prompts_for(encoder)
    ours = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
    reference = concatenated(encoder, inputs, prompts)
    assert (ours - reference).abs().max() < 1e-10
    assert (ours - upstream(encoder, inputs)).abs().max() > 1e-3
    for left, right in zip(
        gradients(encoder, prompts, ours), gradients(encoder, prompts, reference), strict=True
    ):
        assert (left is None) == (right is None)
        assert left is None or (left - right).abs().max() < 1e-10


def test_gated_attention_gates_the_tokens():
    encoder, inputs = make(), pixels()
    for block in encoder.backbone.blocks:
        block.attn.gate = torch.nn.Linear(32, 32).double()
    prompts = prompts_for(encoder)
    ours = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
    assert (ours - concatenated(encoder, inputs, prompts)).abs().max() < 1e-10


def test_other_blocks_get_prompts_by_concatenation():
    encoder, inputs = make(block_fn=timm.models.vision_transformer.ResPostBlock), pixels()
    prompts = prompts_for(encoder)
    assert (encoder.encode(inputs).pooled - upstream(encoder, inputs)).abs().max() < 1e-12
    ours = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
    assert torch.equal(ours, concatenated(encoder, inputs, prompts))


def test_a_wrapped_qkv_is_called_for_the_prompts():
    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, rows):
            return 2 * self.inner(rows)

    encoder, inputs = make(), pixels()
    for block in encoder.backbone.blocks:
        block.attn.qkv = Doubled(block.attn.qkv)
    prompts = prompts_for(encoder)
    ours = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
    assert (ours - concatenated(encoder, inputs, prompts)).abs().max() < 1e-10


def test_row_does_not_depend_on_its_batch_mates():
    encoder, inputs = make(), pixels()
    prompts = [rows.detach() for rows in prompts_for(encoder)]
    before = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
    changed = [torch.cat([rows[:1], torch.randn_like(rows[1:])]) for rows in prompts]
    after = encoder.encode(inputs, lambda layer, state: changed[layer]).pooled
    assert torch.equal(before[0], after[0])
    assert (before[1:] - after[1:]).abs().amin(dim=0).max() > 1e-3


def test_no_rows_equal_no_prompts():
    encoder, inputs = make(), pixels()
    empty = torch.zeros(3, 0, 32, dtype=torch.float64)
    assert torch.equal(
        encoder.encode(inputs, lambda layer, state: empty).pooled, encoder.encode(inputs).pooled
    )


def test_dropout_and_stochastic_depth_are_active_in_training_only():
    encoder = make(attn_drop_rate=0.2, proj_drop_rate=0.2, drop_path_rate=0.2, patch_drop_rate=0.25)
    inputs, prompts = pixels(), prompts_for(encoder)

    def run():
        return encoder.encode(inputs, lambda layer, state: prompts[layer])

    assert torch.equal(run().pooled, run().pooled)
    encoder.train()
    assert not torch.equal(run().pooled, run().pooled)
    assert run().tokens.shape[1] == 1 + 12  # patch dropout keeps three of four
    torch.manual_seed(3)
    ours = encoder.encode(inputs).pooled
    torch.manual_seed(3)
    assert torch.equal(ours, upstream(encoder, inputs))


def test_checkpointing_leaves_gradients_identical():
    encoder, inputs = make(drop_path_rate=0.3), pixels()
    encoder.train()
    prompts, found = prompts_for(encoder), []
    for encoder.gradient_checkpointing in (False, True):
        torch.manual_seed(4)
        pooled = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
        found.append(gradients(encoder, prompts, pooled))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None)


@pytest.mark.parametrize("variant", ["plain", "distilled"])
def test_encode_compiles_as_one_graph(variant):
    encoder, inputs = make(variant), pixels()
    prompts = [rows.detach() for rows in prompts_for(encoder)]

    def run(inputs, prompts):
        return encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert (compiled(inputs, prompts) - run(inputs, prompts)).abs().max() < 1e-12


def test_state_dict_keys_are_upstreams_and_the_seed_gives_upstreams_weights():
    torch.manual_seed(5)
    ours = TimmViT("vit_tiny_patch16_224", "random", options=TINY).backbone.state_dict()
    torch.manual_seed(5)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_dynamic_sizes():
    encoder = make(dynamic_img_size=True)
    inputs = pixels(side=48)
    assert (encoder.encode(inputs).pooled - upstream(encoder, inputs)).abs().max() < 1e-12
    with pytest.raises(EncoderError, match=r"\(B, 3, 8 \* n, 8 \* n\), given \(3, 3, 30, 30\)"):
        encoder.encode(pixels(side=30))


@pytest.mark.parametrize("model", ["deit_tiny_patch16_224", "vit_base_patch16_224"])
@pytest.mark.parametrize("weights", ["pretrained", "no/such/file"])
def test_meta_builds_without_weights(model, weights):
    with torch.device("meta"):
        encoder = TimmViT(model, weights)
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert encoder.layer_widths == (encoder.out_dim,) * 12


def test_inputs_that_do_not_fit_are_named():
    encoder = make()
    with pytest.raises(EncoderError, match=r"inputs\['pixels'\], given \['ids'\]"):
        encoder.encode({"ids": torch.zeros(1)})
    with pytest.raises(EncoderError, match=r"\(B, 3, 32, 32\), given \(3, 3, 48, 48\)"):
        encoder.encode(pixels(side=48))
    with pytest.raises(EncoderError, match=r"\(B, 3, 32, 32\), given \(3, 1, 32, 32\)"):
        encoder.encode(pixels(channels=1))


def test_preprocessor_is_the_backbones_own():
    encoder = TimmViT("vit_tiny_patch16_224", "random", image_size=64, options={"depth": 1})
    row = encoder.preprocessor(train=False)(torch.full((90, 80), 255, dtype=torch.uint8))
    assert row["pixels"].shape == (3, 64, 64)
    assert torch.allclose(
        row["pixels"], torch.ones(())
    )  # its mean and std are 0.5: (1 - 0.5) / 0.5


@pytest.mark.skipif(not DEIT.is_file(), reason="no shared weights")
def test_real_deit_weights_equal_timms_own_loading():
    encoder = TimmViT("deit_tiny_patch16_224", str(DEIT)).eval()
    model = timm.create_model("deit_tiny_patch16_224").eval()
    timm.models.load_checkpoint(model, str(DEIT))
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(image), pre_logits=True)
        assert torch.equal(encoder.encode({"pixels": image}).pooled, expected)
