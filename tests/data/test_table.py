import json
import pickle
import re
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import get_args

import jsonargparse
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fusionkit.data.rows import Modality
from fusionkit.data.table import FieldSpec, Table
from fusionkit.encoders import base
from fusionkit.errors import ConfigError, DataError
from fusionkit.registry import load

SHARED = Path(__file__).parents[3] / "shared" / "data"

SMALL = (
    "photo,title,kind,fold\n"
    "1.jpg,A red shirt,shirt,train\n"
    '2.jpg,"A ""blue"" hat, wool",hat,train\n'
    "3.jpg,,shirt,valid\n"
    "4.jpg,NA,hat,test\n"
)
FIELDS = {"image": "photo", "text": "title"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "small.csv").write_text(SMALL)
    return tmp_path


def small(folder, **arguments):
    arguments = {"fields": FIELDS, "label": "kind", "split": "fold"} | arguments
    return Table(files=str(folder / "small.csv"), **arguments)


def write(folder, text, name="t.csv"):
    (folder / name).write_text(text)
    return str(folder / name)


def targets(samples):
    return [sample.target for sample in samples]


def test_registry_can_load_it():
    assert load("dataset", "table") is Table


def test_modalities_are_those_of_encoders():
    assert get_args(Modality) == get_args(base.Modality)


def test_config_is_known_before_the_file_exists():
    table = Table(files="no.csv", fields=FIELDS, classes=["b", "a"])
    assert table.fields == {"image": "image", "text": "text"}
    assert (table.classes, table.outputs, table.task) == (["b", "a"], 2, "single_label")
    assert Table(files="no.csv", fields=FIELDS, task="regression").outputs == 1


def test_rows_of_a_csv(folder):
    table = small(folder)
    assert table.classes == ["hat", "shirt"]
    first, second = table.split("train")
    assert first.fields == {"image": str(folder / "1.jpg"), "text": "A red shirt"}
    assert second.fields["text"] == 'A "blue" hat, wool'
    assert targets(table.split("train")) == [1, 0]
    (val,) = table.split("val")
    assert (val.id, val.origin, val.fields["text"]) == ("3", "small.csv, row 3", "")
    (test,) = table.split("test")
    assert (test.fields["text"], test.target) == ("NA", 0)


def test_formats_read_the_same(folder):
    rows = [dict(zip(*pair, strict=True)) for pair in _cells(SMALL)]
    write(folder, "\ufeff" + "\n\n".join(map(json.dumps, rows)), "small.jsonl")
    write(folder, "\n".join(map(json.dumps, rows)), "small.json")
    pq.write_table(pa.Table.from_pylist(rows), folder / "small.parquet")
    tabs = ["\t".join(rows[0]), *("\t".join(r.values()).replace('"', '""') for r in rows)]
    write(folder, "\n".join(tabs), "small.tsv")
    expected = list(small(folder).split("predict"))
    for suffix in ("jsonl", "json", "parquet", "tsv"):
        files = {"train": str(folder / f"small.{suffix}")}
        found = Table(files=files, fields=FIELDS, label="kind").split("predict")
        assert [s.fields["image"] for s in found] == [s.fields["image"] for s in expected]
        assert found[0].fields == expected[0].fields
        assert found[2].origin == f"small.{suffix}, row 3"


def _cells(text):
    header, *lines = text.replace('"A ""blue"" hat, wool"', "A blue hat").splitlines()
    return [(header.split(","), line.split(",")) for line in lines]


def test_template_joins_columns(tmp_path):
    rows = [{"Flickr30K_ID": "7", "n": 3, "gold_label": "entailment"}] * 12
    file = write(tmp_path, "\n".join(map(json.dumps, rows)), "snli_ve.jsonl")
    fields = {"image": "flickr30k_images/{Flickr30K_ID}_{n:04d}.jpg"}
    table = Table(files=file, fields=fields, label="gold_label", root="/data")
    assert table.split("predict")[0].fields["image"] == "/data/flickr30k_images/7_0003.jpg"
    wrong = Table(files=file, fields={"image": "{Flickr30K_ID:04d}.jpg"})
    with pytest.raises(DataError, match=r"snli_ve.jsonl, row 1: field 'image' cannot be made"):
        wrong.split("predict")[0]


