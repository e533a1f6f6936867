from __future__ import annotations

import pytest

from fusionkit.config.validate import load_config
from fusionkit.training.run import fit


@pytest.fixture(scope="session")
def runs(tmp_path_factory, pytestconfig):
    """Two short runs on the embedded data: with experts and a baseline, and without."""
    place = tmp_path_factory.mktemp("runs")
    config = pytestconfig.rootpath / "configs" / "quickstart.yaml"
    short = [
        ("output", str(place)), ("trainer.max_epochs", "2"), ("trainer.progress_bar", "false"),
        ("trainer.limit_train_batches", "4"), ("trainer.limit_val_batches", "1"),
        ("trainer.limit_test_batches", "1"), ("loader.eval_batch_size", "128"),
    ]  # fmt: skip
    alone = "{claim only: {complement: null, fusion: main_only}}"
    routed = fit(
        load_config([config], [*short, ("baselines", "null"), ("baselines", alone)])
    ).folder
    plain = [("baselines", "null"), ("fusion", "late_concat"), ("name", "plain")]
    return {"routed": routed, "plain": fit(load_config([config], [*short, *plain])).folder}
