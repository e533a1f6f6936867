"""Trained parameters of every system in Table 1 of arXiv 2312.03734, beside the paper's column.

    python scripts/table1_parameters.py     # the table in docs/comparison.md

Built on the meta device from configs/baselines: no data, no weights, no network.
"""

from __future__ import annotations

from pathlib import Path

from fusionkit.config.validate import load_config
from fusionkit.training.check import check

BASELINES = Path(__file__).resolve().parent.parent / "configs" / "baselines"

# Millions of trained parameters in Table 1; "-" is the paper's sign for less than 0.1.
PAPER = {
    "img_only": "86.9",
    "text_only": "109.0",
    "late_concat": "196.0",
    "sequential": "197.0",
    "mmbt": "196.5",
    "prompt_img_only": "0.1",
    "prompt_text_only": "-",
    "prompt_late_concat": "1.0",
    "prompt_sequential": "1.1",
    "prompt_mmbt": "0.9",
    "frozen": "",
    "promptfuse": "-",
    "blindprompt": "-",
    "pmf": "2.5",
    "pmf_large": "4.5",
    "conditional_prompt_k4": "1.5",
    "conditional_prompt_k16": "2.6",
}
DATA = {"snli_ve": "SNLI-VE, 3 classes", "mmimdb": "MM-IMDB, 23", "food101": "Food-101, 101"}


def trained(data: str, row: str) -> int:
    """Trained parameters of one config."""
    return check(load_config([BASELINES / data / f"{row}.yaml"])).trained


def main() -> None:
    """Print the table."""
    print(f"| config | the paper, M | {' | '.join(DATA.values())} |")
    print("|---|---:|" + "---:|" * len(DATA))
    for row, paper in PAPER.items():
        cells = " | ".join(f"{trained(data, row):,}" for data in DATA)
        print(f"| `{row}` | {paper} | {cells} |")


if __name__ == "__main__":
    main()
