"""``fusionkit validate``."""

from __future__ import annotations

from collections.abc import Sequence

from fusionkit.cli.evaluate import evaluate_split


def run(argv: Sequence[str]) -> int:
    """Metrics on the validation split."""
    return evaluate_split(argv, "validate")
