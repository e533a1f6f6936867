"""What wav2vec 2.0, HuBERT and WavLM share, in transformers and in torchaudio."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.encoders.audio import waveforms_of
from fusionkit.encoders.base import Features, Inputs, MainEncoder, Modality, TokenState
from fusionkit.encoders.sequences import known_real, masked_mean


class SpeechEncoder(MainEncoder):
    """Convolutions make frames of a waveform, a Transformer reads them (arXiv 2006.11477).

    ``pooled`` is the mean of the real frames. A clip gives the same in any batch, namely what
    upstream gives for it alone: padded frames are masked, and the group norm of the base models,
    which upstream takes over padding too, is taken over the real frames.

    LayerDrop and SpecAugment are left out, in fine-tuning as well: a dropped layer would leave
    its prompts unused, and augmentation is a matter of the data. Dropout acts as upstream's.
    """

    modality: ClassVar[Modality] = "audio"

    backbone: Any  # its parts differ from library to library

    @property
    @abstractmethod
    def transformer(self) -> Any:
        """Upstream's module that holds the layers, positions and last norm."""

    @property
    @abstractmethod
    def pre_norm(self) -> bool:
        """Whether layers norm their input instead of their output."""

    @abstractmethod
    def convolve(self, block: nn.Module, x: Tensor) -> Tensor:
        """A block of upstream's feature extractor on (B, C, T)."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """(B, T, C) of the feature extractor to the (B, T, D) of the layers."""

    @abstractmethod
    def layer_cache(self, tokens: Tensor, keep: Tensor) -> Any:
        """What layers are called with beside their tokens."""

    @property
    def out_dim(self) -> int:
        return int(self.transformer.layer_norm.normalized_shape[0])

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.transformer.layers)

    @property
    def layer_widths(self) -> tuple[int, ...]:
        return (self.out_dim,) * len(self.layers)

    @property
    def shortest(self) -> int:
        """How many samples make one frame."""
        samples = 1
        for block in reversed(self.backbone.feature_extractor.conv_layers):
            samples = (samples - 1) * block.conv.stride[0] + block.conv.kernel_size[0]
        return samples

    def embed(self, inputs: Inputs) -> TokenState:
        waveform, samples = waveforms_of(inputs, type(self).__name__, self.shortest)
        x, length = waveform.unsqueeze(1), samples.clamp(min=self.shortest)
        for block in self.backbone.feature_extractor.conv_layers:
            length = (length - block.conv.kernel_size[0]) // block.conv.stride[0] + 1
            norm = getattr(block, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                # Upstream's block, but for the mask.
                activation = getattr(block, "activation", F.gelu)
                x = activation(masked_group_norm(norm, block.conv(x), length))
            else:
                x = self.convolve(block, x)
        tokens = self.project(x.transpose(1, 2))
        keep = torch.arange(tokens.shape[1], device=tokens.device) < length.unsqueeze(1)
        # The convolution of the positions reaches into padding.
        tokens = tokens.masked_fill(~keep.unsqueeze(-1), 0.0)
        tokens = tokens + self.transformer.pos_conv_embed(tokens)
        if not self.pre_norm:
            tokens = self.transformer.layer_norm(tokens)
        tokens = self.transformer.dropout(tokens)
        return TokenState(tokens, keep, cache=self.layer_cache(tokens, keep))

    def resume(self, layer: int, tokens: Tensor, keep: Tensor | None) -> TokenState:
        assert keep is not None
        return TokenState(tokens, keep, cache=self.layer_cache(tokens, keep))

    def readout(self, state: TokenState) -> Features:
        tokens, keep = state.tokens, state.keep
        assert keep is not None
        if self.pre_norm:
            tokens = self.transformer.layer_norm(tokens)
        return Features(masked_mean(tokens, keep), tokens, keep)


def masked_group_norm(norm: nn.GroupNorm, x: Tensor, length: Tensor) -> Tensor:
    """``norm``, of one channel a group, over the real frames of each row.

    Args:
        norm: Upstream's, over time.
        x: (B, C, T).
        length: (B,), how many of a row's frames are real, at least 1.

    Returns:
        (B, C, T); for a row without padding, ``norm(x)``. Padded frames have no meaning.
    """
    keep = torch.arange(x.shape[-1], device=x.device) < length[:, None]
    if known_real(keep):
        return norm(x)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    real, count = keep.to(wide.dtype).unsqueeze(-1), length[:, None, None]
    with torch.autocast(x.device.type, enabled=False):
        centred = wide - wide @ real / count
        variance = centred.square() @ real / count
    scale = torch.rsqrt(variance + norm.eps) * norm.weight[:, None]
    return torch.addcmul(norm.bias[:, None], centred, scale).to(norm.weight.dtype)
