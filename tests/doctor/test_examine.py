"""A table with one known fault after another."""

from __future__ import annotations

import json

import pytest
from things import LONG, found, origins, picture

from fusionkit.config.validate import experiment_from_mapping
from fusionkit.data.base import Sample
from fusionkit.doctor.run import examine
from fusionkit.doctor.study import UNLABELLED
from fusionkit.errors import ConfigError


def codes(report):
    return [(finding.grade, finding.code) for finding in report.findings]


def test_nothing_is_said_of_a_table_without_faults(things):
    report = things.examine()
    assert codes(report) == []
    assert report.verdict == "Training would run; nothing stands out."
    assert report.split_rows()[0] == (
        "train", "45", "even 33.3 %, odd 33.3 %, prime 33.3 %", "33.3 %",
    )  # fmt: skip
    text, image = report.field_rows()
    assert text[:5] == ("text", "main 'bert'", "0", "0 %", "75")
    assert text[5].startswith("3 words (median), at most 3; at most ")
    assert image == ("image", "complement 'timm_vit'", "0", "0 %", "75", "64 x 64; RGB")


def test_every_unreadable_file_is_listed_with_its_reason(things):
    things.rows[7]["photo"] = "none.png"
    (things.folder / "50.png").write_bytes(b"")
    report = things.examine()
    finding = found(report, "unreadable")
    assert finding.title == "2 values of field 'image' cannot be read"
    assert origins(finding) == ["things.csv, row 8", "things.csv, row 51"]
    assert "No such file" in finding.places[0].detail
    assert finding.places[0].value.endswith("none.png")
    assert "missing.allow: [complement], missing.unreadable: true" in finding.advice
    assert report.verdict == (
        "Training would fail: 2 values of field 'image' cannot be read (things.csv, row 8, "
        "things.csv, row 51)."
    )


def test_every_bad_label_is_listed_and_files_are_read_all_the_same(things):
    things.rows[2]["kind"] = things.rows[60]["kind"] = ""
    things.rows[50]["photo"] = "none.png"
    report = things.examine()
    assert [place.detail for place in found(report, "label").places] == [
        f"things.csv, row {row}: label column 'kind' is empty; fill it in or remove the row."
        for row in (3, 61)
    ]
    assert origins(found(report, "unreadable")) == ["things.csv, row 51"]
    assert list(report.study.splits) == [UNLABELLED]
    assert report.split_rows() == [("all", "75", "not known", "")]


def test_a_split_with_a_bad_label_is_read_without_labels(things):
    for row in (61, 62):
        things.rows[row]["kind"] = "square"
    things.rows[63]["photo"] = things.rows[1]["photo"]
    report = things.examine()
    assert len(found(report, "label").places) == 2
    assert {split: len(rows) for split, rows in report.study.splits.items()} == {
        "train": 45, "val": 15, "test": 15,
    }  # fmt: skip
    leak = found(report, "leak")
    assert leak.title == "Field 'image': 1 of 15 test rows hold what a row of training holds"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"files": "none.csv"}, "none.csv does not exist"),
        ({"files": "things.xlsx"}, "'things.xlsx' is not a table"),
        ({"label": "knid"}, "has no column 'knid', which `label` asks for. Did you mean 'kind'"),
        ({"fields": {"image": "photo", "text": "tilte"}}, "has no column 'tilte'"),
    ],
)
def test_data_that_cannot_be_opened(things, data, message):
    report = things.examine(data=data)
    assert codes(report)[0] == ("error", "data")
    assert message in report.findings[0].title
    assert report.fails
    json.dumps(report.to_json())


def test_a_config_that_cannot_be_built_is_no_matter_of_data(things):
    with pytest.raises(ConfigError, match="reads audio, but the data has no such field"):
        things.examine(complement={"name": "wav2vec2", "model": "x"})


