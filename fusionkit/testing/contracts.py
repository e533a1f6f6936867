"""Run the contract: everything that the rest of fusionkit relies on in an encoder.

The functions that check are in :mod:`.complement_checks`, :mod:`.main_checks` and
:mod:`.token_checks`; ``docs/contract.md`` says in a line each what they are good for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from fusionkit.testing import (
    complement_checks as complement,
    main_checks as main,
    token_checks as further,
)
from fusionkit.testing.case import Case, Context, NotApplicable, Violation, prepare

Status = Literal["passed", "failed", "skipped"]


class Check(NamedTuple):
    """One promise: ``function`` raises if it is broken."""

    number: int
    title: str
    function: Callable[[Context], None]


CHECKS: tuple[Check, ...] = (
    Check(1, "equals the upstream model without prompts", complement.equals_upstream),
    Check(2, "a layer returns as many tokens as without prompts", main.layers_keep_their_length),
    Check(3, "prefix tokens stay in front, all tokens in order", main.tokens_stay_in_place),
    Check(4, "zero-length prompts equal none", main.no_rows_equal_no_prompts),
    Check(5, "padding changes nothing", complement.padding_changes_nothing),
    Check(6, "a row does not depend on its batch mates", complement.row_is_independent),
    Check(7, "inputs, states and prompts are not modified", complement.nothing_is_modified),
    Check(
        8,
        "gradients reach every prompt, and no frozen weight",
        complement.gradients_go_where_they_belong,
    ),
    Check(
        9,
        "gradient checkpointing leaves gradients identical",
        main.checkpointing_changes_nothing,
    ),
    Check(10, "encode compiles as one full graph", main.compiles_as_one_graph),
    Check(11, "weights are upstream's and load strictly", complement.weights_are_upstreams),
    Check(12, "prompts equal brute-force concatenation", main.equals_concatenation),
    Check(13, "prompts keep the dtype under autocast", main.prompts_keep_the_autocast_dtype),
    Check(14, "evaluation is deterministic", complement.evaluation_is_deterministic),
    Check(15, "shapes and masks are as declared", complement.shapes_are_declared),
    Check(16, "every layer uses its prompts", main.every_layer_uses_its_prompts),
    Check(17, "prompts have no order", main.prompts_have_no_order),
    Check(18, "prompts of a wrong shape are refused", main.wrong_prompts_are_refused),
    Check(19, "preprocessors can be pickled", complement.preprocessor_travels),
    Check(20, "builds on the meta device", complement.builds_on_meta),
    Check(21, "layers are what run_layer runs", main.layers_are_what_runs),
    Check(22, "further tokens run along, and are cut off", further.further_tokens_run_along),
    Check(23, "queries read the layers and leave them alone", further.queries_read_the_layers),
    Check(24, "layers run on from stored tokens", main.resumes_from_tokens),
    Check(25, "prompts in parts equal the whole", main.parts_equal_the_whole),
    Check(26, "pooled is the same without other tokens", main.pooled_alone_is_the_same),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one check.

    Attributes:
        number: As in :data:`CHECKS`; 0 if the encoder or its inputs could not be made at all.
        title: The promise.
        status: A check that raises anything has failed.
        message: Why it failed or was skipped; empty if it passed.
    """

    number: int
    title: str
    status: Status
    message: str = ""


def run_contract(case: Case, report: Callable[[Result], None] | None = None) -> list[Result]:
    """All results, in the order of :data:`CHECKS`; a failure does not stop the others.

    The caller's random state is left as it is.

    Args:
        case: The encoder.
        report: Called with each result as soon as it is there, to show progress.
    """
    results: list[Result] = []
    with torch.random.fork_rng(devices=[]):
        made = _attempt(Check(0, "the encoder and its inputs can be made", lambda _: None), case)
        for check in CHECKS if made.status == "passed" else ():
            results.append(_attempt(check, case))
            if report is not None:
                report(results[-1])
    if made.status == "failed" and report is not None:
        report(made)
    return results or [made]


def assert_contract(case: Case) -> None:
    """Run the contract inside of a test.

    Raises:
        AssertionError: At least one check failed; the message lists each with what to do.
    """
    failed = [result for result in run_contract(case) if result.status == "failed"]
    if failed:
        lines = [f"  {result.number:2} {result.title}: {result.message}" for result in failed]
        raise AssertionError(
            f"{len(failed)} of {len(CHECKS)} checks of the encoder contract failed:\n"
            + "\n".join(lines)
            + "\ndocs/contract.md says what each check is good for."
        )


def format_results(results: Sequence[Result]) -> str:
    """A table for the terminal, one line a check and a last line with the counts."""
    lines = []
    for result in results:
        shown = result.status.upper() if result.status == "failed" else result.status
        reason = f": {result.message}" if result.message else ""
        lines.append(f"{result.number:2}  {shown:7}  {result.title}{reason}")
    count = {
        status: sum(result.status == status for result in results)
        for status in ("passed", "failed", "skipped")
    }
    lines.append(", ".join(f"{number} {status}" for status, number in count.items()))
    return "\n".join(lines)


def _attempt(check: Check, case: Case) -> Result:
    try:
        check.function(prepare(case))
    except NotApplicable as reason:
        return Result(check.number, check.title, "skipped", str(reason))
    except Violation as violation:
        return Result(check.number, check.title, "failed", str(violation))
    except Exception as error:  # noqa: BLE001 - whatever an encoder raises is its failure
        text = " ".join(str(error).split())[:400]
        return Result(check.number, check.title, "failed", f"{type(error).__name__}: {text}")
    return Result(check.number, check.title, "passed")
