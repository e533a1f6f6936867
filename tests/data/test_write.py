import gzip

import pyarrow as pa
import pytest

from fusionkit.data.read import read_columns
from fusionkit.data.write import check_output, check_types, write_table
from fusionkit.errors import DataError

TABLE = pa.table({"t": ["a", "b"], "y": [["x", "y"], ["z"]], "p": [0.5, 0.25]})


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.feather", "t.jsonl", "t.jsonl.gz"])
def test_what_is_written_reads_the_same(tmp_path, name):
    write_table(TABLE, tmp_path / "new" / name)
    assert read_columns(tmp_path / "new" / name).to_pydict() == TABLE.to_pydict()
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_lists_are_text_in_csv(tmp_path):
    write_table(TABLE, tmp_path / "t.csv.gz")
    text = gzip.decompress((tmp_path / "t.csv.gz").read_bytes()).decode()
    assert text == '"t","y","p"\n"a","x|y",0.5\n"b","z",0.25\n'


@pytest.mark.parametrize(
    ("column", "name", "why"),
    [
        ([b"x"], "t.csv", "Column 'c' holds binary, which .csv cannot hold. Write .parquet or"),
        ([{"bytes": b"x", "path": "y"}], "t.jsonl", "which .jsonl cannot hold"),
        ([{"a": 1}], "t.tsv", "Column 'c' holds struct<a: int64>, which .tsv cannot hold"),
        ([[[1]]], "t.csv", "which .csv cannot hold"),
    ],
)
def test_what_a_format_cannot_hold(tmp_path, column, name, why):
    table = pa.table({"c": column})
    with pytest.raises(DataError, match=why):
        check_types(table.schema, name)
    with pytest.raises(DataError, match=why):
        write_table(table, tmp_path / name)
    write_table(table, tmp_path / "t.parquet")


def test_tables_are_written_to_this_machine():
    with pytest.raises(DataError, match=r"'s3://b/t\.csv' is a URL\. Write to a path on this mach"):
        check_output("s3://b/t.csv")
