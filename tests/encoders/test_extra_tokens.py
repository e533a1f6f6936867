"""Further tokens and queries against upstream's own forward; what all share is in the contract."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from cases_causal import EXACT, NETS
from cases_clip import OPEN_TEXT, TEXT
from test_bert import OTHER, TINY
from test_contract import CASES, EACH, _plugins_importable, tokenizer  # noqa: F401  # fixtures
from torch.nn import functional as F

from fusionkit.encoders import bert as both_ways, gpt2 as left_to_right
from fusionkit.encoders.attention import hide_tokens, run_concatenated
from fusionkit.encoders.base import ExtraTokens, MainEncoder
from fusionkit.encoders.bert import Bert
from fusionkit.encoders.clip_hf import ClipText
from fusionkit.encoders.clip_open import OpenClipText
from fusionkit.encoders.gpt2 import CausalLM
from fusionkit.errors import EncoderError

KEEP = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 2 + [0] * 7], dtype=torch.bool)
N = 3  # further tokens
VISIBLE = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)
BLIND = torch.tensor([0, 1, 0], dtype=torch.bool)
SAME = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random(encoder):
    for parameter in encoder.parameters():  # upstream's zero biases would hide mistakes
        torch.nn.init.normal_(parameter, std=0.4)
    return encoder.eval()


def make_bert(kind):
    config = {"model_type": kind, **OTHER.get(kind, TINY)}
    if "embedding_size" in config:
        config["embedding_size"] = config["hidden_size"]
    return random(Bert(config=config, weights="random"))


def make_causal(kind):
    config = {"model_type": kind, "vocab_size": 50, **NETS[kind]}
    return random(CausalLM(config=config, weights="random"))


def make_clip():
    config = {**TEXT, "vocab_size": 50, "eos_token_id": 49}
    return random(ClipText(config=config, weights="random"))


def make_open_clip():
    config = {"embed_dim": 24, "text_cfg": {**OPEN_TEXT, "vocab_size": 50}}
    return random(OpenClipText(config=config, weights="random"))


FAMILIES = {
    **{f"bert {kind}": partial(make_bert, kind) for kind in both_ways.LAYOUTS},
    **{f"gpt2 {kind}": partial(make_causal, kind) for kind in left_to_right.LAYOUTS},
}
TOWERS = {"clip_text": make_clip, "open_clip_text": make_open_clip}


def batch():
    """Texts that start with 2 and end with 49, the highest id."""
    ids = torch.randint(10, 49, KEEP.shape).masked_fill(~KEEP, 0)
    ids[:, 0] = 2
    ids[torch.arange(3), KEEP.sum(1) - 1] = 49
    return {"input_ids": ids, "attention_mask": KEEP}


def rows_of(encoder):
    return torch.randn(len(KEEP), N, encoder.layer_widths[0])


def upstream(encoder):
    """transformers' own model in its own attention."""
    model = copy.deepcopy(encoder.backbone)
    model.set_attn_implementation("sdpa")
    return model


def insert(tensor, rows, place):
    return torch.cat([tensor[:, :place], rows, tensor[:, place:]], dim=1)


def cut(tensor, place):
    return torch.cat([tensor[:, :place], tensor[:, place + N :]], dim=1)