def test_repeated_rows_and_rows_that_contradict_each_other(things):
    things.rows[10] = things.rows[1] | {"title": " Thing  NUMBER 1"}  # case and space: no matter
    things.rows[11] = things.rows[2] | {"kind": "even"}
    report = things.examine()
    repeated, opposed = found(report, "duplicate"), found(report, "contradiction")
    assert (repeated.grade, origins(repeated)) == ("note", ["things.csv, row 11"])
    assert repeated.places[0].detail == "as things.csv, row 2"
    assert (opposed.grade, origins(opposed)) == ("warning", ["things.csv, row 12"])


def test_what_splits_have_in_common(things):
    things.rows[60] = things.rows[0] | {"part": "test"}
    things.rows[46]["photo"] = things.rows[3]["photo"]
    report = things.examine()
    row, image = [f for f in report.findings if f.code == "leak"]
    assert row.title == (
        "1 of 15 test rows are in training as well, the same text and image; training has the "
        "same label for 1 of 1"
    )
    assert row.places[0].detail == "as things.csv, row 1, same label"
    assert image.title.startswith("Field 'image': 1 of 15 val rows hold what a row of training")
    assert image.places[0].detail == "as things.csv, row 4, another label"


def test_copies_that_were_saved_anew_are_found(things):
    copy = picture(5).resize((50, 50))
    copy.save(things.folder / "60.jpg", quality=60)
    things.rows[60]["photo"] = "60.jpg"
    picture(6).point(lambda level: min(255, level + 4)).save(things.folder / "10.png")
    report = things.examine()
    leak, near = found(report, "near_leak"), found(report, "near_duplicate")
    assert origins(leak) == ["things.csv, row 61"]
    assert leak.places[0].detail == "nearly as things.csv, row 6, another label"
    assert [p.detail for p in near.places] == ["nearly as things.csv, row 7"]
    assert near.title.endswith("(train 1), 1 of them with another label")


def test_long_texts_that_differ_in_a_letter_are_found_and_short_ones_are_not(things):
    things.rows[3]["title"] = LONG
    things.rows[4]["title"] = LONG.replace("style", "styles")
    things.rows[5]["title"] = "there is a tower with exactly two blocks and a blue block at the top"
    things.rows[6]["title"] = "there is a tower with exactly two blocks and a blue block at the toe"
    report = things.examine()
    assert origins(found(report, "near_duplicate")) == ["things.csv, row 5"]


def test_lengths_against_the_limit(things):
    for i in range(4):
        things.rows[i]["title"] = f"{LONG} {i}. {' '.join('abcdefgh'[i:])}"
    cut = found(things.examine(main={"max_length": 20}), "cut")
    assert (cut.grade, len(cut.places)) == ("warning", 4)
    assert "5.3 % of the texts are longer than the 20 tokens that main 'bert' reads" in cut.title
    things.rows[3]["title"] = "short"
    cut = found(things.examine(main={"max_length": 20}), "cut")
    assert cut.grade == "note"


def test_blank_images_and_texts_and_constant_fields(things):
    picture(0).resize((1, 1)).resize((40, 40)).save(things.folder / "3.png")
    things.rows[4]["title"] = ""
    report = things.examine()
    assert found(report, "blank", "image").grade == "warning"
    assert origins(found(report, "blank", "image")) == ["things.csv, row 4"]
    assert origins(found(report, "blank", "text")) == ["things.csv, row 5"]
    for row in things.rows:
        row["title"] = "a thing"
    constant = found(things.examine(), "constant")
    assert constant.title == "Field 'text': the same value in every row"


def test_a_placeholder_stands_out(things):
    for row in things.rows[:30]:
        row["photo"] = "30.png"
    finding = found(things.examine(), "placeholder")
    assert finding.title == "Field 'image': one value stands in 31 rows, the next in 1"


def test_sizes_against_what_the_encoder_takes(things):
    for i in range(10):
        picture(i).resize((4, 20)).save(things.folder / f"{i}.png")
    report = things.examine()
    cropped, upscaled = found(report, "cropped"), found(report, "upscaled")
    assert "of 13.3 % of them it sees 20.0 % of the area" in cropped.title
    assert "13.3 % of the images are smaller than the 8 x 8 that complement 'timm_vit'" in (
        upscaled.title
    )


