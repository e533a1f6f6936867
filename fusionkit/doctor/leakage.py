"""What several splits have in common, and whether it gives the answer away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from fusionkit.doctor.duplicates import Key, label_of, row_keys
from fusionkit.doctor.findings import Finding, Grade, Place, percent
from fusionkit.doctor.study import Study

_LATER = ("val", "test")

# A field that several splits share is harmless where its value does not tell the label: sentences
# that are asked of many images, say.
_GAIN = 0.1  # by which looking the label up must beat guessing the most frequent one
_LEAST = 10  # rows that it takes to say so

# Or where it tells the wrong one: of a sentence that holds of two scenes in four, say, the scenes
# that were drawn for validation are those whose label training has less often.
_ENOUGH = 100  # rows, of which ten points less than by chance are hardly chance

_RARE = 3  # rows of training with one value (median): what more rows share is like a category

_MANY = 0.005  # share of a split: fewer rows hardly change its metrics

_TOGETHER = "Keep all rows with one value in one split, as a table does with split_group: COLUMN."

# The same recording in two splits is the same thing in two splits, whatever the labels say.
_OF_ONE_THING = ("image", "audio", "video")


@dataclass(slots=True)
class Overlap:
    """Rows of one split that have a twin in training.

    Attributes:
        places: The rows, each with its twin.
        judged: How many of them have a label.
        right: How often the label that training has most often for a row's twins is the row's.
        guessed: How often the most frequent label of these rows is.
        chance: How often training's label would be, had rows nothing to do with their twins.
        shared: How many training rows hold what each of them holds.
    """

    places: list[Place] = field(default_factory=list)
    judged: int = 0
    right: int = 0
    guessed: int = 0
    chance: float = 0.0
    shared: list[int] = field(default_factory=list)

    @property
    def telling(self) -> bool:
        """Whether looking the label up beats guessing."""
        gain = self.right - self.guessed
        return self.judged >= _LEAST and gain >= _GAIN * self.judged

    @property
    def opposed(self) -> bool:
        """Whether looking the label up is worse than chance."""
        loss = self.chance - self.right
        return self.judged >= _ENOUGH and loss >= _GAIN * self.judged

    @property
    def rare(self) -> bool:
        """Whether few training rows hold what one of them holds."""
        return bool(self.shared) and median(self.shared) <= _RARE


def overlap(
    study: Study,
    split: str,
    keys: Sequence[Key],
    known: Sequence[Key],
    skip: set[int],
    shown: str,
    how: str = "as",
) -> Overlap:
    """The rows of a split whose key training has.

    Args:
        study: What was seen.
        split: Any but training.
        keys: What is compared, of each row of the split; None for nothing.
        known: The same of training.
        skip: Rows that were named before.
        shown: The field that is shown of each.
        how: How a row is like its twin.
    """
    train, rows = study.splits["train"], study.splits[split]
    labels: dict[Key, Counter[Hashable]] = {}
    twins: dict[Key, int] = {}
    wanted = {key for key in keys if key is not None}
    for index, key in enumerate(known):
        if key in wanted:
            twins.setdefault(key, index)
            labels.setdefault(key, Counter())[label_of(train.targets[index])] += 1
    found = Overlap()
    own: Counter[Hashable] = Counter()
    looked_up: Counter[Hashable] = Counter()
    for index, key in enumerate(keys):
        if key is None or key not in twins or index in skip:
            continue
        found.shared.append(labels[key].total())
        detail = f"{how} {train.origins[twins[key]]}"
        if split not in study.unlabelled:
            label = label_of(rows.targets[index])
            own[label] += 1
            found.judged += 1
            most = labels[key].most_common(1)[0][0]
            looked_up[most] += 1
            same = most == label
            found.right += same
            detail += f", {'same' if same else 'another'} label"
        found.places.append(study.place(split, index, shown, detail))
    found.guessed = max(own.values(), default=0)
    found.chance = sum(own[label] * looked_up[label] for label in own) / max(found.judged, 1)
    return found


def findings(study: Study) -> Iterator[Finding]:
    """What validation and test have in common with training: rows, then values, then near ones."""
    if "train" not in study.splits:
        return
    later = [split for split in _LATER if split in study.splits]
    named: dict[str, set[int]] = {split: set() for split in later}
    several = len(study.fields) > 1
    first = next(iter(study.fields))
    if several:
        known = row_keys(study, "train")
        found = {
            split: overlap(study, split, row_keys(study, split), known, set(), first)
            for split in later
        }
        yield from _say(study, None, found)
        _name(named, found)
    for name, own in study.fields.items():
        seen = {split: set(rows) for split, rows in named.items()}
        digests = {
            split: [digest or None for digest in column.digests]
            for split, column in own.columns.items()
        }
        found = {
            split: overlap(study, split, digests[split], digests["train"], seen[split], name)
            for split in later
        }
        yield from _say(study, name, found)
        _name(seen, found)
        if own.groups:
            groups = {
                split: [own.groups.get(digest) for digest in column.digests]
                for split, column in own.columns.items()
            }
            found = {
                split: overlap(
                    study, split, groups[split], groups["train"], seen[split], name, "nearly as"
                )
                for split in later
            }
            yield from _say(study, name, found, near=True)


def _name(named: dict[str, set[int]], found: dict[str, Overlap]) -> None:
    for split, rows in found.items():
        named[split] |= {place.index for place in rows.places}


def _say(
    study: Study, name: str | None, found: dict[str, Overlap], near: bool = False
) -> Iterator[Finding]:
    present = {split: rows for split, rows in found.items() if rows.places}
    if not present:
        return
    shares = " and ".join(
        f"{len(rows.places):,} of {len(study.splits[split]):,} {split} rows"
        for split, rows in present.items()
    )
    if name is None:
        what = f"{shares} are in training as well, the same {' and '.join(study.fields)}"
    else:
        what = f"Field {name!r}: {shares} hold "
        what += "nearly what a row of training holds" if near else "what a row of training holds"
    judged = sum(rows.judged for rows in present.values())
    right = sum(rows.right for rows in present.values())
    guessed = sum(rows.guessed for rows in present.values())
    telling = any(rows.telling for rows in present.values())
    one_thing = name is None or study.fields[name].modality in _OF_ONE_THING
    many = any(len(rows.places) >= _MANY * len(study.splits[s]) for s, rows in present.items())
    rare = any(rows.telling and rows.rare for rows in present.values())
    opposed: list[str] = []
    if name is not None and study.task == "single_label":
        opposed = [split for split, rows in present.items() if rows.opposed]
    grade: Grade = "warning" if many and (rare or one_thing or opposed) else "note"
    told = ""
    if 0 < judged < _LEAST:
        told = f"; training has the same label for {right} of {judged}"
    elif judged and study.task == "single_label":
        told = (
            f"; training has the right label for {percent(right, judged)} of them, guessing the "
            f"most frequent one is right for {percent(guessed, judged)}"
        )
    elif judged:
        told = f"; training has the same label for {percent(right, judged)} of them"
    yield Finding(
        grade,
        "near_leak" if near else "leak",
        f"{what}{told}",
        _advice(name, telling, rare, one_thing, opposed),
        name,
        tuple(place for rows in present.values() for place in rows.places),
    )


def _advice(
    name: str | None, telling: bool, rare: bool, one_thing: bool, opposed: Sequence[str]
) -> str:
    if name is None:
        return "Metrics flatter on them. Keep each in one split."
    if opposed:
        return (
            f"In {' and '.join(opposed)} these values have labels that they have less "
            f"often in training, so what is learned of them counts against a model there, and the "
            f"best epoch is one that learned little. {_TOGETHER}"
        )
    if rare:
        return f"A model can look the answer up. {_TOGETHER}"
    if one_thing:
        return f"Training knows them. {_TOGETHER}"
    if telling:
        return (
            "Many rows share these values, as they share a category: that is what is learned from."
        )
    return "It does not tell the label, so it need not harm; keep values apart to be sure."
