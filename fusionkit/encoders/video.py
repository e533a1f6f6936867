"""Frames of a video through any image encoder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fusionkit import registry
from fusionkit.encoders.base import (
    ComplementEncoder,
    Features,
    Inputs,
    Modality,
    Preprocessor,
)
from fusionkit.encoders.sequences import masked_mean, pad
from fusionkit.encoders.videos import read_frames
from fusionkit.errors import ConfigError, EncoderError, suggest

Rows = list[Any]  # what the image encoder's preprocessor makes of each frame


class Video(ComplementEncoder):
    """The mean over time of what an image encoder sees in evenly spaced frames.

    The tokens are the frames' features. The image encoder is the backbone, whole, so the names of
    its weights begin with ``backbone.backbone``.
    """

    modality: ClassVar[Modality] = "video"
    nested: ClassVar[Mapping[str, registry.Kind]] = {"encoder": "complement_encoder"}

    backbone: ComplementEncoder

    def __init__(
        self,
        encoder: str | dict[str, Any] = "timm_vit",
        frames: int = 8,  # as TimeSformer, arXiv 2102.05095
    ) -> None:
        """Build the image encoder.

        Args:
            encoder: The name of an image encoder, or {name: ..., model: ..., ...} with its
                arguments.
            frames: Frames per video, evenly spaced; of a shorter one all are taken.

        Raises:
            ConfigError: The encoder is unknown, no image encoder, or takes other arguments.
        """
        super().__init__()
        if frames < 1:
            raise ConfigError(f"video: frames is at least 1, given {frames}.")
        self.frames = frames
        self.backbone = _build(encoder)

    @property
    def out_dim(self) -> int:
        return self.backbone.out_dim

    def encode(self, inputs: Inputs) -> Features:
        if "keep_frames" not in inputs:
            raise EncoderError(
                f"video takes inputs['keep_frames'], given {sorted(inputs)}; collate them with its "
                f"preprocessor()."
            )
        keep = inputs["keep_frames"]
        real = {name: tensor[keep] for name, tensor in inputs.items() if name != "keep_frames"}
        seen = self.backbone(real).pooled
        tokens = seen.new_zeros(*keep.shape, self.out_dim).masked_scatter(keep.unsqueeze(-1), seen)
        return Features(masked_mean(tokens, keep), tokens, keep)

    def preprocessor(self, train: bool) -> VideoPreprocessor:
        augmented = getattr(self.backbone, "augment", True) not in (None, "none")
        return VideoPreprocessor(
            self.backbone.preprocessor(train), self.frames, alike=train and augmented
        )


class VideoPreprocessor:
    """Whatever :func:`~fusionkit.encoders.videos.read_frames` reads, to rows of its frames.

    Args:
        image: Preprocessor of the image encoder.
        frames: How many to take.
        alike: Whether all frames of a video are augmented alike: each is given the same random
            state of torch.
    """

    def __init__(self, image: Preprocessor, frames: int, alike: bool) -> None:
        self.image, self.frames, self.alike = image, frames, alike

    def __call__(self, raw: Any) -> Rows:
        """One video to the rows of its frames.

        Raises:
            DataError: It has no frames, or they cannot be read.
        """
        frames = read_frames(raw, self.frames)
        if not self.alike:
            return [self.image(frame) for frame in frames]
        seed = int(torch.randint(2**63 - 1, ()))
        rows = []
        for frame in frames:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                rows.append(self.image(frame))
        return rows

    def collate(self, rows: Sequence[Rows]) -> dict[str, Tensor]:
        """Rows to the image encoder's inputs, (B, T, ...), and keep_frames (B, T) bool."""
        every = self.image.collate([frame for row in rows for frame in row])
        lengths = [len(row) for row in rows]
        inputs = {name: pad(tensor.split(lengths)) for name, tensor in every.items()}
        keep = next(iter(inputs.values()))[1]
        return {name: padded for name, (padded, _) in inputs.items()} | {"keep_frames": keep}


def _build(stated: str | Mapping[str, Any]) -> ComplementEncoder:
    """The image encoder that a config describes."""
    args: dict[str, Any] = {"name": stated} if isinstance(stated, str) else dict(stated)
    name = args.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(
            f"video: `encoder` is the name of an image encoder or {{name: ..., model: ...}}, given "
            f"{stated!r}."
        )
    cls = registry.load("complement_encoder", name)
    if cls.modality != "image":
        raise ConfigError(
            f"video: `encoder` is {name!r}, which reads {cls.modality}; give an image encoder."
        )
    takes = list(inspect.signature(cls).parameters)
    for key in map(str, args):
        if key not in takes:
            raise ConfigError(
                f"video: encoder: {name} has no argument {key!r}.{suggest(key, takes)} "
                f"It takes: {', '.join(takes)}."
            )
    try:
        made: ComplementEncoder = cls(**args)
    except TypeError as error:
        raise ConfigError(
            f"video: encoder: {name} cannot be built with {args}: {error}. "
            f"`fusionkit info {name}` lists its arguments."
        ) from error
    return made
