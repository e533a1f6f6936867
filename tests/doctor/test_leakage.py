"""What splits have in common, by hand."""

from __future__ import annotations

import pytest

from fusionkit.doctor import leakage
from fusionkit.doctor.study import FieldStudy, Row, Seen, Study


def study(train, test, modality="text", task="single_label"):
    """Rows of (value, label)."""
    made = Study(task, ["a", "b"], {"x": FieldStudy(modality, [])})
    for split, rows in (("train", train), ("test", test)):
        made.start(split)
        for i, (value, label) in enumerate(rows):
            digest = value.encode()
            made.add(split, Row(str(i), f"{split} {i}", label, {"x": Seen(digest=digest)}))
    return made


def said(*arguments, **more):
    return list(leakage.findings(study(*arguments, **more)))


UNIQUE = [(f"v{i}", i % 2) for i in range(40)]


def test_nothing_in_common():
    assert said(UNIQUE, [(f"w{i}", 0) for i in range(20)]) == []


def test_values_that_give_the_label_away():
    (found,) = said(UNIQUE, UNIQUE[:20])
    assert found.grade == "warning"
    assert found.title == (
        "Field 'x': 20 of 20 test rows hold what a row of training holds; training has the right "
        "label for 100 % of them, guessing the most frequent one is right for 50.0 %"
    )
    assert found.places[3].detail == "as train 3, same label"
    assert found.advice.startswith("A model can look the answer up.")


@pytest.mark.parametrize(
    ("modality", "grade", "advice"),
    [("text", "note", "It does not tell the label"), ("image", "warning", "Training knows them.")],
)
def test_values_that_do_not_tell_the_label(modality, grade, advice):
    test = [(f"v{i}", i // 2 % 2) for i in range(20)]
    (found,) = said(UNIQUE, test, modality=modality)
    assert "right label for 50.0 % of them" in found.title
    assert (found.grade, found.advice.startswith(advice)) == (grade, True)


def test_a_value_that_many_rows_share_is_what_is_learned_from():
    common = [(f"v{i % 4}", i % 2) for i in range(40)]
    (found,) = said(common, common[:20])
    assert "right label for 100 % of them" in found.title
    assert (found.grade, found.advice.startswith("Many rows share")) == ("note", True)


def opposing(sentences):
    """Each sentence holds of half of its four scenes; one of them is for the later split."""
    train, later = [], []
    for i in range(sentences):
        labels = [i % 2, i % 2, 1 - i % 2, 1 - i % 2]
        train += [(f"v{i}", label) for label in labels[1:]]
        later.append((f"v{i}", labels[0]))
    return train, later


def test_values_that_tell_the_wrong_label():
    (found,) = said(*opposing(100))
    assert found.grade == "warning"
    assert "right label for 0 % of them, guessing the most frequent one" in found.title
    assert found.advice == (
        "In test these values have labels that they have less often in training, so what is "
        "learned of them counts against a model there, and the best epoch is one that learned "
        "little. Keep all rows with one value in one split, as a table does with split_group: "
        "COLUMN."
    )


def test_unlike_classes_are_no_wrong_labels():
    """Seven in ten rows are 0, whatever their twin is: 0.7^2 + 0.3^2 = 58 % by chance."""
    pairs = [(i, j) for i in range(20) for j in range(20)]
    train = [(f"v{i},{j}", int(i % 10 < 3)) for i, j in pairs]
    (found,) = said(train, [(f"v{i},{j}", int(j % 10 < 3)) for i, j in pairs])
    assert "right label for 58.0 % of them, guessing the most frequent" in found.title
    assert (found.grade, found.advice.startswith("It does not tell")) == ("note", True)


def test_few_wrong_labels_may_be_chance():
    (found,) = said(*opposing(98))
    assert (found.grade, found.advice.startswith("It does not tell")) == ("note", True)


def test_a_few_rows_of_many_are_a_note():
    test = [("v1", 1), *((f"w{i}", 0) for i in range(400))]
    (found,) = said(UNIQUE, test, modality="image")
    assert found.grade == "note"
    assert found.title.endswith("training has the same label for 1 of 1")


def test_the_label_that_training_has_most_often_counts():
    train = [("v", 1), ("v", 0), ("v", 0)]
    (found,) = said(train, [("v", 0)] * 3 + [("v", 1)], modality="image")
    assert found.title.endswith("training has the same label for 3 of 4")


def test_numbers_are_the_same_or_not():
    train = [(f"v{i}", float(i)) for i in range(20)]
    test = [(f"v{i}", float(i + i % 2)) for i in range(20)]
    (found,) = said(train, test, modality="image", task="regression")
    assert found.title.endswith("training has the same label for 50.0 % of them")


def test_nearly_equal_values_are_named_once():
    made = study([("one", 0)], [("one", 0), ("won", 0)], modality="image")
    made.fields["x"].groups = {b"one": 1, b"won": 1}
    exact, near = leakage.findings(made)
    assert (exact.code, [place.index for place in exact.places]) == ("leak", [0])
    assert (near.code, [place.index for place in near.places]) == ("near_leak", [1])