def test_samples_are_picklable_and_sliceable(folder):
    samples = small(folder).split("train")
    again = pickle.loads(pickle.dumps(samples))
    assert list(again) == list(samples) == samples[:]
    assert samples[-1] == samples[1]
    with pytest.raises(IndexError):
        samples[2]


def test_seeded_split_covers_every_row_and_repeats(tmp_path):
    lines = [f"{i}.jpg,t{i},c{i % 4}" for i in range(100)] + ["x.jpg,lone,rare"]
    file = write(tmp_path, "photo,title,kind\n" + "\n".join(lines))
    tables = [Table(files=file, fields=FIELDS, label="kind", id="title") for _ in range(2)]
    found, again = ([[s.id for s in t.split(n)] for n in ("train", "val", "test")] for t in tables)
    assert found == again
    assert sorted(chain(*found)) == sorted([f"t{i}" for i in range(100)] + ["lone"])
    assert "lone" in found[0]
    assert [len(part) for part in found] == [81, 10, 10]


def test_rows_of_a_group_come_into_one_split(tmp_path):
    lines = "".join(f"t{i},{i % 2},p{i // 6}\n" for i in range(300)) + "x,1,\ny,0,\n"
    file = write(tmp_path, "text,kind,patient\n" + lines)
    names = ("train", "val", "test")
    fields = {"text": "text", "patient": {"column": "patient", "modality": "text"}}
    for files, sizes in ((file, (242, 30, 30)), ({"train": file}, (272, 30, 0))):
        table = Table(files=files, fields=fields, label="kind", split_group="patient")
        splits = [table.split(name) for name in names]
        assert [len(split) for split in splits] == pytest.approx(sizes, abs=6)
        found = [{s.fields["patient"] for s in split} - {None, ""} for split in splits]
        assert sum(map(len, found)) == 50
        other = Table(
            files=files, fields=fields, label="kind", split_group="patient", split_seed=1
        ).split("val")
        assert {s.fields["text"] for s in other} != {s.fields["text"] for s in splits[1]}


def test_rows_of_no_group_are_alone(tmp_path):
    file = write(tmp_path, "t,y,g\n" + "".join(f"t{i},{i % 2},\n" for i in range(100)))
    table = Table(files=file, fields={"text": "t"}, label="y", split_group="g")
    assert [len(table.split(name)) for name in ("train", "val", "test")] == [80, 10, 10]


def test_groups_that_cannot_be_kept_together(tmp_path):
    file = write(tmp_path, "t,y,s,g\na,1,train,p\nb,0,val,p\nc,1,test,q\n")
    arguments = {"files": file, "fields": {"text": "t"}, "label": "y", "split_group": "g"}
    with pytest.raises(DataError, match=r"t.csv: with the rows of each 'g' kept .* \(it has 2\)"):
        Table(**arguments).split("train")
    with pytest.raises(DataError, match=r"column 's' says what is train .* for `split_group` to"):
        Table(**arguments, split="s").split("train")
    with pytest.raises(DataError, match=r"'h'.*`split_group`"):
        Table(**arguments | {"split_group": "h"}).split("train")