def by_hand(encoder, place):
    """(B, 1, L, L) bool, from what the families say of themselves; by attention type."""
    keep = insert(KEEP, torch.ones(len(KEEP), N, dtype=torch.bool), place)
    length = keep.shape[1]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    causal = distance >= 0 if encoder.causal else torch.ones(length, length, dtype=torch.bool)
    hidden = torch.ones(length, length, dtype=torch.bool)
    for i in range(N):
        hidden[place + i] = not BLIND[i]
        for j in range(N):
            hidden[place + i, place + j] = VISIBLE[i, j]
    whole = (causal & hidden & keep[:, None])[:, None]
    config = getattr(encoder.backbone, "config", None)
    window = getattr(config, "sliding_window", None)
    if getattr(config, "model_type", "") == "modernbert":
        window = config.local_attention // 2 + 1
    if window is None:
        return whole, whole
    return whole, whole & (distance.abs() < window)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_upstream_given_embeddings(family):
    encoder, inputs = FAMILIES[family](), batch()
    assert encoder.takes_tokens
    rows, place = rows_of(encoder), 0 if encoder.causal else 1
    features, model = encoder.encode(inputs, extra=ExtraTokens(rows)), upstream(encoder)
    words = insert(model.get_input_embeddings()(inputs["input_ids"]), rows, place)
    keep = insert(KEEP, torch.ones(len(KEEP), N, dtype=torch.bool), place)
    given = {"use_cache": False} if encoder.causal else {}
    expected = model(inputs_embeds=words, attention_mask=keep, **given).last_hidden_state
    torch.testing.assert_close(features.tokens[KEEP], cut(expected, place)[KEEP], **SAME)
    assert torch.equal(features.keep, KEEP)
    # Row by row, without mask or padding; some norms and rotations compute in float32.
    exact = not encoder.causal or encoder.backbone.config.model_type in EXACT
    for row, length in enumerate(KEEP.sum(dim=1).tolist()):
        alone = model(inputs_embeds=words[row : row + 1, : length + N], **given).last_hidden_state
        torch.testing.assert_close(
            features.pooled[row],
            cut(alone, place)[0, -1 if encoder.causal else 0],
            rtol=0,
            atol=1e-10 if exact else 1e-6,
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_hides_what_upstream_hides_by_a_mask(family):
    encoder, inputs = FAMILIES[family](), batch()
    rows, place = rows_of(encoder), 0 if encoder.causal else 1
    found = encoder.encode(inputs, extra=ExtraTokens(rows, VISIBLE, BLIND)).tokens
    model = upstream(encoder)
    words = insert(model.get_input_embeddings()(inputs["input_ids"]), rows, place)
    whole, window = by_hand(encoder, place)
    kinds = getattr(model.config, "layer_types", None) or []
    mask = {"full_attention": whole, "sliding_attention": window}
    given = {"use_cache": False} if encoder.causal else {}
    if "opt" in family:
        given["position_ids"] = torch.arange(words.shape[1])[None]
    if len(set(kinds)) < 2:
        mask = window
    expected = model(inputs_embeds=words, attention_mask=mask, **given).last_hidden_state
    torch.testing.assert_close(found[KEEP], cut(expected, place)[KEEP], **SAME)
    open_to_all = encoder.encode(inputs, extra=ExtraTokens(rows)).tokens
    assert not torch.allclose(found[KEEP], open_to_all[KEEP], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", TOWERS)
def test_towers_of_clip_read_them_like_words(family):
    """Upstream's forward of ids that no text has, whose embeddings are the rows: as CoOp does."""
    encoder, inputs = TOWERS[family](), batch()
    rows = rows_of(encoder)
    features = encoder.encode(inputs, extra=ExtraTokens(rows))
    for row, length in enumerate(KEEP.sum(dim=1).tolist()):
        model = copy.deepcopy(encoder.backbone)
        ids = inputs["input_ids"][row, :length]
        ids = torch.cat([ids[:1], torch.arange(4, 4 + N), ids[1:]])[None]
        if family == "clip_text":
            model.set_attn_implementation("sdpa")
            model.get_input_embeddings().weight.data[4 : 4 + N] = rows[row]
            expected = model(input_ids=ids).text_embeds
        else:
            model.token_embedding.weight.data[4 : 4 + N] = rows[row]
            model.output_tokens = False
            expected = model(F.pad(ids, (0, model.context_length - ids.shape[1])))
        torch.testing.assert_close(features.pooled[row], expected[0], **SAME)
    assert torch.equal(features.keep, KEEP)
    others = encoder.encode(inputs, extra=ExtraTokens(rows_of(encoder))).pooled
    assert (features.pooled - others).abs().amax(dim=1).min() > 1e-6


@pytest.mark.parametrize("family", TOWERS)
def test_towers_of_clip_hide_by_the_mask(family):
    encoder, inputs = TOWERS[family](), batch()
    rows = rows_of(encoder)
    features = encoder.encode(inputs, extra=ExtraTokens(rows, VISIBLE, BLIND))
    visible, _ = by_hand(encoder, 1)
    additive = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
    if family == "clip_text":
        tower = upstream(encoder).text_model
        words = tower.embeddings.token_embedding(inputs["input_ids"])
        x = insert(words, rows, 1) + tower.embeddings.position_embedding.weight[: 9 + N]
        for block in tower.encoder.layers:
            x = block(x, additive)
        x = encoder.backbone.text_projection(tower.final_layer_norm(x))
    else:
        tower = encoder.backbone
        words = tower.token_embedding(inputs["input_ids"])
        x = insert(words, rows, 1) + tower.positional_embedding[: 9 + N]
        heads = OPEN_TEXT["heads"]
        for block in tower.transformer.resblocks:
            x = block(x, attn_mask=additive.repeat_interleave(heads, dim=1).flatten(0, 1))
        x = tower.ln_final(x) @ tower.text_projection
    torch.testing.assert_close(features.tokens[KEEP], cut(x, 1)[KEEP], **SAME)
    open_to_all = encoder.encode(inputs, extra=ExtraTokens(rows)).pooled
    assert not torch.allclose(features.pooled, open_to_all, rtol=0, atol=1e-6)


# ---- queries -------------------------------------------------------------------------------------

BLOCKS = ("timm_vit", "torchvision_vit")
OTHERS = ("ast", "clip_image", "clip_text", "hf_vit", "kwt", "open_clip_image", *BLOCKS)
OPEN = [each for each in EACH if each[0] in OTHERS and each != ("hf_vit", "dinov3")]


def upstream_block(encoder, name, layer):
    """(x, mask) to what upstream's own layer makes of it; mask bool, True = visible, or None."""
    if name in BLOCKS:
        return lambda x, mask: encoder.layers[layer](x)
    if name == "open_clip_image":
        return lambda x, mask: encoder.layers[layer](x, attn_mask=None)
    if name == "kwt":
        from fusionkit_kwt.case import plain_layer

        return lambda x, mask: plain_layer(encoder.layers[layer])(x)
    path = next(
        path for path, module in encoder.backbone.named_modules() if module is encoder.layers[layer]
    )
    block = upstream(encoder).get_submodule(path)
    if name in ("hf_vit", "ast"):
        return lambda x, mask: block(x)
    return lambda x, mask: block(x, attention_mask=mask)


def assert_queries_are_concatenation(encoder, name, inputs):
    assert encoder.takes_queries
    state = encoder.embed(inputs)
    for layer, width in enumerate(encoder.layer_widths):
        size = len(state.tokens)
        prompts, rows = torch.randn(size, 2, width), torch.randn(size, N, width)
        found = encoder.query(layer, state, rows, prompts)
        x = torch.cat([state.tokens, prompts, rows], dim=1)
        length = x.shape[1]
        visible = None
        if state.keep is not None:
            visible = torch.ones(size, 1, length, length, dtype=torch.bool)
            visible[..., : state.keep.shape[1]] &= state.keep[:, None, None]
            if encoder.causal:
                visible = visible.tril()
        expected = upstream_block(encoder, name, layer)(x, visible)[:, -N:]
        torch.testing.assert_close(found, expected, **SAME)
        state = encoder.run_layer(layer, state, None)


@pytest.mark.parametrize(("name", "variant"), OPEN)
def test_queries_of_encoders_equal_concatenation(name, variant, tokenizer):  # noqa: F811
    case = CASES[name][variant](tokenizer)
    encoder = case.make().double().eval()
    preprocessor = encoder.preprocessor(train=False)
    inputs = preprocessor.collate([preprocessor(sample) for sample in case.samples])
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    assert_queries_are_concatenation(encoder, name, inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_of_language_models_equal_concatenation(family):
    encoder = FAMILIES[family]()
    learned_positions = not encoder.causal and "modernbert" not in family
    assert encoder.takes_queries == (learned_positions or family in ("gpt2 gpt2", "gpt2 opt"))
    if encoder.takes_queries:
        assert_queries_are_concatenation(encoder, "bert", batch())


def test_fewer_queries_than_prefix_tokens_come_back_as_they_are_many():
    """The default of blocks that take prompts by concatenation, behind five class tokens."""
    block = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    seen, rows = torch.randn(2, 6, 8), torch.randn(2, 3, 8)
    found = run_concatenated(block, rows, seen, prefix=5)
    expected = block(torch.cat([seen, rows], dim=1))[:, -3:]
    torch.testing.assert_close(found, expected, **SAME)


# ---- who takes what, and how the rest refuse -----------------------------------------------------


def test_who_takes_what(tokenizer):  # noqa: F811
    tokens, queries, causal, neither = set(), set(), set(), set()
    for name, variant in EACH:
        encoder = CASES[name][variant](tokenizer).make()
        if not isinstance(encoder, MainEncoder):
            continue
        label = f"{name} {variant}" if name in ("gpt2", "hf_vit") else name
        for group, belongs in (
            (tokens, encoder.takes_tokens),
            (queries, encoder.takes_queries),
            (causal, encoder.causal),
            (neither, not encoder.takes_tokens and not encoder.takes_queries),
        ):
            if belongs:
                group.add(label)
    language_models = {f"gpt2 {kind}" for kind in left_to_right.LAYOUTS}
    images = {f"hf_vit {variant}" for variant in CASES["hf_vit"]} - {"hf_vit dinov3"}
    images |= {"timm_vit", "clip_image", "open_clip_image", "torchvision_vit"}
    texts = {"bert", "minilm", "clip_text", "open_clip_text"}
    assert tokens == {*images, *texts, *language_models, "ast", "kwt"}
    rotary = language_models - {"gpt2 gpt2", "gpt2 opt"}
    assert queries == tokens - {"open_clip_text"} - rotary
    assert causal == {*language_models, "clip_text", "open_clip_text"}
    speech = {"wav2vec2", "hubert", "wavlm", "torchaudio_bundle"}
    assert neither == {*speech, "timm_swin", "hf_vit dinov3"}


@pytest.mark.parametrize("kind", ["albert", "electra"])
def test_narrow_word_embeddings_take_none(kind):
    assert OTHER[kind]["embedding_size"] < OTHER[kind]["hidden_size"]
    encoder = Bert(config={"model_type": kind, **OTHER[kind]}, weights="random")
    assert not encoder.takes_tokens
    with pytest.raises(EncoderError, match=r"^Bert takes no further tokens in its input"):
        encoder.encode(batch(), extra=ExtraTokens(rows_of(encoder)))
    encoder.eval()
    assert_queries_are_concatenation(encoder, "bert", batch())


@pytest.mark.parametrize("family", ["bert bert", "gpt2 gpt2", *TOWERS])
def test_more_than_there_are_positions_for_say_how_to_make_room(family):
    encoder = {**FAMILIES, **TOWERS}[family]()
    room = encoder.positions - KEEP.shape[1]
    width = encoder.layer_widths[0]
    encoder.encode(batch(), extra=ExtraTokens(torch.zeros(3, room, width)))
    message = (
        rf"^Texts of 9 tokens and {room + 1} further ones, but the model has {encoder.positions} "
        rf"positions; set the encoder's max_length to 8, so that texts are cut\.$"
    )
    with pytest.raises(EncoderError, match=message):
        encoder.encode(batch(), extra=ExtraTokens(torch.zeros(3, room + 1, width)))


@pytest.mark.parametrize("rows", [(3, N, 17), (2, N, 16), (N, 16)])
def test_wrong_shapes_are_refused_with_both(rows):
    message = rf"^Bert takes further tokens of shape \(3, n, 16\), given \({rows[0]}, .*\)\.$"
    with pytest.raises(EncoderError, match=message):
        make_bert("bert").encode(batch(), extra=ExtraTokens(torch.zeros(rows)))


@pytest.mark.parametrize("hiding", [{"visible": VISIBLE}, {"blind": BLIND}])
def test_encoders_without_masks_refuse_to_hide(hiding, tokenizer):  # noqa: F811
    case = CASES["timm_vit"]["plain"](tokenizer)
    encoder = case.make()
    with pytest.raises(EncoderError, match=r"^TimmViT cannot hide tokens from each other, as Ex"):
        encoder.encode(
            {"pixels": torch.zeros(3, 3, 32, 32)},
            extra=ExtraTokens(torch.zeros(3, N, 32), **hiding),
        )


# ---- the rest of the machinery with them ---------------------------------------------------------

MADE = {**{name: FAMILIES[name] for name in ("bert bert", "gpt2 gpt2", "gpt2 mistral")}, **TOWERS}


@pytest.mark.parametrize("family", MADE)
def test_recomputed_layers_give_the_same_gradients(family):
    encoder, inputs = MADE[family](), batch()
    rows = rows_of(encoder)
    found = []
    for recompute in (False, True):
        encoder.gradient_checkpointing = recompute
        leaf = rows.clone().requires_grad_()
        encoder.encode(inputs, extra=ExtraTokens(leaf, VISIBLE)).pooled.square().sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found, **SAME)
    assert found[0].abs().sum() > 0


@pytest.mark.parametrize("family", MADE)
def test_half_precision_weights_take_rows_in_single(family):
    encoder = MADE[family]().bfloat16()
    extra = ExtraTokens(rows_of(encoder).float(), VISIBLE, BLIND)
    pooled = encoder.encode(batch(), extra=extra).pooled
    assert pooled.dtype == torch.bfloat16
    assert torch.isfinite(pooled).all()


@pytest.mark.parametrize("family", ["bert bert", "gpt2 gpt2", "clip_text"])
def test_compiles_as_one_graph(family):
    encoder, inputs = MADE[family](), batch()
    rows = rows_of(encoder)

    def run(rows):
        return encoder.encode(inputs, extra=ExtraTokens(rows, VISIBLE, BLIND)).pooled

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(rows), run(rows), **SAME)
    torch._dynamo.reset()


def test_a_token_that_is_hidden_from_all_still_sees_itself():
    nothing, none = torch.zeros(2, 2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    mask = hide_tokens(None, nothing, 1, 4, causal=False, blind=none)
    assert mask[0, 0].int().tolist() == [[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]]
    future = torch.full((4, 4), -torch.inf).triu(1)
    assert hide_tokens(future, None, 1, 4, causal=True) is future
    mask = hide_tokens(future, nothing, 1, 4, causal=True, blind=none)
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]]
    assert mask.softmax(-1).gt(0).int().tolist() == expected
