"""Large tables are mapped, and are the same tables."""

import json
import os
import pickle
import subprocess
import sys

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from fusionkit.data import formats, mapped, read
from fusionkit.data.read import read_columns, read_source
from fusionkit.data.table import Table
from fusionkit.errors import DataError

ROWS = [
    {"photo": f"{i}.jpg", "title": f"title {i}", "kind": f"k{i % 3}", "tags": ["a", "b"][: i % 3]}
    for i in range(3000)
]


@pytest.fixture(autouse=True)
def _small_room(monkeypatch, tmp_path):
    """Nothing fits into memory, and blocks are small."""
    monkeypatch.setenv("FUSIONKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(read, "IN_MEMORY", 1000)
    monkeypatch.setattr(formats, "_BLOCK", 10_000)
    monkeypatch.setattr(formats, "_CSV_BLOCK", 10_000)


def write(folder, name):
    path, table = folder / name, pa.Table.from_pylist(ROWS)
    if name.endswith("parquet"):
        pq.write_table(table, path)
    elif name.endswith("feather"):
        pa.feather.write_feather(table, path, "lz4")
    elif name.endswith("arrow"):
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=500)
    elif name.endswith("jsonl"):
        path.write_text("\n".join(map(json.dumps, ROWS)))
    else:
        rows = [{**row, "tags": "|".join(row["tags"])} for row in ROWS]
        lines = [",".join(ROWS[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return str(path)


def copies(folder):
    return sorted((folder / "cache" / "tables").glob("*.arrow"))


def samples(file, task="multi_label", label="tags"):
    return Table(file, {"image": "photo", "text": "title"}, label=label, task=task).split("train")


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet", "t.feather", "t.arrow"])
@pytest.mark.parametrize(("task", "label"), [("multi_label", "tags"), ("single_label", "kind")])
def test_a_mapped_table_gives_the_samples_of_one_in_memory(
    tmp_path, monkeypatch, name, task, label
):
    file = write(tmp_path, name)
    found = samples(file, task, label)
    assert len(copies(tmp_path)) == (name != "t.arrow")
    assert pa.total_allocated_bytes() < 2e6
    again = samples(file, task, label)
    assert len(copies(tmp_path)) == (name != "t.arrow")
    monkeypatch.setattr(read, "IN_MEMORY", 1 << 30)
    monkeypatch.setenv("FUSIONKIT_CACHE", str(tmp_path / "other"))
    expected = list(samples(file, task, label))
    assert list(found) == list(again) == expected
    assert len(expected) > 2000


@pytest.mark.parametrize("name", ["t.csv", "t.arrow"])
def test_a_mapped_table_pickles_as_its_path(tmp_path, name):
    found = samples(write(tmp_path, name))
    content = pickle.dumps(found)
    assert len(content) < 100_000 + found.places.nbytes
    assert b"title 17" not in content
    assert list(pickle.loads(content)) == list(found)


def test_a_file_that_has_changed_is_copied_anew(tmp_path):
    file = write(tmp_path, "t.csv")
    before = read_columns(file, {"title": "it"}).column("title")[0].as_py()
    with open(file, "r+") as opened:
        opened.write(opened.read(0) + ",".join(ROWS[0]) + "\n0.jpg,TITLE 0")
    os.utime(file, ns=(1, 1))
    after = read_columns(file, {"title": "it"}).column("title")[0].as_py()
    assert (before, after) == ("title 0", "TITLE 0")
    assert len(copies(tmp_path)) == 2


def test_the_copy_holds_what_is_asked_for_in_the_order_asked(tmp_path):
    file = write(tmp_path, "t.jsonl")
    for columns in (["title", "kind"], ["kind", "title"], ["title"]):
        table = read_columns(file, dict.fromkeys(columns, "it"))
        assert table.column_names == columns
        assert table.column("title")[7].as_py() == "title 7"
    assert len(copies(tmp_path)) == 2
    assert read_columns(file).column_names == list(ROWS[0])


def test_json_that_widens_late_is_one_column(tmp_path):
    rows = [{"t": i} for i in range(3000)] + [{"t": "last"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    column = read_columns(str(tmp_path / "t.jsonl")).column("t")
    assert (column.type, column[5].as_py(), column[3000].as_py()) == (pa.string(), "5", "last")


def test_dictionaries_are_written_out(tmp_path):
    kinds = pa.array([row["kind"] for row in ROWS]).dictionary_encode()
    tags = pa.ListArray.from_arrays(list(range(len(ROWS) + 1)), kinds)
    pq.write_table(pa.table({"kind": kinds, "tags": tags}), tmp_path / "t.parquet")
    table = read_columns(str(tmp_path / "t.parquet"))
    assert [field.type for field in table.schema] == [pa.string(), pa.list_(pa.string())]
    assert table.slice(4, 1).to_pylist() == [{"kind": "k1", "tags": ["k1"]}]


def test_shards_share_the_room_and_rows_are_counted_in_each(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "IN_MEMORY", 100_000)
    for number in range(3):
        write(tmp_path, f"t-{number}.csv")
    source = read_source(f"{tmp_path}/t-*.csv", None, {"title": "it"})
    assert [part.again is None for part in source.parts] == [True, True, False]
    assert source.origin(2999) == "t-0.csv, row 3000"
    assert source.origin(6001) == "t-2.csv, row 2"
    assert source.cell("title", 6001) == "title 1"


def test_a_malformed_row_leaves_no_copy(tmp_path):
    file = write(tmp_path, "t.csv")
    with open(file, "a") as opened:
        opened.write("one cell\n")
    with pytest.raises(DataError, match=r"t\.csv, row 3001: Expected 4 columns, got 1"):
        read_columns(file)
    left = {path.suffix for path in (tmp_path / "cache" / "tables").iterdir()}
    assert left == {".lock"}


def test_a_cache_folder_that_cannot_be_written_says_what_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FUSIONKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cache folder cannot be written to: .* FUSIONKIT_CACHE"):
        read_columns(write(tmp_path, "t.csv"))


def test_several_processes_make_one_copy(tmp_path):
    file = write(tmp_path, "t.csv")
    code = (
        "import sys; from fusionkit.data import read; read.IN_MEMORY = 1000\n"
        "print(len(read.read_columns(sys.argv[1])))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, file], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[0] for process in started] == ["3000\n"] * 3
    assert len(copies(tmp_path)) == 1


def test_memory_stays_flat_while_a_file_is_copied(tmp_path):
    path = tmp_path / "t.csv"
    with path.open("w") as file:
        file.write("t\n")
        for i in range(100_000):
            file.write(f"{'x' * 400} {i}\n")
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    real = mapped._without_dictionaries

    def watch(batch):
        nonlocal most
        most = max(most, pool.bytes_allocated() - before)
        return real(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped, "_without_dictionaries", watch)
        assert len(read_columns(str(path))) == 100_000
    assert 0 < most < path.stat().st_size / 10


def test_files_of_other_columns_or_types_are_no_one_table(tmp_path):
    pq.write_table(pa.table({"t": [1], "u": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"t": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has the columns t, a\.parquet has t, u\."):
        read_columns(str(tmp_path))
    with pytest.raises(DataError, match=r"columns of different types: .* Save each column with"):
        read_columns(str(tmp_path), {"t": "it"})


@pytest.mark.parametrize("make", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_file_to_map_that_ends_too_early(tmp_path, make, share):
    path = tmp_path / "t.arrow"
    table = pa.Table.from_pylist(ROWS)
    with make(path, table.schema) as writer:
        writer.write_table(table)
    assert read_columns(path).to_pylist() == ROWS
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match=r"t\.arrow cannot be read: .* Repair or replace the file"):
        read_columns(path)
