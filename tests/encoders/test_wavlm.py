"""WavLM, against upstream's own forward."""

from __future__ import annotations

import pytest
import torch
from cases_audio import CLIPS, PRE_NORM, SPEECH, plain_transformer, shaken
from torch import nn
from transformers import AutoConfig, WavLMForCTC

from fusionkit.encoders.wavlm import GatedAttention, WavLM


def make(**more):
    config = {"model_type": "wavlm", **SPEECH, **more}
    return shaken(WavLM(config=config, weights="random")).double().eval()


def batch(encoder):
    preprocessor = encoder.preprocessor(train=False)
    inputs = preprocessor.collate([preprocessor(clip) for clip in CLIPS])
    return {**inputs, "waveform": inputs["waveform"].double()}


@pytest.fixture(params=[{}, PRE_NORM], ids=["group_norm", "pre_norm"])
def encoder(request):
    return make(**request.param)


def test_equals_upstream_under_padding_where_upstream_masks_it():
    encoder = make(**PRE_NORM)
    inputs = batch(encoder)
    mask = torch.arange(inputs["waveform"].shape[1]) < inputs["samples"][:, None]
    expected = plain_transformer(encoder.backbone)(
        inputs["waveform"], attention_mask=mask.long()
    ).last_hidden_state
    features = encoder.encode(inputs)
    keep = features.keep
    torch.testing.assert_close(features.tokens[keep], expected[keep], rtol=0, atol=1e-12)


def test_gradients_of_all_weights_equal_upstreams(encoder):
    waveform = torch.randn(2, 3000, dtype=torch.float64)
    plain = plain_transformer(encoder.backbone)
    plain(waveform).last_hidden_state.square().sum().backward()
    found = encoder.encode({"waveform": waveform, "samples": torch.tensor([3000, 3000])})
    found.tokens.square().sum().backward()
    expected = dict(plain.named_parameters())
    assert "encoder.layers.0.attention.rel_attn_embed.weight" in expected
    for name, weight in encoder.backbone.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name].grad, rtol=1e-8, atol=1e-8)


def test_biases_are_made_once_and_kept_once(encoder):
    state = encoder.embed(batch(encoder))
    assert state.cache is None
    first = encoder.run_layer(0, state, None)
    second = encoder.run_layer(1, first, torch.randn(4, 3, 16, dtype=torch.float64))
    length = state.tokens.shape[1]
    assert first.cache.shape == (2, length, length)
    assert second.cache is first.cache


def test_replaced_projections_are_used(encoder):
    """Upstream reads their weights, so that LoRA in a module around them would change nothing."""
    inputs = batch(encoder)
    prompts = [torch.randn(4, 3, 16, dtype=torch.float64) for _ in range(2)]
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        before = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
        attention = encoder.layers[1].attention

        class Around(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner
                self.update = nn.Linear(16, 16).double()

            def forward(self, tokens):
                return self.inner(tokens) + self.update(tokens)

        setattr(attention, name, Around(getattr(attention, name)))
        after = encoder.encode(inputs, lambda layer, state: prompts[layer]).pooled
        assert not torch.allclose(after, before), name


def test_attention_dropout_acts_in_training_only():
    encoder = make(attention_dropout=0.5, hidden_dropout=0.0, activation_dropout=0.0)
    inputs = batch(encoder)
    assert torch.equal(encoder.encode(inputs).pooled, encoder.encode(inputs).pooled)
    encoder.train()
    assert not torch.equal(encoder.encode(inputs).pooled, encoder.encode(inputs).pooled)


def test_neither_layerdrop_nor_spec_augment_in_training():
    names = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout")
    encoder = make(**dict.fromkeys(names, 0.0), layerdrop=1.0, mask_time_prob=1.0)
    inputs = batch(encoder)
    expected = encoder.encode(inputs).pooled
    assert torch.equal(encoder.train().encode(inputs).pooled, expected)


def test_checkpoint_with_a_head_loads(tmp_path):
    upstream = WavLMForCTC(AutoConfig.for_model("wavlm", **SPEECH)).eval()
    upstream.save_pretrained(tmp_path)
    encoder = WavLM(str(tmp_path)).eval()
    assert all(type(block.attention) is GatedAttention for block in encoder.layers)
    assert set(encoder.backbone.state_dict()) == set(upstream.wavlm.state_dict())
    waveform = torch.randn(1, 3000)
    found = encoder.encode({"waveform": waveform, "samples": torch.tensor([3000])}).tokens
    expected = upstream.wavlm(waveform).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_base_models_hear_the_sound_as_it_is():
    with torch.device("meta"):
        assert not WavLM("microsoft/wavlm-base", weights="random").preprocessor(False).normalize
        assert WavLM("microsoft/wavlm-large", weights="random").preprocessor(False).normalize
