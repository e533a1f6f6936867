"""Which experts a model uses, as validation and test see it in passing."""

from __future__ import annotations

import logging
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchmetrics import Metric

from fusionkit.data.folders import replace_whole
from fusionkit.prompts.engine import Routing

_log = logging.getLogger("fusionkit")

FILE = "routing.parquet"
FEWEST = 4  # experts: of fewer, one may well be enough
COLLAPSED = 2.0  # effective experts


@dataclass(frozen=True, slots=True)
class LayerRouting:
    """How a split's samples use the k experts of one layer.

    Attributes:
        layer: Its index in the main encoder.
        importance: k shares: mean noise-free probability, Eq. 5 of arXiv 2312.03734 by sample.
        weight: k means of what mixed the experts: the importance, less what top-k leaves out.
        top: k shares of the samples whose most probable expert it is.
        entropy: Mean over samples of H = -sum_e r_e log2 r_e of the probabilities r, in bits
            (Fig. 6): 0 if each sample uses one expert, log2 k if each uses all alike.
        effective_experts: 2^H of the importance: how many experts the split as a whole uses,
            between 1 and k.
        cv2: (std / mean)^2 of the importance over the experts (Eq. 6), 0 if all serve alike.
    """

    layer: int
    importance: list[float]
    weight: list[float]
    top: list[float]
    entropy: float
    effective_experts: float
    cv2: float


class RoutingStatistics(Metric):
    """Sums over samples, and over processes; nothing waits for a GPU until they are asked for.

    Args:
        layers: The N prompted layers.
        experts: k.
    """

    full_state_update = False

    def __init__(self, layers: tuple[int, ...], experts: int) -> None:
        super().__init__()
        self.layers = layers
        shape = (len(layers), experts)
        for name in ("probability", "weight", "top"):
            self.add_state(name, torch.zeros(shape), "sum")
        self.add_state("entropy", torch.zeros(len(layers)), "sum")
        self.add_state("samples", torch.zeros(()), "sum")

    def update(self, routing: Routing) -> None:
        """Add a batch."""
        probabilities = routing.probabilities.float()
        best = probabilities.argmax(dim=-1, keepdim=True)
        self.probability += probabilities.sum(dim=0)
        self.weight += routing.weights.float().sum(dim=0)
        self.top += torch.zeros_like(probabilities).scatter(-1, best, 1.0).sum(dim=0)
        self.entropy += entropy(probabilities).sum(dim=0)
        self.samples += len(probabilities)

    def compute(self) -> tuple[Tensor, ...]:
        """Importance, weight, top (N, k), entropy, effective experts and CV2 (N,)."""
        importance = self.probability / self.samples
        alone = importance.shape[-1] == 1  # nothing can unbalance a single expert
        cv2 = importance.var(dim=-1, correction=int(not alone)) / importance.mean(dim=-1).square()
        return (
            importance,
            self.weight / self.samples,
            self.top / self.samples,
            self.entropy / self.samples,
            entropy(importance).exp2(),
            cv2,
        )

    def by_layer(self) -> list[LayerRouting]:
        """What was added so far, in all processes."""
        rows = self.probability.shape
        found = self.compute()  # torchmetrics makes scalars of what has one entry
        by_expert = [part.reshape(rows).tolist() for part in found[:3]]
        over_experts = [part.reshape(rows[:1]).tolist() for part in found[3:]]
        parts = zip(self.layers, *by_expert, *over_experts, strict=True)
        return [LayerRouting(*part) for part in parts]


def entropy(distribution: Tensor) -> Tensor:
    """H in bits of (..., k), over the last dimension."""
    return -torch.special.xlogy(distribution, distribution).sum(dim=-1) / torch.log(
        distribution.new_tensor(2.0)
    )


class RecordRouting(L.Callback):
    """Keeps, of every validation in training, how experts were used.

    ``val/routing_entropy``, ``val/effective_experts`` and ``val/importance_cv2`` are logged as
    means over layers; the layers go to :data:`FILE` in the run folder, a row for each epoch and
    layer. A model without experts leaves nothing.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._statistics: RoutingStatistics | None = None
        self._rows: list[dict[str, Any]] | None = None
        self._warned = False

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        routing = outputs.fused.routing
        if routing is None or trainer.state.fn != "fit":
            return
        if self._statistics is None:
            experts = routing.probabilities.shape[-1]
            self._statistics = RoutingStatistics(routing.layers, experts).to(pl_module.device)
        self._statistics.update(routing)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._statistics is None or trainer.state.fn != "fit":
            return
        layers = self._statistics.by_layer()
        self._statistics.reset()
        for name, values in (
            ("routing_entropy", [layer.entropy for layer in layers]),
            ("effective_experts", [layer.effective_experts for layer in layers]),
            ("importance_cv2", [layer.cv2 for layer in layers]),
        ):
            pl_module.log(f"val/{name}", statistics.mean(values), sync_dist=True)
        if trainer.is_global_zero:
            self._write(trainer.current_epoch + 1, layers)
            self._warn(layers)

    def _write(self, epoch: int, layers: list[LayerRouting]) -> None:
        if self._rows is None:
            self._rows = pq.read_table(self.path).to_pylist() if self.path.is_file() else []
        # A run that continues in the middle of an epoch validates it again.
        self._rows = [row for row in self._rows if row["epoch"] < epoch]
        self._rows += [{"epoch": epoch, **{s: getattr(x, s) for s in x.__slots__}} for x in layers]
        table = pa.Table.from_pylist(self._rows)
        replace_whole(self.path, lambda place: pq.write_table(table, place))

    def _warn(self, layers: list[LayerRouting]) -> None:
        experts = len(layers[0].importance)
        few = [layer for layer in layers if layer.effective_experts < COLLAPSED]
        if self._warned or experts < FEWEST or 2 * len(few) <= len(layers):
            return
        self._warned = True
        _log.warning(
            f"Routing has collapsed: in {len(few)} of {len(layers)} layers, the {experts} experts "
            f"are used like {min(layer.effective_experts for layer in few):.1f}. "
            f"A larger fusion.importance_weight or fusion.temperature spreads samples over them; "
            f"fewer fusion.experts may be enough."
        )
