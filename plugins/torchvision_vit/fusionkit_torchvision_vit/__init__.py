"""Vision Transformers of torchvision as encoders of fusionkit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer, get_weight

from fusionkit.encoders.base import Features, Inputs, Modality, TokenState
from fusionkit.encoders.images import ImagePreprocessor, pixels_of
from fusionkit.encoders.stack import BlockStack
from fusionkit.encoders.weights import building_on_meta
from fusionkit.errors import WeightsError

VIT_B_16 = {"image_size": 224, "patch_size": 16, "num_layers": 12, "num_heads": 12}
VIT_B_16 |= {"hidden_dim": 768, "mlp_dim": 3072}
STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as all of torchvision


class TorchvisionViT(BlockStack):
    modality: ClassVar[Modality] = "image"
    prefix = 1  # the class token

    def __init__(self, weights: str = "pretrained", options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.backbone: Any = VisionTransformer(**{**VIT_B_16, **(options or {})})
        self.backbone.heads = nn.Identity()
        self.size = (self.backbone.image_size, self.backbone.image_size)
        if weights != "random" and not building_on_meta():
            load(self.backbone, weights)

    @property
    def out_dim(self) -> int:
        return self.backbone.hidden_dim

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.backbone.encoder.layers)

    def embed(self, inputs: Inputs) -> TokenState:
        patches = self.backbone._process_input(pixels_of(inputs, "TorchvisionViT", 3, self.size))
        first = self.backbone.class_token.expand(len(patches), -1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.backbone.encoder.pos_embedding
        return TokenState(self.backbone.encoder.dropout(tokens))

    def readout(self, state: TokenState) -> Features:
        tokens = self.backbone.encoder.ln(state.tokens)
        return Features(tokens[:, 0], tokens)

    def preprocessor(self, train: bool) -> ImagePreprocessor:
        return ImagePreprocessor(self.size, *STATISTICS, interpolation="bilinear", crop_pct=0.875)


def load(backbone: nn.Module, weights: str) -> None:
    """Load weights of torchvision, or of a file, without the classifier."""
    name = "ViT_B_16_Weights.DEFAULT" if weights == "pretrained" else weights
    try:
        if Path(weights).is_file():
            state: dict[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
        else:
            state = get_weight(name).get_state_dict(progress=False, check_hash=True)
        backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("heads.")})
    except (OSError, RuntimeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"The weights {name!r} could not be loaded: {error} Give one of torchvision's "
            f"(`ViT_B_16_Weights.IMAGENET1K_V1`) with its `options`, a file, or `random`."
        ) from error
