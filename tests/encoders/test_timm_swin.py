"""TimmSwin against timm's own forward and against windowed attention written window by window."""

import pytest
import timm
import torch
from torch.nn import functional as F

from fusionkit.encoders.timm_swin import TimmSwin
from fusionkit.errors import ConfigError, EncoderError, WeightsError

SWIN = "swin_tiny_patch4_window7_224"
TINY = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "img_size": 56, "window_size": 7}

VARIANTS = {
    "window 7": {},  # stage 0: 14 x 14 tokens in 4 windows, shifted; stage 1: one window
    "window 4, padded": {"window_size": 4},  # 14 = 4 * 4 - 2
    "odd sizes": {"img_size": (60, 44), "window_size": 4},  # 15 x 11, then 8 x 6
    "wide windows": {"window_size": (3, 5)},
    "always partition": {"always_partition": True, "img_size": 40},
    "dynamic": {"strict_img_size": False, "window_size": 4},
    "head dim": {"head_dim": 12, "window_size": 5},
}


def make(variant="window 7", **options):
    """A tiny encoder in float64, with no parameter left at zero or one."""
    torch.manual_seed(0)
    encoder = TimmSwin(SWIN, "random", options={**TINY, **VARIANTS[variant], **options})
    encoder = encoder.double().eval()
    for parameter in encoder.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return encoder


def pixels(encoder, batch=3, size=None):
    generator = torch.Generator().manual_seed(1)
    size = size or encoder.backbone.patch_embed.img_size
    return {"pixels": torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64)}


def prompts_for(encoder, batch=3, n=5):
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(batch, n, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for width in encoder.layer_widths
    ]


def upstream(encoder, inputs):
    backbone = encoder.backbone
    return backbone.forward_head(backbone.forward_features(inputs["pixels"]), pre_logits=True)


def brute_force(encoder, inputs, prompts):
    """The whole encoder, one image, one window and one head at a time, prompts concatenated."""
    backbone, layer = encoder.backbone, 0
    x = backbone.patch_embed(inputs["pixels"])
    for stage in backbone.layers:
        x = stage.downsample(x)
        for block in stage.blocks:
            x = torch.stack(
                [
                    block_of(block, image, rows)
                    for image, rows in zip(x, prompts[layer], strict=True)
                ]
            )
            layer += 1
    return backbone.norm(x).mean(dim=(1, 2))


def block_of(block, image, prompts):
    """One block on one image (H, W, D) with prompts (n, D)."""
    (high, wide), shift = block.window_size, block.shift_size
    height, width, _ = image.shape
    normed = torch.roll(block.norm1(image), (-shift[0], -shift[1]), (0, 1))
    normed = F.pad(normed, (0, 0, 0, -width % wide, 0, -height % high))
    total = normed.shape[:2]
    out = torch.empty_like(normed)
    for top in range(0, total[0], high):
        for left in range(0, total[1], wide):
            places = [(y, x) for y in range(top, top + high) for x in range(left, left + wide)]
            mask = additive(block.attn, places, total, block.window_size, shift, len(prompts))
            rows = torch.cat([block.norm1(prompts), torch.stack([normed[p] for p in places])])
            result = attention_of(block.attn, rows, mask)[len(prompts) :]
            window = result.unflatten(0, (high, wide))
            out[top : top + high, left : left + wide] = window
    out = torch.roll(out[:height, :width], (shift[0], shift[1]), (0, 1))
    image = image + out
    return image + block.mlp(block.norm2(image))


def additive(attn, places, total, window, shift, n):
    """(heads, n + N, n + N): position bias and shift mask between tokens, zero around prompts."""

    def region(place):
        return tuple(
            (i >= size - side) + (i >= size - step)
            for i, size, side, step in zip(place, total, window, shift, strict=True)
        )

    result = torch.zeros(attn.num_heads, n + len(places), n + len(places), dtype=torch.float64)
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            row = (a[0] - b[0] + window[0] - 1) * (2 * window[1] - 1) + a[1] - b[1] + window[1] - 1
            result[:, n + i, n + j] = attn.relative_position_bias_table[row]
            if region(a) != region(b):
                result[:, n + i, n + j] -= 100.0
    return result


