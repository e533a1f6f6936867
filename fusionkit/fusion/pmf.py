"""PMF: prompts that two encoders make for each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fusionkit.encoders.base import Inputs, MainEncoder, TokenState
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import Fusion, FusionOutput
from fusionkit.fusion.requirements import interactive, layered, only_complement
from fusionkit.transfer.base import Transfer

_INIT_STD = 0.02  # authors' code


class Direction(nn.Module):
    """From one encoder to the other, in one pair of layers.

    The query stage runs the sender's layer on ``[tokens, context, query]`` and maps what comes out
    at the query; with the receiver's own context, that is what its layer is prompted with in the
    fusion stage.

    Args:
        sender: D_x, width of the layer that is asked.
        receiver: D_y, width of the layer that is prompted.
        length: Rows of the query, of its context and of the receiver's context.
        hidden_dim: Width between the two maps.

    Attributes:
        query: (length, D_x), the query prompt (QP).
        query_context: (length, D_x), the query context prompt (QCP).
        fusion_context: (length, D_y), the fusion context prompt (FCP).
    """

    def __init__(self, sender: int, receiver: int, length: int, hidden_dim: int) -> None:
        super().__init__()
        self.query = _rows(length, sender)
        self.query_context = _rows(length, sender)
        self.fusion_context = _rows(length, receiver)
        self.map = nn.Sequential(
            nn.Linear(sender, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, receiver)
        )

    def forward(self, encoder: MainEncoder, layer: int, state: TokenState) -> Tensor:
        """The receiver's prompts, (B, 2 * length, D_y).

        Args:
            encoder: The sender.
            layer: Its layer that is asked.
            state: What enters that layer.
        """

        def expand(rows: Tensor) -> Tensor:
            # Under autocast, rows of another dtype would change that of what they are joined with.
            return rows.to(state.tokens.dtype).expand(len(state.tokens), -1, -1)

        found = encoder.query(layer, state, expand(self.query), expand(self.query_context))
        mapped = self.map(found)
        return torch.cat([self.fusion_context.expand(len(mapped), -1, -1), mapped], dim=1)


def _rows(length: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(length, width).normal_(std=_INIT_STD))


class PMF(Fusion):
    """Interactive prompts between the last layers of two encoders.

    Sections 3.2 and 3.3 of Li et al., CVPR 2023 (arXiv 2304.06306). In each of the last
    ``fusion_layers`` layers of both encoders x and y, for both directions at once::

        q_x = f_xy(layer_x([tokens_x, QCP_x, QP_x]) at QP_x)    query stage
        tokens_y = layer_y([tokens_y, FCP_y, q_x]) at tokens_y  fusion stage

    with f a Linear-ReLU-Linear map; prompts and map are those of this layer and direction. Layers
    are paired from the end; those below run as they are, and where encoders are frozen, without
    activations kept. The feature is ``[pooled_main, pooled_complement]``: the authors average the
    predictions of a linear head on each, which is a linear head on both.

    The query stage needs the layer's output at QP alone, so the tokens only serve as its keys and
    values; the authors run the layer on all rows. In their code the FCP are left out of what is
    trained, by the name of an attribute that does not exist; here they are trained like the other
    prompts. With ViT-B and BERT-base, prompts and maps have 2.40 M parameters, 2.56 M with the head
    for 101 classes (Table 1 of arXiv 2312.03734: 2.5 M); with the large ones 4.46 M (4.5 M).

    Args:
        main: An encoder whose layers can be queried, under a mode that changes weights only.
        complements: One more of the kind.
        fusion_layers: Layers at the end of each encoder that exchange prompts.
        prompt_length: Rows of QP, QCP and FCP.
        hidden_dim: Width within the maps; null for half of the wider layer's (authors' code).

    Raises:
        ConfigError: There is no complement or more than one; one of the encoders has no layers,
            cannot be queried, or has prompts or modules beside its layers; or a number is out of
            range.
    """

    runs_layers_of: ClassVar[tuple[str, ...]] = ("main", "complement")

    def __init__(
        self,
        main: Transfer,
        complements: Sequence[Transfer],
        fusion_layers: int = 2,  # authors' code
        prompt_length: int = 4,  # authors' code
        hidden_dim: int | None = None,
    ) -> None:
        complement = only_complement(complements, "pmf")
        super().__init__(main, [complement])
        widths = interactive(main, "main", "pmf").layer_widths
        others = interactive(complement, "complement", "pmf").layer_widths
        _check(fusion_layers, min(len(widths), len(others)), prompt_length, hidden_dim)
        pairs = list(zip(widths[-fusion_layers:], others[-fusion_layers:], strict=True))
        self.to_main = nn.ModuleList(
            Direction(y, x, prompt_length, hidden_dim or max(x, y) // 2) for x, y in pairs
        )
        self.to_complement = nn.ModuleList(
            Direction(x, y, prompt_length, hidden_dim or max(x, y) // 2) for x, y in pairs
        )

    @property
    def out_dim(self) -> int:
        return self.main.out_dim + self.complements["complement"].out_dim

    def forward(self, inputs: Mapping[str, Inputs]) -> FusionOutput:
        exchange = Exchange(self, inputs["complement"])
        main = self.run_main(inputs, exchange).pooled
        return FusionOutput(torch.cat([main, exchange.readout()], dim=-1))


class Exchange:
    """The prompts of one batch; takes the complement along as the main encoder runs.

    Args:
        fusion: The fusion.
        inputs: The complement's.
    """

    def __init__(self, fusion: PMF, inputs: Inputs) -> None:
        self.fusion = fusion
        self.main = layered(fusion.main, "pmf")
        self.complement = layered(fusion.complements["complement"], "pmf")
        self.state = fusion.enter("complement", inputs)
        for layer in range(self._first(self.complement)):
            self.state = self.complement.step(layer, self.state, None)

    def _first(self, encoder: MainEncoder) -> int:
        """The first of an encoder's layers that exchanges prompts."""
        return len(encoder.layer_widths) - len(self.fusion.to_main)

    def __call__(self, layer: int, state: TokenState) -> Tensor | None:
        """Prompts of the main encoder's ``layer``, (B, n, D); None below the fusion layers."""
        slot = layer - self._first(self.main)
        if slot < 0:
            return None
        paired = slot + self._first(self.complement)
        prompts: Tensor = self.fusion.to_main[slot](self.complement, paired, self.state)
        others: Tensor = self.fusion.to_complement[slot](self.main, layer, state)
        self.state = self.complement.step(paired, self.state, others)
        return prompts

    def readout(self) -> Tensor:
        """The complement's pooled feature, (B, C), once the main encoder has run."""
        return self.complement.readout(self.state).pooled


def _check(fusion_layers: int, depth: int, prompt_length: int, hidden_dim: int | None) -> None:
    if not 1 <= fusion_layers <= depth:
        raise ConfigError(
            f"pmf: fusion_layers is from 1 to {depth}, the layers of the shallower encoder, given "
            f"{fusion_layers}."
        )
    if prompt_length < 1 or (hidden_dim is not None and hidden_dim < 1):
        raise ConfigError(
            f"pmf: prompt_length and hidden_dim are at least 1, given {prompt_length} and "
            f"{hidden_dim}; null as hidden_dim is half of the wider encoder."
        )