def test_missing_val_file_is_held_out_of_train(tmp_path):
    lines = "".join(f"{i}.jpg,t,{i % 2}\n" for i in range(40))
    files = {
        "train": write(tmp_path, "photo,title,kind\n" + lines, "a.csv"),
        "test": write(tmp_path, "photo,title,kind\nx.jpg,t,1\n", "b.csv"),
    }
    table = Table(files=files, fields=FIELDS, label="kind", id="photo")
    train, val, test = (table.split(name) for name in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (36, 4, 1)
    assert not {s.id for s in train} & {s.id for s in val}
    assert [s.origin for s in table.split("predict")][-2:] == ["a.csv, row 40", "b.csv, row 1"]
    assert (
        list(Table(files={"train": files["train"]}, fields=FIELDS, label="kind").split("test"))
        == []
    )


def test_numbers_as_classes_are_sorted_as_numbers(tmp_path):
    file = write(tmp_path, "text,kind\n" + "".join(f"t,{i % 11}\n" for i in range(44)))
    classes = Table(files=file, fields={"text": "text"}, label="kind").classes
    assert classes == [str(i) for i in range(11)]


def test_labels_of_json_types_match_declared_classes(tmp_path):
    file = write(tmp_path, '{"t": "x", "y": true}\n{"t": 5, "y": false}\n', "t.jsonl")
    table = Table(
        files={"train": file, "val": file}, fields={"text": "t"}, label="y", classes=[False, True]
    )
    assert table.classes == ["false", "true"]
    assert targets(table.split("train")) == [1, 0]
    assert table.split("train")[1].fields["text"] == "5"


def test_multi_label_from_text_list_and_columns(tmp_path):
    csv = write(tmp_path, "t,y,a,b\nx,b|a,1,1\ny,,0,0\nz,b,0,1\n")
    lines = [{"t": "x", "y": ["b", "a"]}, {"t": "y", "y": []}, {"t": "z", "y": ["b"]}]
    jsonl = write(tmp_path, "\n".join(map(json.dumps, lines)), "t.jsonl")
    for file, label in ((csv, "y"), (jsonl, "y"), (csv, ["a", "b"])):
        files = {"train": file, "val": file}
        table = Table(files=files, fields={"text": "t"}, label=label, task="multi_label")
        assert table.classes == ["a", "b"]
        assert targets(table.split("train")) == [(0, 1), (), (1,)]


def test_rare_label_beside_a_rarer_one_never_breaks_a_division(tmp_path):
    lines = "".join(f"t{i},c{i % 3}|d{i // 2}|e{i}\n" for i in range(40))
    file = write(tmp_path, "t,y\n" + lines)
    for files in (file, {"train": file}):
        for seed in range(5):
            table = Table(files, {"text": "t"}, "y", "multi_label", split_seed=seed)
            assert sum(len(table.split(name)) for name in ("train", "val", "test")) == 40
            assert table.outputs == 3 + 20 + 40


def test_regression_targets_are_numbers(tmp_path):
    file = write(tmp_path, "t,y\n" + "".join(f"x,{i / 2}\n" for i in range(60)))
    table = Table(files=file, fields={"text": "t"}, label="y", task="regression")
    assert table.classes is None
    assert [len(table.split(n)) for n in ("train", "val", "test")] == [48, 6, 6]
    found = targets([*table.split("train"), *table.split("val"), *table.split("test")])
    assert sorted(found) == [i / 2 for i in range(60)]


def test_other_labels_can_be_dropped(folder):
    table = small(folder, classes=["shirt"], other_labels="drop")
    assert [len(table.split(name)) for name in ("train", "val", "test", "predict")] == [1, 1, 0, 4]


def test_with_files_predicts_without_labels(folder):
    file = write(folder, "photo,title\n9.jpg,Boots\n", "new.csv")
    new = small(folder).with_files(file, classes=["hat", "shirt"])
    (sample,) = new.split("predict")
    assert (sample.fields["text"], sample.target) == ("Boots", None)
    assert (new.classes, new.fields) == (["hat", "shirt"], small(folder).fields)
    tested = small(folder).with_files({"test": str(folder / "small.csv")}, ["shirt", "hat"])
    assert targets(tested.split("test")) == [0, 1, 0, 1]


def test_jsonargparse_builds_it_from_a_mapping(folder):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Table, "data")
    fields = {"image": "photo", "summary": {"column": "title", "modality": "text"}}
    given = {"files": str(folder / "small.csv"), "label": "kind", "split": "fold"}
    given |= {"split_shares": [0.5, 0.5, 0], "classes": ["shirt", "hat"]}
    config = parser.parse_object({"data": given | {"fields": deepcopy(fields)}})
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # before 4.49
    spec = FieldSpec("title", "text")
    for table in (
        build(config).data,
        Table(**given, fields=fields),
        Table(**given, fields=fields | {"summary": spec}),
    ):
        assert table.fields == {"image": "image", "summary": "text"}
        assert table.split("train")[0].fields["summary"] == "A red shirt"
        assert targets(table.split("train")) == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fields": {}}, "`fields` is empty"),
        ({"fields": {"summary": "title"}}, "Field 'summary': 'summary' is no modality. Write summ"),
        ({"fields": {"image": "a/{id.jpg"}}, "Field 'image': 'a/{id.jpg' is no template: expected"),
        ({"fields": {"image": "a/{}.jpg"}}, "no column between the braces"),
        ({"files": {"training": "a.csv"}}, "`files` has the keys ['training']; give one file"),
        ({"files": {"train": "a.csv"}, "split": "s"}, "`split` is for a single file"),
        (
            {"files": {"train": "a.csv", "val": "b.csv"}, "split_group": "g"},
            "`split_group` is for rows that are divided here, but `files` has train and val",
        ),
        ({"label": ["a", "b"]}, "but task is single_label; set task: multi_label"),
        (
            {"label": ["a"], "task": "multi_label", "classes": ["a"]},
            "`label` lists columns, which are the classes",
        ),
        ({"task": "regression", "classes": ["a"]}, "`classes` does not go with task: regression"),
        ({"classes": ["1", 1]}, "`classes` names one twice: ['1', '1']"),
        ({"other_labels": "drop"}, "`other_labels: drop` needs `classes`"),
        ({"split_shares": (0.5, 0.1, 0.1)}, "`split_shares` is [0.5, 0.1, 0.1]; give shares"),
    ],
)
def test_contradictory_config(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Table(**{"files": "a.csv", "fields": FIELDS} | arguments)


def test_unknown_suffix():
    with pytest.raises(
        DataError, match=r"ends in '.xlsx'. Known: .csv, .tsv, .jsonl, .json, .parq"
    ):
        Table(files="a.xlsx", fields=FIELDS)


def test_missing_file_names_close_ones(folder):
    table = Table(files=str(folder / "smal.csv"), fields=FIELDS, label="kind")
    path = re.escape(str(folder / "smal.csv"))
    with pytest.raises(DataError, match=rf"{path} does not exist. Close names .*: small.csv"):
        table.split("train")
    with pytest.raises(DataError, match="nor does its folder"):
        Table(files="/nowhere/a.csv", fields=FIELDS).split("predict")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_missing_column_is_suggested(tmp_path, suffix):
    file = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"title": ["x"], "y": [1]}), file)
    else:
        file.write_text("title,y\nx,1\n" if suffix == "csv" else '{"title": "x", "y": 1}')
    message = (
        r"no column 'titel', which field 'text' asks for. Did you mean 'title'\? Columns: title, y"
    )
    with pytest.raises(DataError, match=message):
        Table(files=str(file), fields={"text": "titel"}).split("predict")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "t,y\na,1\n\nb\n", "t.csv, row 2: Expected 2 columns, got 1: b. Quote cells"),
        ("t.csv", 'y,t\n1,x\n2,"no end\n3,z\n', "t.csv, row 2: a quote is opened and never closed"),
        ("t.csv", "t,t\na,1\n", "t.csv has 2 columns 't'. Rename all but one."),
        ("t.csv", "", "Empty CSV file. Repair or replace the file."),
        ("t.csv", "t,y\n", "has no rows"),
        (
            "t.jsonl",
            '{"t": "a"}\n\n{"t": }\n',
            "t.jsonl, row 2: not a JSON object: Expecting value",
        ),
        ("t.json", '[{"t": "a"}]', "t.json, row 1: not a JSON object: it is a list. Write one"),
        ("t.jsonl", '{"t": "a"}\n{"t": [1]}', "t.jsonl: column 't' mixes list, str."),
        ("t.jsonl", "", "has no rows"),
        ("t.parquet", "t,y\n", "t.parquet cannot be read: Parquet file size is 4 bytes"),
    ],
)
def test_malformed_file(tmp_path, name, text, message):
    table = Table(files=write(tmp_path, text, name), fields={"text": "t"})
    with pytest.raises(DataError, match=re.escape(message)):
        table.split("predict")


