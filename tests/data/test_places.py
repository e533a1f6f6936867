import json
import zipfile

import fsspec
import pytest

from fusionkit.data.places import check_suffix, find_files, saved_splits, suffix_of
from fusionkit.errors import DataError


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("")
    return folder


def names(files):
    return [file.rpartition("/")[2] for file in files]


@pytest.mark.parametrize(
    ("file", "suffix"),
    [
        ("a/b.CSV", ".csv"),
        ("b.tsv.gz", ".tsv"),
        ("https://host/b.parquet", ".parquet"),
        ("zip://b.jsonl::s3://bucket/archive.zip", ".jsonl"),
    ],
)
def test_the_suffix_is_that_of_what_is_read(file, suffix):
    assert suffix_of(file) == suffix
    check_suffix(file)


@pytest.mark.parametrize("file", ["a.xlsx", "a.parquet.gz", "a.gz", "a"])
def test_other_suffixes_name_the_known_ones(file):
    with pytest.raises(DataError, match=r"Known: \.csv, .*\.arrow, \.feather; .* may end in \.gz"):
        check_suffix(file)


def test_a_glob_and_a_folder_give_files_in_natural_order(tmp_path):
    parts = ["part-2.parquet", "part-10.parquet", "part-1.parquet"]
    folder = touch(tmp_path / "shards", *parts, "_SUCCESS", ".part.parquet", "README.md")
    expected = ["part-1.parquet", "part-2.parquet", "part-10.parquet"]
    assert names(find_files(str(folder))) == expected
    assert names(find_files(str(folder / "part-*.parquet"))) == expected
    assert names(find_files(f"{tmp_path}/**/part-1*.parquet")) == expected[::2]


def test_a_file_with_brackets_in_its_name_is_that_file(tmp_path):
    touch(tmp_path, "t[1].csv", "t1.csv")
    assert names(find_files(str(tmp_path / "t[1].csv"))) == ["t[1].csv"]


def test_what_hugging_face_saved_has_shards_and_splits(tmp_path):
    folder = touch(tmp_path / "train", "data-1.arrow", "data-0.arrow", "stale.arrow")
    files = [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    assert names(find_files(str(folder))) == ["data-0.arrow", "data-1.arrow"]
    assert saved_splits(str(tmp_path)) is None
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert saved_splits(str(tmp_path)) == {
        "train": str(tmp_path / "train"),
        "test": str(tmp_path / "test"),
    }
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match=r"is not what save_to_disk writes: KeyError: 'splits'"):
        saved_splits(str(tmp_path))


def test_globs_over_urls(tmp_path):
    memory = fsspec.filesystem("memory")
    for name in ("b-10.csv", "b-9.csv", "c.csv"):
        memory.pipe(f"/places/{name}", b"t\n")
    assert names(find_files("memory://places/b-*.csv")) == ["b-9.csv", "b-10.csv"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/t.csv", "t\n")
    assert find_files(f"zip://in/*.csv::{tmp_path}/a.zip") == [f"zip://in/t.csv::{tmp_path}/a.zip"]
    for missing in ("memory://places/x*.csv", f"zip://x*.csv::{tmp_path}/a.zip"):
        with pytest.raises(DataError, match=r"No file is called .*x\*\.csv.* Correct `files`"):
            find_files(missing)


def test_what_is_not_there_or_not_clear(tmp_path):
    touch(tmp_path / "mixed", "a.csv", "b.parquet")
    touch(tmp_path / "empty", "a.txt")
    with pytest.raises(DataError, match=r"several formats: \.csv, \.parquet\. .*mixed/\*\.csv\"\."):
        find_files(str(tmp_path / "mixed"))
    with pytest.raises(DataError, match=r"empty holds no table\. Known: \.csv"):
        find_files(str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"No file is called .*t-\*\.csv"):
        find_files(str(tmp_path / "t-*.csv"))
    with pytest.raises(DataError, match=r"c\.csv does not exist\. Close names .*: a\.csv"):
        find_files(str(tmp_path / "mixed" / "c.csv"))
