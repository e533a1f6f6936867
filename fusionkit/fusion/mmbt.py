"""MMBT: regions of the complements as tokens of the main encoder's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fusionkit.encoders.base import ExtraTokens, Features, Inputs
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import Fusion, FusionOutput
from fusionkit.fusion.requirements import complements_of, extendable
from fusionkit.transfer.base import Transfer


class MMBT(Fusion):
    """Supervised multimodal bitransformer (Kiela et al. 2019, arXiv 1909.02950, section 3).

    A complement's tokens are pooled to N regions r_1 .. r_N, each the mean of a run of them, and
    projected to the embedding space of the main encoder,

        e_n = W r_n + b,

    where the e_n run along as input tokens. The feature is the main encoder's own pooled output.

    For an image the tokens stand row by row, so that regions are horizontal bands, the authors'
    ``AdaptiveAvgPool2d((N, 1))``: exactly where N divides the rows of the grid, else a band ends
    within a row. A class token counts for the first band. Padding is left out. A complement
    without tokens is a sequence of one, its pooled feature, whose N regions are alike.

    Where the paper's BERT reads two segments, [CLS] image [SEP] text [SEP], the regions stand here
    where the main encoder puts further tokens (in BERT behind [CLS]), with one numbering and no
    further [SEP]; the segment embedding of the image is part of b. Several complements have a
    projection each and stand one behind the other.

    The systems of arXiv 2312.03734, Table 1: ``mmbt`` fine-tunes both encoders, ``prompt_mmbt``
    prompts both.

    Args:
        main: The main encoder, one whose input takes further tokens.
        complements: One or more.
        regions: N, for each complement.

    Raises:
        ConfigError: The main encoder takes no further tokens, there is no complement, or
            ``regions`` is below 1.
    """

    def __init__(
        self,
        main: Transfer,
        complements: Sequence[Transfer],
        regions: int = 3,  # authors' command line for Food-101
    ) -> None:
        super().__init__(main, complements_of(complements, "mmbt"))
        if regions < 1:
            raise ConfigError(f"regions is at least 1, given {regions}.")
        width = extendable(main, "mmbt", regions * len(complements)).layer_widths[0]
        self.regions = regions
        self.project = nn.ModuleList(nn.Linear(made.out_dim, width) for made in complements)

    @property
    def out_dim(self) -> int:
        return self.main.out_dim

    def forward(self, inputs: Mapping[str, Inputs]) -> FusionOutput:
        rows = [
            project(pool_regions(features, self.regions))
            for project, features in zip(self.project, self.see(inputs).values(), strict=True)
        ]
        return FusionOutput(self.run_main(inputs, extra=ExtraTokens(torch.cat(rows, dim=1))).pooled)


def pool_regions(features: Features, count: int) -> Tensor:
    """Adaptive average pooling over the real tokens of each sample.

    Region r of T tokens is the mean of those from floor(r T / N) up to ceil((r + 1) T / N), as in
    torch; zeros where a sample has no real token.

    Args:
        features: (B, T, C) tokens and their mask; without tokens, the pooled feature is the only
            one.
        count: N.

    Returns:
        (B, N, C).
    """
    tokens = features.pooled.unsqueeze(1) if features.tokens is None else features.tokens
    keep = features.keep
    if keep is None:
        keep = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
    place = keep.cumsum(dim=1)[:, None] - 1  # (B, 1, T), counted among the real tokens
    total = keep.sum(dim=1)[:, None, None]  # (B, 1, 1)
    region = torch.arange(count, device=tokens.device)[:, None]  # (N, 1)
    start = region * total // count
    end = -(-(region + 1) * total // count)
    inside = ((place >= start) & (place < end) & keep[:, None]).to(tokens.dtype)  # (B, N, T)
    return inside @ tokens / inside.sum(dim=2, keepdim=True).clamp(min=1)
