"""What the best weights said of each sample of the test split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fusionkit.data.folders import replace_whole
from fusionkit.training.metrics import predictions_of

FILE = "samples.parquet"
MOST = 20_000  # samples that are kept


class KeepSamples(L.Callback):
    """Writes :data:`FILE` to the run folder, from the pass that tests the best weights.

    Columns are ``index`` (of the sample in its split), ``target``, ``prediction`` (probabilities,
    or a number) and, where experts were mixed, ``routing``: the weights of all layers and
    experts, N k numbers. The schema's metadata says the ``split``, and for the routing ``layers``
    and ``experts``. Of more than :data:`MOST` samples, the first are kept.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._rows: list[dict[str, Any]] = []
        self._about: dict[str, Any] = {}

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._keep(trainer, pl_module, outputs, batch, "test")

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if trainer.state.fn == "validate":  # there is no test split
            self._keep(trainer, pl_module, outputs, batch, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._write(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "validate":
            self._write(trainer)

    def _keep(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, split: str
    ) -> None:
        if len(self._rows) * trainer.world_size >= MOST:
            return
        predicted = predictions_of(pl_module.task, outputs.logits).float()
        columns = {
            "index": batch["index"].tolist(),
            "target": batch["target"].tolist(),
            "prediction": predicted.tolist(),
        }
        self._about["split"] = split
        if (routing := outputs.fused.routing) is not None:
            columns["routing"] = routing.weights.float().flatten(1).tolist()
            self._about["layers"] = list(routing.layers)
            self._about["experts"] = routing.weights.shape[-1]
        self._rows += [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]

    def _write(self, trainer: L.Trainer) -> None:
        rows = self._rows
        if trainer.world_size > 1:
            shared: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(shared, rows)
            rows = [row for part in shared for row in part]
        self._rows = []
        if not trainer.is_global_zero or not rows:
            return
        rows.sort(key=lambda row: row["index"])
        table = pa.Table.from_pylist(rows[:MOST])
        for name in ("prediction", "routing"):  # half the size, and all there is
            if name in table.column_names:
                place, column = table.column_names.index(name), table[name]
                narrow = pa.list_(pa.float32()) if pa.types.is_list(column.type) else pa.float32()
                table = table.set_column(place, name, column.cast(narrow))
        about = {key: json.dumps(value) for key, value in self._about.items()}
        table = table.replace_schema_metadata(about)
        replace_whole(self.path, lambda place: pq.write_table(table, place))
