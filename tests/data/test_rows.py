"""Fields that are tables and vectors."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusionkit.config.arguments import check_arguments, plain
from fusionkit.data.rows import FieldSpec
from fusionkit.data.table import Table
from fusionkit.errors import ConfigError, DataError

ROWS = [{"age": 31, "sex": "f"}, {"age": None, "sex": "m"}, {"age": 4, "sex": None}]
TABLE = {"table": {"columns": ["age", "sex"]}}


def write(folder, name, text):
    (folder / name).write_text(text)
    return str(folder / name)


def values(file, fields, field=None):
    samples = Table(files=file, fields=fields).split("predict")
    return [sample.fields[field or next(iter(fields))] for sample in samples]


def test_a_table_field_maps_columns_to_cells_and_none_where_empty(tmp_path):
    lines = write(tmp_path, "t.jsonl", "\n".join(map(json.dumps, ROWS)))
    assert values(lines, TABLE) == ROWS
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    assert values(str(tmp_path / "t.parquet"), TABLE) == ROWS
    csv = write(tmp_path, "t.csv", 'sex,age,more\nf,31,x\nm,,x\n" ",4,x\n')
    texts = [{k: None if v is None else str(v) for k, v in row.items()} for row in ROWS]
    assert values(csv, TABLE) == texts
    assert list(values(csv, TABLE)[0]) == ["age", "sex"]


def test_a_table_field_of_one_column(tmp_path):
    file = write(tmp_path, "t.csv", "{age},text\n31,a\n,b\n")
    for spec in ("{age}", {"column": "{age}"}, {"columns": ["{age}"]}):  # never a template
        assert values(file, {"table": spec}) == [{"{age}": "31"}, {"{age}": None}]


def test_a_field_may_be_named_after_its_column_or_its_modality(tmp_path):
    file = write(tmp_path, "t.csv", "caption,text\na,b\n")
    assert values(file, {"caption": {"modality": "text"}}) == ["a"]
    assert values(file, {"text": {"column": "caption"}}) == ["a"]
    assert values(file, {"text": {}}) == ["b"]


def test_a_missing_column_of_a_table_is_suggested(tmp_path):
    file = write(tmp_path, "t.csv", "age,sex\n1,f\n")
    message = r"no column 'agee', which field 'table' asks for. Did you mean 'age'\? Columns: age"
    with pytest.raises(DataError, match=message):
        values(file, {"table": {"columns": ["sex", "agee"]}})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"columns": ["a", "b"], "modality": "text"},
            "Field 'f': columns is [a, b], but the modality is text; only a table has several",
        ),
        (
            {"columns": ["a"], "column": "b", "modality": "table"},
            "Field 'f': columns is [a], but column is 'b' as well. Leave out one of them.",
        ),
        ({"columns": [], "modality": "table"}, "columns is [], which names none, or one twice."),
        ({"columns": ["a", "a"], "modality": "table"}, "columns is [a, a], which names none, or"),
        (
            {"columns": ["a", "b"]},
            "Field 'f': 'f' is no modality. Write f: {columns: [a, b], modality: ...} of image",
        ),
    ],
)
def test_contradictory_field(spec, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Table(files="t.csv", fields={"f": spec})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"table": {"colums": ["a"]}}, "FieldSpec: Option 'colums' is not accepted."),
        ({"table": {"columns": "a"}}, '"columns": '),
        ({"meta": {"columns": ["a"], "modality": "tabel"}}, '"modality": '),
    ],
)
def test_a_config_is_checked_against_the_field(fields, message):
    _, problems = check_arguments(Table, "table", {"files": "t.csv", "fields": fields})
    (problem,) = problems
    assert problem[0] == "fields"
    assert message in problem[1]


def test_a_config_is_accepted_and_can_be_written_back():
    args = {"files": "t.csv", "fields": {"meta": {"columns": ["a", "b"], "modality": "table"}}}
    for _ in range(2):
        made, problems = check_arguments(Table, "table", args)
        assert not problems
        assert made["fields"]["meta"] == FieldSpec(None, "table", ["a", "b"])
        assert Table(**made).fields == {"meta": "table"}
        args = plain(made)


def test_vectors_read_the_same_from_every_format(tmp_path):
    rows = [[0.5, 1.0, -2.0], [3e-4, 0.0, 1.0]]
    lines = [{"vector": row} for row in rows]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "t.parquet")
    files = [
        write(tmp_path, "t.jsonl", "\n".join(map(json.dumps, lines))),
        str(tmp_path / "t.parquet"),
        write(tmp_path, "spaces.csv", "vector,y\n0.5 1  -2,1\n3e-4 0 1.0,1\n"),
        write(tmp_path, "t.tsv", "vector\ty\n0.5, 1, -2\t1\n0.0003,0,1\t1\n"),
        write(tmp_path, "lists.csv", 'vector,y\n"[0.5, 1, -2]",1\n" [3e-4, 0, 1.0]",1\n'),
    ]
    for file in files:
        assert values(file, {"vector": "vector"}) == rows, file


def test_a_vector_cell_may_be_a_sequence_or_a_path(tmp_path):
    file = write(tmp_path, "t.csv", 'v,y\n"[[1, 2], [3, 4]]",1\nfeatures/a.npy,1\n')
    found = values(file, {"vector": "v"})
    assert found == [[[1, 2], [3, 4]], str(tmp_path / "features/a.npy")]
    template = values(file, {"vector": {"column": "f/{y}.npy"}})
    assert template == [str(tmp_path / "f/1.npy")] * 2


@pytest.mark.parametrize(
    ("cell", "why"),
    [("1 two 3", "could not convert string to float: 'two'"), ("[1, 2", "Expecting ',' delimiter")],
)
def test_a_vector_cell_that_is_no_list_of_numbers(tmp_path, cell, why):
    file = write(tmp_path, "t.csv", f'v,y\n1 2 3,1\n"{cell}",1\n')
    message = rf"t.csv, row 2: field 'vector' is '{re.escape(cell)}', no list of numbers: {why}"
    with pytest.raises(DataError, match=message):
        values(file, {"vector": "v"})
