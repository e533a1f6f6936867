from __future__ import annotations

import pytest

from fusionkit.config.validate import load_config
from fusionkit.training.run import fit


@pytest.fixture(scope="session")
def short(tmp_path_factory):
    """Overrides for a short run of the quickstart, without baselines."""
    return [
        ("output", str(tmp_path_factory.mktemp("runs"))), ("trainer.max_epochs", "2"),
        ("trainer.progress_bar", "false"), ("trainer.limit_train_batches", "4"),
        ("trainer.limit_val_batches", "1"), ("trainer.limit_test_batches", "1"),
        ("loader.eval_batch_size", "128"), ("baselines", "null"),
    ]  # fmt: skip


@pytest.fixture(scope="session")
def runs(short, pytestconfig):
    """Two short runs on the embedded data: with experts and a baseline, and without."""
    config = pytestconfig.rootpath / "configs" / "quickstart.yaml"
    alone = "{claim only: {complement: null, fusion: main_only}}"
    routed = fit(load_config([config], [*short, ("baselines", alone)])).folder
    plain = [("fusion", "late_concat"), ("name", "plain")]
    return {"routed": routed, "plain": fit(load_config([config], [*short, *plain])).folder}