def attention_of(attn, rows, additive_mask):
    q, k, v = F.linear(rows, attn.qkv.weight, attn.qkv.bias).chunk(3, -1)
    outs = []
    for head, (q_h, k_h, v_h) in enumerate(
        zip(*(part.chunk(attn.num_heads, -1) for part in (q, k, v)), strict=True)
    ):
        scores = q_h @ k_h.T / q_h.shape[-1] ** 0.5 + additive_mask[head]
        outs.append(scores.softmax(-1) @ v_h)
    return attn.proj(torch.cat(outs, -1))


def gradients(encoder, prompts, pooled):
    wanted = [*prompts, *encoder.backbone.parameters()]
    return torch.autograd.grad(pooled.square().sum(), wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_prompts_it_is_upstream(variant):
    encoder = make(variant)
    inputs = pixels(encoder)
    features = encoder.encode(inputs)
    assert (features.pooled - upstream(encoder, inputs)).abs().max() < 1e-12
    assert torch.allclose(features.tokens.mean(1), features.pooled)
    assert features.pooled.shape == (3, encoder.out_dim) == (3, 32)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_prompts_equal_brute_force_concatenation_in_every_window(variant, fused):
    encoder = make(variant)
    for stage in encoder.backbone.layers:
        for block in stage.blocks:
            block.attn.fused_attn = fused
    inputs, prompts = pixels(encoder, batch=2), prompts_for(encoder, batch=2)
    ours = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
    reference = brute_force(encoder, inputs, prompts)
    assert (ours - reference).abs().max() < 1e-10
    assert (ours - upstream(encoder, inputs)).abs().max() > 1e-3
    for left, right in zip(
        gradients(encoder, prompts, ours), gradients(encoder, prompts, reference), strict=True
    ):
        assert (left - right).abs().max() < 1e-10 * (1 + right.abs().max())


def test_the_variants_cover_shifts_padding_and_many_windows():
    shifted = [make(v).backbone.layers[0].blocks[1] for v in VARIANTS]
    assert all(any(block.shift_size) for block in shifted)
    assert sum(block.input_resolution[0] % block.window_size[0] > 0 for block in shifted) >= 4
    assert sum(block.attn_mask is None for block in shifted) == 1  # dynamic


def test_row_does_not_depend_on_its_batch_mates():
    # Windows are ordered (B, W); tiling prompts (W, B) would mix images (trap of public code).
    encoder = make("window 4, padded")
    inputs, prompts = pixels(encoder), [rows.detach() for rows in prompts_for(encoder)]
    together = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
    for row in range(3):
        alone = encoder.encode(
            {"pixels": inputs["pixels"][row : row + 1]},
            lambda layer, state, row=row: prompts[layer][row : row + 1],
        ).pooled
        assert (alone[0] - together[row]).abs().max() < 1e-12
    changed = [torch.cat([rows[:1], torch.randn_like(rows[1:])]) for rows in prompts]
    after = encoder.encode(inputs, lambda layer, state: changed[layer]).pooled
    assert torch.equal(after[0], together[0])
    assert not torch.allclose(after[1:], together[1:])


def test_no_rows_equal_no_prompts():
    encoder = make()
    inputs = pixels(encoder)
    empty = [torch.zeros(3, 0, width, dtype=torch.float64) for width in encoder.layer_widths]
    ours = encoder.encode(inputs, lambda layer, state: empty[layer]).pooled
    assert torch.equal(ours, encoder.encode(inputs).pooled)


def test_a_layers_state_is_what_its_block_gets():
    encoder, seen = make(), []
    encoder.encode(pixels(encoder), lambda layer, state: seen.append(state.tokens.shape))
    assert seen == [(3, 14, 14, 16)] * 2 + [(3, 7, 7, 32)] * 2
    assert encoder.layer_widths == (16, 16, 32, 32)


def test_dropout_and_stochastic_depth_follow_upstream_in_training():
    encoder = make(attn_drop_rate=0.2, proj_drop_rate=0.2, drop_path_rate=0.2).train()
    inputs, prompts = pixels(encoder), prompts_for(encoder)
    torch.manual_seed(3)
    ours = encoder.encode(inputs).pooled
    torch.manual_seed(3)
    assert torch.equal(ours, upstream(encoder, inputs))
    runs = [encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled for _ in range(2)]
    assert not torch.equal(*runs)


def test_checkpointing_leaves_gradients_identical():
    encoder, found = make("window 4, padded", drop_path_rate=0.3).train(), []
    inputs, prompts = pixels(encoder), prompts_for(encoder)
    for encoder.gradient_checkpointing in (False, True):
        torch.manual_seed(4)
        pooled = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
        found.append(gradients(encoder, prompts, pooled))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("variant", ["window 4, padded", "dynamic"])
def test_encode_compiles_as_one_graph(variant):
    encoder = make(variant)
    inputs, prompts = pixels(encoder), [rows.detach() for rows in prompts_for(encoder)]

    def run(inputs, prompts):
        return encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert (compiled(inputs, prompts) - run(inputs, prompts)).abs().max() < 1e-12


def test_dynamic_sizes_take_other_images():
    encoder = make("dynamic")
    inputs, prompts = pixels(encoder, size=(72, 44)), prompts_for(encoder, batch=3)
    assert (encoder.encode(inputs).pooled - upstream(encoder, inputs)).abs().max() < 1e-12
    ours = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
    assert (ours - brute_force(encoder, inputs, prompts)).abs().max() < 1e-10
    with pytest.raises(EncoderError, match=r"\(B, 3, 4 \* n, 4 \* n\), given \(3, 3, 30, 30\)"):
        encoder.encode(pixels(encoder, size=(30, 30)))


@pytest.mark.parametrize("weights", ["pretrained", "random", "no/such/file"])
def test_meta_builds_swin_base_without_weights(weights):
    with torch.device("meta"):
        encoder = TimmSwin("swin_base_patch4_window7_224", weights)
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert encoder.layer_widths == (128,) * 2 + (256,) * 2 + (512,) * 18 + (1024,) * 2
    assert encoder.out_dim == 1024


def test_state_dict_keys_are_upstreams():
    theirs = timm.create_model(SWIN, num_classes=0, **TINY)
    assert make().backbone.state_dict().keys() == theirs.state_dict().keys()


def test_a_local_file_loads_strictly_without_its_head(tmp_path):
    state = timm.create_model(SWIN, num_classes=3, **TINY).state_dict()
    torch.save({"model": state}, tmp_path / "swin.pth")
    own = TimmSwin(SWIN, str(tmp_path / "swin.pth"), options=TINY).backbone.state_dict()
    assert own.keys() == state.keys() - {"head.fc.weight", "head.fc.bias"}
    assert all(torch.equal(own[key], state[key]) for key in own)
    del state["layers.1.downsample.norm.weight"]
    torch.save({"model": state}, tmp_path / "swin.pth")
    with pytest.raises(WeightsError, match=r"Missing key.*layers\.1\.downsample\.norm\.weight"):
        TimmSwin(SWIN, str(tmp_path / "swin.pth"), options=TINY)


def test_image_size_sets_the_input():
    options = {key: value for key, value in TINY.items() if key != "img_size"}
    encoder = TimmSwin(SWIN, "random", image_size=40, options=options)
    row = encoder.preprocessor(train=True)(torch.zeros(50, 60, 3, dtype=torch.uint8))
    assert row["pixels"].shape == (3, 40, 40)
    with pytest.raises(EncoderError, match=r"\(B, 3, 40, 40\), given \(1, 3, 56, 56\)"):
        encoder.encode({"pixels": torch.zeros(1, 3, 56, 56)})


def test_other_families_are_named():
    with pytest.raises(ConfigError, match="a VisionTransformer; use timm_vit"):
        TimmSwin("vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match=r"a SwinTransformerV2; use timm_cnn \(convolutional"):
        TimmSwin("swinv2_tiny_window8_256")
