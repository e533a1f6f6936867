"""Convolutional nets of timm as complement."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from fusionkit.encoders.augment import Augment, check_augment
from fusionkit.encoders.base import ComplementEncoder, Features, Inputs, Modality
from fusionkit.encoders.images import ImagePreprocessor, Whole, pixels_of
from fusionkit.encoders.timm_common import build_backbone, channels_of


class TimmCNN(ComplementEncoder):
    """Any convolutional net of timm: ResNet, EfficientNet, MobileNet, ConvNeXt, ...

    Weights and pixels lie in memory channels last, for which convolutions have faster kernels.
    """

    modality: ClassVar[Modality] = "image"
    backbone: Any  # timm's models share methods, not a class

    def __init__(
        self,
        model: str = "resnet50",
        weights: str = "pretrained",
        image_size: int | None = None,
        augment: Augment = None,
        whole: Whole = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Build the model.

        Args:
            model: A name of timm (``mobilenetv2_100``), ``hf-hub:OWNER/NAME``, a folder in timm's
                layout, or ``fusionkit/NAME``.
            weights: ``pretrained``, ``random``, or a local file or folder.
            image_size: Side that images are scaled to; None for the model's own.
            augment: For training: ``none``, ``crop`` (and flip), ``randaugment`` (and crop), or a
                list of transforms of torchvision; None for what the data set recommends.
            whole: All of an image, not the model's crop of it, in tests and where ``augment`` does
                not crop: ``squash`` stretches it, ``border`` puts bars beside it.
            options: Further keyword arguments of ``timm.create_model``, such as ``pad_type: same``.
        """
        super().__init__()
        # Not image_size: a convolutional net takes any size and most have no such argument.
        backbone = build_backbone("timm_cnn", model, weights, options, image_size=None)
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.image_size = image_size
        self.channels = channels_of(self.backbone, options)
        self.augment = check_augment(augment)
        self.whole = whole

    @property
    def out_dim(self) -> int:
        # Some nets widen after pooling: MobileNetV3 has 960 features and a head of 1280.
        return int(self.backbone.head_hidden_size)

    def encode(self, inputs: Inputs) -> Features:
        pixels = pixels_of(inputs, "TimmCNN", self.channels)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        grid = self.backbone.forward_features(pixels)
        pooled = self.backbone.forward_head(grid, pre_logits=True)
        same_width = grid.ndim == 4 and grid.shape[1] == self.out_dim
        return Features(pooled, grid.flatten(2).transpose(1, 2) if same_width else None)

    def preprocessor(self, train: bool) -> ImagePreprocessor:
        augment = self.augment if train else None
        side = self.image_size
        size = (side, side) if side else tuple(self.backbone.pretrained_cfg["input_size"][1:])
        return ImagePreprocessor.of_backbone(
            self.backbone, self.channels, size, augment, self.whole
        )
