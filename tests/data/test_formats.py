"""Files that are not what they should be: the message names file, row and what to do."""

import gzip
import json
import re

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from fusionkit.data import formats
from fusionkit.data.formats import StartAgain, Stream
from fusionkit.errors import DataError

TEXTS = ("csv", "tsv", "csv.gz", "tsv.gz")
ARROW = ("arrow", "stream.arrow", "feather", "lz4.feather")
ROWS = {"t": [f"text {i}" for i in range(5000)], "y": [f"{i % 3}" for i in range(5000)]}


def write(folder, name):
    """The same rows in any format."""
    path = folder / name
    table = pa.table(ROWS)
    kind = name.partition(".")[2]
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind in ("feather", "lz4.feather"):
        pa.feather.write_feather(table, path, "uncompressed" if kind == "feather" else "lz4")
    elif kind == "stream.arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    elif kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
    else:
        rows = zip(*ROWS.values(), strict=True)
        if "json" in kind:
            text = "".join(json.dumps({"t": t, "y": y}) + "\n" for t, y in rows)
        else:
            mark = "\t" if "tsv" in kind else ","
            text = f"t{mark}y\n" + "".join(f"{t}{mark}{y}\n" for t, y in rows)
        path.write_bytes(gzip.compress(text.encode()) if "gz" in kind else text.encode())
    return str(path)


def read(file, *columns):
    needed = {column: f"field {column!r}" for column in columns} if columns else None
    return pa.Table.from_batches(list(Stream(file, needed)))


@pytest.mark.parametrize(
    "kind",
    [*TEXTS, "jsonl", "json", "jsonl.gz", "parquet", *ARROW],
)
def test_every_format_gives_the_same_columns(tmp_path, kind):
    file = write(tmp_path, f"t.{kind}")
    assert read(file).to_pydict() == ROWS
    assert read(file, "y", "t").to_pydict() == {"y": ROWS["y"], "t": ROWS["t"]}
    with pytest.raises(DataError, match=r"no column 'tt', which field 'tt' asks for. Did you mean"):
        read(file, "tt")


def test_batches_are_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_BLOCK", 10_000)
    monkeypatch.setattr(formats, "_CSV_BLOCK", 10_000)
    for kind in ("csv", "jsonl", "parquet"):
        batches = list(Stream(write(tmp_path, f"t.{kind}"), None))
        assert len(batches) > 5
        assert max(batch.nbytes for batch in batches) < 25_000


def cut(file, share):
    with open(file, "rb+") as opened:
        opened.truncate(int(len(opened.read()) * share))


@pytest.mark.parametrize("kind", ["parquet", *ARROW])
@pytest.mark.parametrize("share", [0.5, 0.001])
def test_a_binary_file_that_ends_too_early(tmp_path, kind, share):
    file = write(tmp_path, f"t.{kind}")
    cut(file, share)
    with pytest.raises(DataError, match=rf"{re.escape(file)} cannot be read.*Repair or replace"):
        read(file)


def test_a_damaged_page_says_how_far_it_could_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_BLOCK", 10_000)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(ROWS), path, row_group_size=1000, compression="snappy")
    at = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[at : at + 400] = b"\xff" * 400
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet cannot be read after row [12],\d+: "):
        read(str(path))


@pytest.mark.parametrize("kind", ["csv.gz", "jsonl.gz"])
def test_a_packed_file_that_ends_too_early(tmp_path, kind):
    file = write(tmp_path, f"t.{kind}")
    cut(file, 0.5)
    with pytest.raises(DataError, match=rf"t\.{kind}( cannot be read|, row \d+: )"):
        read(file)


def test_rows_are_counted_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_CSV_BLOCK", 1000)
    good = [f"text {i},1" for i in range(2000)]
    for bad, message in (
        (b"one cell", "row 1501: Expected 2 columns, got 1: one cell. Quote cells"),
        (b"caf\xe9,1", "row 1501: CSV conversion error to string: invalid UTF8 data. Save the"),
    ):
        lines = [line.encode() for line in good]
        lines[1500] = bad
        (tmp_path / "t.csv").write_bytes(b"t,y\n" + b"\n".join(lines) + b"\n")
        with pytest.raises(DataError, match=re.escape(f"t.csv, {message}")):
            read(str(tmp_path / "t.csv"))
    lines = [json.dumps({"t": line}).encode() for line in good]
    lines[1500] = b'{"t": "x"'
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=r"t\.jsonl, row 1501: not a JSON object: Expecting ','"):
        read(str(tmp_path / "t.jsonl"))


def test_long_cells_are_read_in_larger_blocks_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_CSV_BLOCK", 1000)
    monkeypatch.setattr(formats, "_LONGEST", 10_000)
    file = tmp_path / "t.csv"
    file.write_text("t,y\n" + "a,1\n" * 500 + f"{'x' * 5000},2\n")
    stream = Stream(str(file), None)
    with pytest.raises(StartAgain):
        list(stream)
    assert pa.Table.from_batches(list(stream)).column("t")[-1].as_py() == "x" * 5000
    file.write_text("t,y\n" + "a,1\n" * 500 + '"' + "x,1\n" * 5000)
    stream = Stream(str(file), None)
    with pytest.raises(StartAgain):
        list(stream)
    with pytest.raises(DataError, match=r"t\.csv: after row \d+ comes a row of more than .* Is a"):
        list(stream)


def test_json_that_widens_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_BLOCK", 1000)
    rows = [{"t": 1, "v": [], "n": None, "s": i} for i in range(200)]
    rows += [{"t": "one", "v": [0.5], "n": "x", "s": 7, "new": 1.5}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stream = Stream(str(tmp_path / "t.jsonl"), None)
    with pytest.raises(StartAgain):
        list(stream)
    table = pa.Table.from_batches(list(stream))
    assert table.schema.field("t").type == pa.string()
    first, last = table.slice(0, 1).to_pylist()[0], table.slice(200).to_pylist()[0]
    assert first == {"t": "1", "v": [], "n": None, "s": 0, "new": None}
    assert last == {"t": "one", "v": [0.5], "n": "x", "s": 7, "new": 1.5}


def test_feather_of_the_first_version_is_named(tmp_path):
    (tmp_path / "t.feather").write_bytes(b"FEA1" + b"\0" * 100)
    with pytest.raises(DataError, match="Feather of version 1; save it again with a newer library"):
        read(str(tmp_path / "t.feather"))