def test_missing_values_that_are_allowed(things):
    for i in (1, 2, 46):
        things.rows[i]["photo"] = ""
    report = things.examine(missing={"allow": ["complement"]})
    missing = found(report, "missing")
    assert missing.grade == "note"
    assert "missing in 3 rows (train 4.4 %, val 6.7 %, test 0 %)" in missing.title
    for i in range(60, 75):
        things.rows[i]["photo"] = ""
    report = things.examine(missing={"allow": ["complement"]})
    assert found(report, "missing").grade == "warning"


def test_workers_see_what_one_process_sees(things):
    things.rows = things.rows * 6
    things.rows[7]["photo"] = "none.png"
    one, two = (
        examine(experiment_from_mapping(things.config()), workers).to_json() for workers in (0, 2)
    )
    assert one == two
    assert len(one["findings"]) > 1


def test_progress_is_told(things):
    told = []
    examine(experiment_from_mapping(things.config()), 0, lambda *what: told.append(what))
    assert told == [("train", 45, 45), ("val", 15, 15), ("test", 15, 15)]


def test_a_missing_tokenizer_is_said_and_words_are_counted(things, monkeypatch):
    from fusionkit.encoders.bert import Bert
    from fusionkit.errors import WeightsError

    def gone(self, train):
        raise WeightsError("Looked for a tokenizer of 'x'.")

    monkeypatch.setattr(Bert, "preprocessor", gone)
    report = things.examine()
    finding = found(report, "preprocessor")
    assert finding.grade == "warning"
    assert "lengths are in words: Looked for a tokenizer" in finding.title
    assert report.field_rows()[0][5] == "3 words (median), at most 3"
    assert not report.fails


def test_samples_of_a_plugin(tiny_config):
    report = examine(experiment_from_mapping(tiny_config))
    assert not report.fails
    tiny_config["data"]["unreadable"] = True
    tiny_config["data"]["lack"] = "b"
    report = examine(experiment_from_mapping(tiny_config))
    assert origins(found(report, "unreadable"))[0] == "tiny train, row 4"
    assert "missing in 34 rows, and complement 'tiny_complement'" in found(report, "missing").title


@pytest.mark.parametrize("target", [None, 2, -1, 0.5, "yes"])
def test_targets_of_a_plugin_that_cannot_be_trained_on(tiny_config, monkeypatch, target):
    from tiny import TinyData

    split = TinyData.split

    def harmed(self, name):
        samples = split(self, name)
        old = samples[2]
        samples[2] = Sample(old.id, old.fields, target, old.origin)
        return samples

    monkeypatch.setattr(TinyData, "split", harmed)
    finding = found(examine(experiment_from_mapping(tiny_config)), "label")
    assert (finding.grade, len(finding.places)) == ("error", 3)
    assert finding.places[0].origin == "tiny train, row 3"


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_other_tasks(tiny_config, task):
    tiny_config["data"]["task"] = task
    report = examine(experiment_from_mapping(tiny_config))
    assert not report.fails
    labels = report.to_json()["splits"]["train"]["labels"]
    assert set(labels["counts"]) == (set() if task == "regression" else {"no", "yes"})
    assert ("deviation" in labels["numbers"]) == (task == "regression")


def test_the_json_has_all_rows_and_plain_values(things):
    for i in range(20):
        things.rows[i]["photo"] = f"none{i}.png"
    report = json.loads(json.dumps(things.examine().to_json()))
    assert set(report) == {
        "format", "name", "fails", "verdict", "task", "splits", "fields", "findings",
    }  # fmt: skip
    assert report["fails"] is True
    assert report["splits"]["train"]["labels"]["counts"] == {"even": 15, "odd": 15, "prime": 15}
    assert report["fields"]["image"]["splits"]["train"] == {
        "rows": 45, "missing": 0, "unreadable": 20, "distinct": 25,
    }  # fmt: skip
    (finding,) = report["findings"]
    assert set(finding) == {"grade", "code", "title", "advice", "field", "rows"}
    assert len(finding["rows"]) == 20
    assert set(finding["rows"][0]) == {"split", "index", "id", "origin", "value", "detail"}
