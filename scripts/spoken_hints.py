"""A table of three modalities: a spoken digit, a handwritten one, and a hint in words.

Takes a table of recordings and pictures of the same digits (columns audio, image, digit, split),
for instance the Free Spoken Digit Dataset with MNIST, and writes it again with a column `hint`: a
sentence that is true of the digit and of two to six others. configs/three_modalities.yaml reads it.

    python scripts/spoken_hints.py data/spoken_digits/digits.csv
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

from fusionkit.data.claims import claims

COLUMNS = ("audio", "image", "digit", "split")


def add_hints(rows: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """The rows with a ``hint`` each, drawn from what is true of the digit.

    Args:
        rows: With the key ``digit``.
        seed: Of the draw.
    """
    chance = random.Random(seed)
    telling = [claim for claim in claims() if 3 <= len(claim.holds_for) <= 7]
    true_of = {
        digit: [claim.text for claim in telling if digit in claim.holds_for] for digit in range(10)
    }
    return [{**row, "hint": chance.choice(true_of[int(row["digit"])])} for row in rows]


def main() -> None:
    """Read one table, write the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("digits", type=Path, help=f"CSV with the columns {', '.join(COLUMNS)}")
    parser.add_argument("--output", type=Path, help="by default hints.csv beside it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with options.digits.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            parser.error(f"{options.digits} lacks the columns {', '.join(missing)}.")
        rows = add_hints(list(reader), options.seed)
    output = options.output or options.digits.with_name("hints.csv")
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[*(reader.fieldnames or ()), "hint"])
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} rows with hints in {output}")


if __name__ == "__main__":
    main()
