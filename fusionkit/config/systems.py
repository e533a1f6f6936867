"""The compared systems: a name for transfer modes and fusion together. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class System:
    """What ``system: NAME`` stands for.

    Attributes:
        overlay: Config keys, merged before those that are stated beside it.
        summary: One line for the listing, with its source.
    """

    overlay: Mapping[str, Any]
    summary: str


# Prompt lengths of arXiv 2312.03734: 6 in what is tuned (section 4.1: all prompt-tuned systems have
# the same length), 4 in a complement that serves another encoder (authors' code).
_PROMPTED = {"name": "prompt", "length": 6}
_SERVING = {"name": "prompt", "length": 4}
_FINE_TUNED = {"main_transfer": "fine_tune", "complement_transfer": "fine_tune"}
_BOTH_PROMPTED = {"main_transfer": _PROMPTED, "complement_transfer": _SERVING}
_GUIDED = {"main_transfer": "frozen", "complement_transfer": _SERVING}
_BOTH_FROZEN = {"main_transfer": "frozen", "complement_transfer": "frozen"}
_MAPPED = {"name": "conditional_prompt", "dynamic": False}

SYSTEMS: Mapping[str, System] = {
    "main_only": System(
        {"main_transfer": "fine_tune", "fusion": "main_only"},
        "ImgOnly, TextOnly: the main encoder alone, fine-tuned",
    ),
    "prompt_main_only": System(
        {"main_transfer": _PROMPTED, "fusion": "main_only"},
        "P-ImgOnly, P-TextOnly: the main encoder alone, prompted at every layer (VPT-deep)",
    ),
    "late_concat": System(
        {**_FINE_TUNED, "fusion": "late_concat"},
        "LateConcat: both encoders fine-tuned, features concatenated",
    ),
    "prompt_late_concat": System(
        {**_BOTH_PROMPTED, "fusion": "late_concat"},
        "P-LateConcat: both encoders prompted, features concatenated",
    ),
    "sequential": System(
        {**_FINE_TUNED, "fusion": {**_MAPPED, "static": False}},
        "SequentialFuse: a mapped prompt at every layer, both encoders fine-tuned",
    ),
    "prompt_sequential": System(
        {**_GUIDED, "fusion": _MAPPED},
        "P-SequentialFuse: static and mapped prompts, encoders frozen",
    ),
    "mmbt": System(
        {**_FINE_TUNED, "fusion": "mmbt"},
        "MMBT: regions of the complement as input tokens, fine-tuned (Kiela et al. 2019)",
    ),
    "prompt_mmbt": System(
        {**_BOTH_PROMPTED, "fusion": "mmbt"},
        "P-MMBT: the same with prompts at every layer, encoders frozen",
    ),
    "frozen": System(
        {"main_transfer": "frozen", "complement_transfer": "fine_tune", "fusion": "frozen"},
        "Frozen: two input tokens of a frozen causal language model (Tsimpoukelli et al. 2021)",
    ),
    "promptfuse": System(
        {**_BOTH_FROZEN, "fusion": "promptfuse"},
        "PromptFuse: prompts at a language model's input only (Liang et al. 2022)",
    ),
    "blindprompt": System(
        {**_BOTH_FROZEN, "fusion": {"name": "promptfuse", "blind": True}},
        "BlindPrompt: the same, the prompts blind to text and feature",
    ),
    "pmf": System(
        {**_BOTH_FROZEN, "fusion": "pmf"},
        "PMF: interactive prompts between the deep layers of both encoders (Li et al. 2023)",
    ),
    "conditional_prompt": System(
        {**_GUIDED, "fusion": "conditional_prompt"},
        "ours: static, dynamic and mapped prompts at every layer (Jiang et al. 2023)",
    ),
    "ensemble": System(
        {**_BOTH_PROMPTED, "fusion": "ensemble"},
        "a prediction from each encoder, scores averaged",
    ),
    "gated": System(
        {**_BOTH_PROMPTED, "fusion": "gated"},
        "gated multimodal unit over both features (Arevalo et al. 2017)",
    ),
    "low_rank_tensor": System(
        {**_BOTH_PROMPTED, "fusion": "low_rank_tensor"},
        "low-rank tensor product of both features (Liu et al. 2018)",
    ),
    "cross_attention": System(
        {**_BOTH_PROMPTED, "fusion": "cross_attention"},
        "the main encoder's tokens attend to the complement's (Tsai et al. 2019)",
    ),
    "cocoop": System(
        {**_BOTH_FROZEN, "fusion": "cocoop"},
        "input prompts shifted by the complement's feature, as CoCoOp (Zhou et al. 2022)",
    ),
    "vpt_shallow": System(
        {"main_transfer": {**_PROMPTED, "shallow": True}, "fusion": "main_only"},
        "VPT-shallow: prompts at the main encoder's input only (Jia et al. 2022)",
    ),
    "prefix_tuning": System(
        {"main_transfer": {"name": "prefix", "length": 6}, "fusion": "main_only"},
        "prompts at every layer made by one MLP (Li and Liang 2021)",
    ),
}
