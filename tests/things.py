"""A table of pictures with texts, in which one thing after another can be broken."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image
from sklearn.datasets import load_sample_image

from fusionkit.config.validate import experiment_from_mapping
from fusionkit.doctor.run import examine

KINDS = ("even", "odd", "prime")
SPLITS = ["train"] * 45 + ["val"] * 15 + ["test"] * 15

LONG = (
    "what the curator wrote about it in the year it was found fills a page of the catalogue and "
    "says that the left arm was mended with plaster, badly, by someone who did not know the style"
)


def picture(number: int) -> Image.Image:
    """64 x 64, a piece of a photo that ships with scikit-learn; 85 of them."""
    row, column = divmod(number, 17)
    left, top = 30 * column, 150 + 30 * row  # below the sky
    return photo().crop((left, top, left + 128, top + 128)).resize((64, 64))


@cache
def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg"))


class Things:
    """75 rows that have nothing the matter with them.

    Attributes:
        rows: The table; changed by tests.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, str]] = []
        for i, part in enumerate(SPLITS):
            picture(i).save(folder / f"{i}.png")
            title = f"thing number {i}"
            self.rows.append(
                {"photo": f"{i}.png", "title": title, "kind": KINDS[i % 3], "part": part}
            )

    def config(self, **sections: Any) -> dict[str, Any]:
        """A config that reads the table as it stands."""
        with (self.folder / "things.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        plain = {
            "name": "things",
            "output": str(self.folder / "runs"),
            "main": {"name": "bert", "model": "fusionkit/claims-transformer"},
            "complement": {"name": "timm_vit", "model": "fusionkit/digits-vit"},
            "complement_transfer": "frozen",
            "fusion": {
                "name": "conditional_prompt",
                "experts": 2,
                "prompt_length": 2,
                "mapper_dim": 8,
            },
            "data": {
                "name": "table",
                "files": str(self.folder / "things.csv"),
                "fields": {"image": "photo", "text": "title"},
                "label": "kind",
                "split": "part",
            },
            "loader": {"batch_size": 8, "workers": 0},
            "trainer": {"max_epochs": 1, "accelerator": "cpu", "progress_bar": False},
        }
        for key, value in sections.items():
            both = isinstance(value, dict) and isinstance(plain.get(key), dict)
            plain[key] = {**plain[key], **value} if both else value  # type: ignore[dict-item]
        return plain

    def examine(self, **sections: Any) -> Any:
        """The report on the table as it stands."""
        return examine(experiment_from_mapping(self.config(**sections)))


def found(report: Any, code: str, field: str | None = None) -> Any:
    """The one finding of a kind."""
    (finding,) = [f for f in report.findings if f.code == code and field in (None, f.field)]
    return finding


def origins(finding: Any) -> list[str]:
    return [place.origin for place in finding.places]
