"""What the doctor calls failing fails in training, at the same row; what it passes trains."""

from __future__ import annotations

import pytest
from things import Things, found, origins

from fusionkit.config.validate import experiment_from_mapping
from fusionkit.errors import FusionkitError
from fusionkit.training.run import fit

ALLOWED = {"missing": {"allow": ["complement"]}}
LENIENT = {"missing": {"allow": ["complement"], "unreadable": True}}


def nothing(things: Things) -> None:
    pass


def no_such_file(things: Things) -> None:
    things.rows[7]["photo"] = "none.png"


def truncated(things: Things) -> None:
    path = things.folder / "50.png"
    path.write_bytes(path.read_bytes()[:200])


def no_image(things: Things) -> None:
    (things.folder / "70.png").write_text("<html>not found</html>")


def one_of_each(things: Things) -> None:
    no_such_file(things)
    truncated(things)
    no_image(things)


def empty_cell(things: Things) -> None:
    things.rows[4]["photo"] = ""


def empty_label(things: Things) -> None:
    things.rows[9]["kind"] = ""


def new_label_in_test(things: Things) -> None:
    things.rows[61]["kind"] = "square"


def no_split(things: Things) -> None:
    things.rows[3]["part"] = "tarin"


def one_class(things: Things) -> None:
    for row in things.rows:
        row["kind"] = "odd"


def moved_folder(things: Things) -> None:
    for i in range(len(things.rows)):
        (things.folder / f"{i}.png").unlink()


FAILING = [
    (no_such_file, {}, "unreadable", "things.csv, row 8"),
    (truncated, {}, "unreadable", "things.csv, row 51"),
    (no_image, {}, "unreadable", "things.csv, row 71"),
    (empty_cell, {}, "missing", "things.csv, row 5"),
    (empty_cell, {"missing": {"allow": ["main"]}}, "missing", "things.csv, row 5"),
    (no_such_file, ALLOWED, "unreadable", "things.csv, row 8"),
    (empty_label, {}, "label", "things.csv, row 10"),
    (new_label_in_test, {}, "label", "things.csv, row 62"),
    (no_split, {}, "data", "things.csv, row 4"),
    (one_class, {}, "data", "There is one class only"),
    (moved_folder, LENIENT, "unreadable", "values of field 'image' can be read"),
]

PASSING = [
    (nothing, {}),
    (empty_cell, ALLOWED),
    (one_of_each, LENIENT),
    (moved_folder, {"fusion": "main_only", "complement": None}),
]


@pytest.mark.parametrize(
    ("harm", "sections", "code", "says"), FAILING, ids=lambda v: getattr(v, "__name__", None)
)
def test_what_fails_fails_in_training_at_the_same_row(things, harm, sections, code, says):
    harm(things)
    report = things.examine(**sections)
    assert report.fails
    finding = found(report, code)
    assert finding.grade == "error"
    with pytest.raises(FusionkitError) as raised:
        fit(experiment_from_mapping(things.config(**sections)))
    assert says in str(raised.value)
    if says.startswith("things.csv"):
        listed = " ".join([finding.title, *(place.describe() for place in finding.places)])
        assert says in listed


@pytest.mark.parametrize(
    ("harm", "sections"), PASSING, ids=lambda value: getattr(value, "__name__", None)
)
def test_what_passes_trains(things, harm, sections):
    harm(things)
    assert not things.examine(**sections).fails
    assert fit(experiment_from_mapping(things.config(**sections))).metrics


def test_a_file_that_may_be_missing_is_a_warning(things):
    no_such_file(things)
    finding = found(things.examine(**LENIENT), "unreadable")
    assert (finding.grade, origins(finding)) == ("warning", ["things.csv, row 8"])


def test_a_baseline_that_would_fail_is_an_error(things):
    empty_cell(things)
    baselines = {"image only": {"main": {"name": "timm_vit", "model": "fusionkit/digits-vit"},
                                "complement": None, "fusion": "main_only",
                                "missing": {"allow": []}}}  # fmt: skip
    finding = found(things.examine(**ALLOWED, baselines=baselines), "missing")
    assert finding.grade == "error"
    assert "main 'timm_vit' of 'image only' cannot do without" in finding.title
    with pytest.raises(FusionkitError, match="row 5: field 'image' is missing"):
        fit(experiment_from_mapping(things.config(**ALLOWED, baselines=baselines)))
