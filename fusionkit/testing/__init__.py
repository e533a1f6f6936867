"""For authors of encoders: the contract that every encoder of fusionkit passes.

::

    from fusionkit.testing import Case, assert_contract


    def test_contract():
        case = Case(make=lambda: MyEncoder(weights="random"), samples=["a", "b c", "d e f"])
        assert_contract(case)
"""

from fusionkit.testing.case import Case
from fusionkit.testing.contracts import (
    CHECKS,
    Check,
    Result,
    assert_contract,
    format_results,
    run_contract,
)
from fusionkit.testing.samples import samples

__all__ = [
    "CHECKS",
    "Case",
    "Check",
    "Result",
    "assert_contract",
    "format_results",
    "run_contract",
    "samples",
]
