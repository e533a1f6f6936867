"""Label counts, by hand."""

from __future__ import annotations

from fusionkit.doctor import labels
from fusionkit.doctor.study import SplitStudy, Study


def study(task="single_label", classes=("a", "b", "c"), **splits):
    made = Study(task, list(classes) if classes else None, {})
    for name, targets in splits.items():
        rows = [str(i) for i in range(len(targets))]
        made.splits[name] = SplitStudy(rows, rows, list(targets))
    return made


def said(made):
    return {finding.code: finding for finding in labels.findings(made)}


def test_the_baseline_is_the_largest_class_of_training():
    counts = labels.tally(study(train=[0, 0, 0, 1], test=[0, 1, 1, 1]))
    assert counts["train"].counts == {"a": 3, "b": 1, "c": 0}
    assert (counts["train"].baseline, counts["test"].baseline) == (0.75, 0.25)


def test_in_regression_the_baseline_is_the_error_of_the_training_median():
    counts = labels.tally(study("regression", None, train=[1.0, 2.0, 9.0], test=[2.0, 6.0]))
    assert counts["test"].baseline == 2.0
    assert counts["train"].numbers["greatest"] == 9.0


def test_classes_that_are_absent_rare_or_untested():
    found = said(study(train=[0] * 40 + [1] * 3, val=[0, 1], test=[0, 2]))
    assert found["absent"].title == (
        "1 class without a training row: c; other splits have rows of c"
    )
    assert found["few"].title == "1 class with fewer than 10 training rows: b (3)"
    assert found["imbalance"].title.endswith("'a' has 40 training rows, 'b' 3 (13 : 1)")
    assert found["imbalance"].grade == "note"
    assert found["untested"].title == "1 class of training without a row in test: b"


def test_severe_imbalance_is_a_warning():
    assert said(study(train=[0] * 1000 + [1] * 10))["imbalance"].grade == "warning"
    assert "imbalance" not in said(study(train=[0] * 90 + [1] * 10))


def test_labels_that_are_out_of_range_do_not_count():
    made = study("multi_label", train=[(0, 1), (), (3,)])
    assert labels.tally(made)["train"].counts == {"a": 1, "b": 1, "c": 0}
    assert said(made)["label"].places[0].detail == "label: it is 3, classes are 0 .. 2"


def test_one_number_for_all():
    assert said(study("regression", None, train=[2.0, 2.0]))["constant"].grade == "warning"
