"""UPMC Food-101: which dish is it, by a photo and the text of the page it is from?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from fusionkit.data.food101_files import IMAGES, PAGES, TITLES, Copy
from fusionkit.data.messy import check_images, complete, unique
from fusionkit.data.prepare import (
    FOLDER,
    Count,
    Findings,
    Prepared,
    Row,
    Track,
    check_any,
    lacking,
    open_folder,
    silent,
    to_table,
    total,
    write_index,
)
from fusionkit.data.published import Published
from fusionkit.data.rows import FieldSpec
from fusionkit.data.splits import stratified_split

_VAL = 5000  # rows of the official train, as in MMBT and arXiv 2312.03734, section 4.1
_VAL_SEED = 0
_SPLITS = ("train", "val", "test")
_PUBLISHED = {
    "title": ({}, "90,840 in arXiv 2312.03734"),
    "page": ({"train": "60,101", "val": "5,000", "test": "21,695"}, "86,796 in arXiv 1909.02950"),
}


class Food101(Published):
    """UPMC Food-101: which of 101 dishes is it, by a photo and the text of the page it is from?

    Wang et al., ICME Workshops 2015. The official test; validation is 5,000 rows of the official
    train, drawn by class, with a fixed seed. Run ``fusionkit data prepare food101`` once.

    Args:
        root: Folder with the official files.
        text: title, of the page (nearly every photo has one, and all of it fits an encoder); or
            page, its whole text, of which encoders read the beginning.
        more_fields: Further fields, as of ``table``, over the columns id, image, text and label;
            paths are relative to ``root``.
    """

    name: ClassVar[str] = "food101"
    # fmt: off
    labels: ClassVar[tuple[str, ...]] = (
        "apple_pie", "baby_back_ribs", "baklava", "beef_carpaccio", "beef_tartare", "beet_salad",
        "beignets", "bibimbap", "bread_pudding", "breakfast_burrito", "bruschetta", "caesar_salad",
        "cannoli", "caprese_salad", "carrot_cake", "ceviche", "cheesecake", "cheese_plate",
        "chicken_curry", "chicken_quesadilla", "chicken_wings", "chocolate_cake",
        "chocolate_mousse", "churros", "clam_chowder", "club_sandwich", "crab_cakes",
        "creme_brulee", "croque_madame", "cup_cakes", "deviled_eggs", "donuts", "dumplings",
        "edamame", "eggs_benedict", "escargots", "falafel", "filet_mignon", "fish_and_chips",
        "foie_gras", "french_fries", "french_onion_soup", "french_toast", "fried_calamari",
        "fried_rice", "frozen_yogurt", "garlic_bread", "gnocchi", "greek_salad",
        "grilled_cheese_sandwich", "grilled_salmon", "guacamole", "gyoza", "hamburger",
        "hot_and_sour_soup", "hot_dog", "huevos_rancheros", "hummus", "ice_cream", "lasagna",
        "lobster_bisque", "lobster_roll_sandwich", "macaroni_and_cheese", "macarons", "miso_soup",
        "mussels", "nachos", "omelette", "onion_rings", "oysters", "pad_thai", "paella",
        "pancakes", "panna_cotta", "peking_duck", "pho", "pizza", "pork_chop", "poutine",
        "prime_rib", "pulled_pork_sandwich", "ramen", "ravioli", "red_velvet_cake", "risotto",
        "samosa", "sashimi", "scallops", "seaweed_salad", "shrimp_and_grits",
        "spaghetti_bolognese", "spaghetti_carbonara", "spring_rolls", "steak",
        "strawberry_shortcake", "sushi", "tacos", "takoyaki", "tiramisu", "tuna_tartare",
        "waffles",
    )
    # fmt: on

    def __init__(
        self,
        root: str,
        text: Literal["title", "page"] = "title",
        more_fields: dict[str, str | FieldSpec] | None = None,
    ) -> None:
        self._text = text
        files = {split: f"{text}/{split}" for split in _SPLITS}
        super().__init__(root, files, {"image": "image", "text": "text"}, more_fields)

    @classmethod
    def prepare(cls, root: Path, keep_incomplete: bool = False, track: Track = silent) -> Prepared:
        copy = Copy.find(root, cls.labels)
        if copy.images is None or (copy.titles is None and copy.pages is None):
            texts = [] if copy.titles or copy.pages else [TITLES, PAGES]
            raise lacking(cls.name, root, [*([] if copy.images else [IMAGES]), *texts])
        open_folder(root)
        findings = Findings()
        listed = _read(copy, findings, track)
        paths = (r["image"] for splits in listed.values() for s in splits.values() for r in s if r)
        problems = check_images(root, paths, track)
        counts: list[Count] = []
        tables = {}
        for text, rows in listed.items():
            about = findings.about(text)
            official = unique(
                {name: [row for row in split if row] for name, split in rows.items()}, about
            )
            official = {
                name: complete(split, problems, keep_incomplete, about)
                for name, split in official.items()
            }
            check_any(cls.name, official["train"], findings)
            train, val = _hold_out(official["train"])
            splits = {"train": train, "val": val, "test": official["test"]}
            counts += _count(text, rows, splits)
            for split, kept in splits.items():
                columns = ("id", "image", "text", "label")
                tables[f"{text}/{split}"] = to_table(kept, columns)
        report = Prepared(root / FOLDER, counts, findings, _remarks(copy))
        write_index(root, cls.name, tables, report)
        return report

    def _absent(self, path: Path, command: str) -> str:
        piece = TITLES if self._text == "title" else PAGES
        other = "page" if self._text == "title" else "title"
        return (
            f"{self._root} was prepared without {piece.path}, which data.text: {self._text} reads. "
            f"Put it at {(self._root / piece.path).absolute()} and run: {command}; or set "
            f"data.text: {other}."
        )


def _read(copy: Copy, findings: Findings, track: Track) -> dict[str, dict[str, list[Row | None]]]:
    """Rows by kind of text and official split."""
    listed: dict[str, dict[str, list[Row | None]]] = {}
    images = {split: copy.listed_images(split) for split in ("train", "test")}
    if copy.titles is not None:
        listed["title"] = {
            split: list(copy.read_titles(split, findings.about("title"))) for split in images
        }
        named = {row["image"] for rows in listed["title"].values() for row in rows if row}
        for split, found in images.items():
            for image in (copy.image_path(split, *place) for place in found):
                if image not in named:
                    findings.about("title").add("photo without a title", "left out", image)
    if copy.pages is not None:
        listed["page"] = {
            split: list(
                copy.read_pages(
                    split, track(found, len(found), f"{split} pages"), findings.about("page")
                )
            )
            for split, found in images.items()
        }
    return listed


def _hold_out(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Train and validation; the same for the same rows, whatever order a copy has them in."""
    ordered = sorted(rows, key=lambda row: str(row["id"]))
    count = min(_VAL, len(ordered) // 10)  # copies with some of the classes have fewer rows
    share = count / len(ordered)
    labels = [Food101.labels.index(row["label"]) for row in ordered]
    train, val = stratified_split(labels, (1 - share, share), _VAL_SEED)
    return [ordered[i] for i in train], [ordered[i] for i in val]


def _count(
    text: str, listed: Mapping[str, Sequence[Row | None]], splits: Mapping[str, Sequence[Row]]
) -> list[Count]:
    by_split, in_all = _PUBLISHED[text]
    sizes = {"train": len(listed["train"]) - len(splits["val"]), "val": len(splits["val"])}
    counts = [
        Count(split, sizes.get(split, len(listed["test"])), len(rows), by_split.get(split, ""))
        for split, rows in splits.items()
    ]
    named = [*counts, total(counts, in_all)]
    return [Count(f"{text}: {c.split}", c.listed, c.kept, c.published) for c in named]


def _remarks(copy: Copy) -> list[str]:
    if copy.titles is None:
        return ["No titles were found (texts/train_titles.csv): use data.text: page."]
    if copy.pages is None:
        return ["No pages were found (texts_txt/CLASS): data.text: title, the default, is there."]
    return []