def test_quoted_last_cell_may_hold_line_breaks(tmp_path):
    table = Table(files=write(tmp_path, 'y,t\n1,"two\nlines\n"\n'), fields={"text": "t"})
    assert table.split("predict")[0].fields["text"] == "two\nlines\n"


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"t,y\nok,1\ncaf\xe9,2\n")
    table = Table(files=str(tmp_path / "t.csv"), fields={"text": "t"})
    with pytest.raises(DataError, match=r"t.csv, row 2: .*UTF8 data. Save the file as UTF-8"):
        table.split("predict")


def test_label_that_is_not_in_training(tmp_path):
    file = write(tmp_path, "t,y,s\na,cat,train\nb,dog,train\nc,fox,val\n")
    table = Table(files=file, fields={"text": "t"}, label="y", split="s")
    with pytest.raises(
        DataError, match=r"t.csv, row 3: label 'fox' is not in .*: cat, dog. Correct"
    ):
        table.split("val")
    table = Table(files=file, fields={"text": "t"}, label="y", split="s", classes=["cat", "fox"])
    with pytest.raises(DataError, match=r"row 2: label 'dog' is not among .*: cat, fox. Correct"):
        table.split("train")


@pytest.mark.parametrize(
    ("task", "label", "cell", "message"),
    [
        ("single_label", "y", "", "t.csv, row 2: label column 'y' is empty; fill it in"),
        ("regression", "y", "many", "t.csv, row 2: label column 'y' is 'many', not a number"),
        ("regression", "y", "inf", "is 'inf', not a number"),
        ("multi_label", ["y"], "2", "t.csv, row 2: label column 'y' is '2'; a column of several"),
    ],
)
def test_bad_label_cell(tmp_path, task, label, cell, message):
    file = write(tmp_path, f"t,y\na,1\nb,{cell}\n")
    table = Table(files=file, fields={"text": "t"}, label=label, task=task)
    with pytest.raises(DataError, match=re.escape(message)):
        table.split("train")
    assert len(table.split("predict")) == 2


