"""The Keyword Transformer behind fusionkit's interface."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.encoders.audio import AudioPreprocessor, waveforms_of
from fusionkit.encoders.base import Features, Inputs, MainEncoder, Modality, TokenState
from fusionkit.encoders.weights import building_on_meta, load_file
from fusionkit.errors import ConfigError, EncoderError
from fusionkit_kwt.model import CLIP, HEAD_DIM, RATE, KeywordTransformer

HEAD = ("head.weight", "head.bias")  # of the 12 words that published weights tell apart


class KWT(MainEncoder):
    """Keyword Transformer (arXiv 2104.00769): one second of sound, the class token its feature.

    Shorter clips end in silence, of longer ones the first second is heard, as in Speech Commands.
    """

    modality: ClassVar[Modality] = "audio"

    backbone: KeywordTransformer

    def __init__(self, weights: str = "random", dim: int = 64, depth: int = 12) -> None:
        """Build the encoder.

        Args:
            weights: ``random``, or a file of weights; a head of words in it is left out.
            dim: Width, a multiple of 64: 64, 128 and 192 in KWT-1, 2 and 3.
            depth: Number of layers.

        Raises:
            ConfigError: A size that the model cannot have.
            WeightsError: The file cannot be read, or it is of another size.
        """
        super().__init__()
        if dim < 1 or dim % HEAD_DIM or depth < 1:
            raise ConfigError(
                f"kwt: dim is a multiple of {HEAD_DIM} and depth at least 1, given {dim} and "
                f"{depth}."
            )
        self.backbone = KeywordTransformer(dim, depth)
        if weights != "random" and not building_on_meta():
            load_file(self.backbone, weights, without=HEAD)

    @property
    def out_dim(self) -> int:
        return self.backbone.patch_embed.out_features

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.backbone.layers)

    @property
    def takes_tokens(self) -> bool:
        return True

    @property
    def takes_queries(self) -> bool:
        return True

    @property
    def layer_widths(self) -> tuple[int, ...]:
        return (self.out_dim,) * len(self.layers)

    def embed(self, inputs: Inputs) -> TokenState:
        waveform, _ = waveforms_of(inputs, "kwt", 1)
        if waveform.shape[1] > CLIP:
            raise EncoderError(
                f"kwt hears {CLIP} samples, given {waveform.shape[1]}; preprocess with its "
                f"preprocessor(), which cuts them."
            )
        return TokenState(self.backbone.embed(F.pad(waveform, (0, CLIP - waveform.shape[1]))))

    def run_layer(self, layer: int, state: TokenState, prompts: Tensor | None) -> TokenState:
        x = state.tokens
        seen = x if prompts is None else torch.cat([prompts.to(x), x], dim=1)
        return state.with_tokens(self.layers[layer](x, seen))

    def readout(self, state: TokenState) -> Features:
        return Features(state.tokens[:, 0], state.tokens)

    def preprocessor(self, train: bool) -> AudioPreprocessor:
        return AudioPreprocessor(RATE, shortest=1, max_seconds=CLIP / RATE, normalize=False)
