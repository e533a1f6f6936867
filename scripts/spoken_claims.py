"""A table of three modalities: claims about a spoken and a handwritten digit.

Takes a table of recordings and pictures of digits (columns audio, image, digit, split), for
instance the Free Spoken Digit Dataset with MNIST, and writes another beside it: each recording is
paired with the picture of a row of the same split, and with a claim about both that is true half of
the time. No two of the three fields give the answer away. configs/three_modalities.yaml reads it.

    python scripts/spoken_claims.py data/spoken_digits/digits.csv
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Callable
from pathlib import Path

# claim -> whether it holds of the spoken and the written digit
CLAIMS: dict[str, Callable[[int, int], bool]] = {
    "the digits are the same": lambda spoken, written: spoken == written,
    "the digits are different": lambda spoken, written: spoken != written,
    "the sum of the digits is even": lambda spoken, written: (spoken + written) % 2 == 0,
    "the sum of the digits is odd": lambda spoken, written: (spoken + written) % 2 == 1,
}


def make_claims(rows: list[dict[str, str]], per_row: int, seed: int) -> list[dict[str, str]]:
    """``per_row`` claims for each recording; half of them are true, whatever the recording.

    Args:
        rows: With the keys audio, image, digit and split.
        per_row: Claims for each recording.
        seed: Of the claims and of the pictures.
    """
    chance = random.Random(seed)
    pictures: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        pictures.setdefault((row["split"], int(row["digit"])), []).append(row["image"])
    made = []
    for row in rows:
        spoken = int(row["digit"])
        for _ in range(per_row):
            label = chance.random() < 0.5
            fitting = [
                (claim, written)
                for claim, holds in CLAIMS.items()
                for written in range(10)
                if holds(spoken, written) == label and (row["split"], written) in pictures
            ]
            claim = chance.choice(sorted({claim for claim, _ in fitting}))
            written = chance.choice([digit for other, digit in fitting if other == claim])
            image = chance.choice(pictures[row["split"], written])
            made.append(
                {
                    "id": str(len(made)),
                    "audio": row["audio"],
                    "image": image,
                    "claim": claim,
                    "label": "true" if label else "false",
                    "split": row["split"],
                }
            )
    return made


def main() -> None:
    """Read one table, write the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("digits", type=Path, help="CSV with the columns audio, image, digit, split")
    parser.add_argument("--output", type=Path, help="by default claims.csv beside it")
    parser.add_argument("--per_row", type=int, default=6, help="claims for each recording")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with options.digits.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = {"audio", "image", "digit", "split"} - set(rows[0] if rows else ())
    if missing:
        parser.error(f"{options.digits} lacks the columns {', '.join(sorted(missing))}.")
    made = make_claims(rows, options.per_row, options.seed)
    output = options.output or options.digits.with_name("claims.csv")
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(made[0]))
        writer.writeheader()
        writer.writerows(made)
    print(f"{len(made)} claims about {len(rows)} recordings in {output}")


if __name__ == "__main__":
    main()