def test_null_multi_label_cell(tmp_path):
    file = write(tmp_path, '{"t": "a", "y": ["q"]}\n{"t": "b", "y": null}', "t.jsonl")
    table = Table(files=file, fields={"text": "t"}, label="y", task="multi_label")
    with pytest.raises(
        DataError, match=r"t.jsonl, row 2: label column 'y' is null; write an empty"
    ):
        table.split("train")


def test_empty_training_split_and_unknown_split_values(tmp_path):
    arguments = {"fields": {"text": "t"}, "label": "y", "split": "s"}
    table = Table(files=write(tmp_path, "t,y,s\na,1,dev\nb,1,test\n"), **arguments)
    for ask in (lambda: table.split("train"), lambda: table.classes):
        with pytest.raises(
            DataError, match=r"split train is empty. Column 's' has dev, test. Mark"
        ):
            ask()
    table = Table(files=write(tmp_path, "t,y,s\na,1,train\nb,1,tset\n"), **arguments)
    with pytest.raises(
        DataError, match=r"row 2: split column 's' is 'tset'. Write one of train, val"
    ):
        table.split("train")


def test_training_needs_a_label_and_a_training_file(folder):
    file = str(folder / "small.csv")
    with pytest.raises(DataError, match="`label` is not set"):
        Table(files=file, fields=FIELDS).split("train")
    with pytest.raises(DataError, match=r"names no training file. Add train: to it"):
        Table(files={"test": file}, fields=FIELDS, label="kind").split("train")


def test_an_empty_image_cell_is_a_missing_field(tmp_path):
    file = write(tmp_path, "photo,title\na.jpg,x\n,y\n,z\n")
    samples = Table(files=file, fields=FIELDS).split("predict")
    assert [sample.fields["image"] for sample in samples] == [str(tmp_path / "a.jpg"), None, None]


@pytest.mark.skipif(not SHARED.is_dir(), reason="real data is not here")
def test_real_tables_read():
    fashion = Table(
        files=str(SHARED / "fashion/products.csv"),
        fields={"image": "image", "text": "title"},
        label="gender",
        split="split",
    )
    assert fashion.outputs == 5
    sizes = {name: len(fashion.split(name)) for name in ("train", "val", "test", "predict")}
    assert sizes == {"train": 6709, "val": 958, "test": 1916, "predict": 9583}
    nlvr = Table(
        files=str(SHARED / "nlvr/sentences.jsonl"),
        fields={"image": "images/{id}.png", "text": "sentence"},
        label="label",
        split="split",
        classes=["false", "true"],
    )
    assert [len(nlvr.split(name)) for name in ("train", "val", "test")] == [10662, 1182, 990]
    for table in (fashion, nlvr):
        with Image.open(table.split("test")[0].fields["image"]) as image:
            assert image.convert("RGB").size in {(144, 144), (400, 100)}
