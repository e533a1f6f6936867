"""The Keyword Transformer (arXiv 2104.00769) in plain PyTorch; it knows nothing of fusionkit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RATE = 16_000  # samples per second
CLIP = 16_000  # samples: one second
WINDOW, HOP, FFT = 480, 160, 512  # samples: 30 ms every 10 ms
FRAMES = (CLIP - WINDOW) // HOP + 1
MELS, LOW, HIGH = 80, 20.0, 7600.0  # Hz
BINS = int(HIGH * FFT / RATE) + 1  # no filter reaches above
COEFFICIENTS = 40
EPS = 1e-6  # of the layer norms
HEAD_DIM = 64


class FrontEnd(nn.Module):
    """MFCC by matrices, which are buffers: published weights bring their own.

    The ones made here are those of the published weights, to the precision of float32.
    """

    window: Tensor
    dft_real: Tensor
    dft_imag: Tensor
    mel: Tensor
    dct: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        frequencies, times = _count(BINS), _count(WINDOW)
        angle = 2 * math.pi / FFT * torch.outer(frequencies, times)
        cosines = torch.cos(math.pi / MELS * torch.outer(_count(COEFFICIENTS), _count(MELS) + 0.5))
        self.register_buffer("window", (math.pi / WINDOW * times).sin().square().float())
        self.register_buffer("dft_real", angle.cos().float())
        self.register_buffer("dft_imag", -angle.sin().float())
        self.register_buffer("mel", mel_filters().float())
        self.register_buffer("dct", math.sqrt(2 / MELS) * cosines.float())
        self.register_buffer("scale", torch.ones(COEFFICIENTS))

    def forward(self, waveform: Tensor, floor: Tensor, subtracted: Tensor) -> Tensor:
        """(B, CLIP) in -1..1 to (B, FRAMES, COEFFICIENTS).

        Args:
            waveform: One second.
            floor: Least energy of a filter.
            subtracted: From each coefficient, before it is scaled.
        """
        frames = waveform.unfold(1, WINDOW, HOP) * self.window
        real, imag = frames @ self.dft_real.T, frames @ self.dft_imag.T
        energy = (real.square() + imag.square()).sqrt() @ self.mel.T
        return (torch.maximum(energy, floor).log() @ self.dct.T - subtracted) * self.scale


def mel_filters() -> Tensor:
    """(MELS, BINS): triangles on the HTK mel scale."""
    top, bottom = (1127 * math.log1p(hertz / 700) for hertz in (HIGH, LOW))
    edges = bottom + (top - bottom) / (MELS + 1) * _count(MELS + 2)
    at = 1127 * torch.log1p(RATE / FFT / 700 * _count(BINS))
    rising = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


def _count(numbers: int) -> Tensor:
    return torch.arange(numbers, dtype=torch.float64)


class Block(nn.Module):
    """A post-norm layer, its weights named as in ``nn.TransformerEncoderLayer``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, dim // HEAD_DIM, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, EPS), nn.LayerNorm(dim, EPS)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Tokens (B, L, D) that attend to ``seen`` (B, S, D), which usually is ``x``."""
        attended, _ = self.self_attn(x, seen, seen, need_weights=False)
        x = self.norm1(x + attended)
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x), approximate="tanh")))


class KeywordTransformer(nn.Module):
    """Frames of MFCC as tokens behind a class token; the head of 12 words is left out.

    Args:
        dim: Width, a multiple of 64: 64, 128 and 192 in KWT-1, 2 and 3.
        depth: Number of layers.
    """

    meta: Tensor

    def __init__(self, dim: int = 64, depth: int = 12) -> None:
        super().__init__()
        self.frontend = FrontEnd()
        # Floor of the energy, what is subtracted from the MFCC, epsilon of the norms.
        self.register_buffer("meta", torch.tensor([1e-12, 0.0, EPS]))
        self.patch_embed = nn.Linear(COEFFICIENTS, dim)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, FRAMES + 1, dim))
        self.layers = nn.ModuleList(Block(dim) for _ in range(depth))

    def embed(self, waveform: Tensor) -> Tensor:
        """(B, CLIP) to (B, 1 + FRAMES, dim)."""
        # Half precision would blur the spectrum, whatever is right for the layers.
        with torch.autocast(waveform.device.type, enabled=False):
            mfcc = self.frontend(waveform, self.meta[0], self.meta[1])
        tokens = self.patch_embed(mfcc)
        first = self.cls_token.expand(len(tokens), -1, -1)
        return torch.cat([first.to(tokens), tokens], dim=1) + self.pos_embed

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, CLIP) to the class token (B, dim)."""
        x = self.embed(waveform)
        for layer in self.layers:
            x = layer(x, x)
        return x[:, 0]
