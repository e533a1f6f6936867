"""Tables from Python: frames, Arrow tables, data sets of Hugging Face."""

import io
import pickle
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fusionkit.data.memory import describe, is_table
from fusionkit.data.table import Table, table_like
from fusionkit.errors import ConfigError, DataError

FIELDS = {"image": "photo", "text": "title"}
NAMES = ["shirt", "hat", "coat"]  # not in alphabetical order


def png(shade):
    file = io.BytesIO()
    Image.new("L", (4, 4), shade).save(file, "png")
    return file.getvalue()


def columns(rows=40):
    return {
        "photo": [{"bytes": png(i), "path": None} for i in range(rows)],
        "title": [f"title {i}" for i in range(rows)],
        "kind": [i % 3 for i in range(rows)],
    }


@pytest.fixture
def features():
    return datasets.Features(
        {
            "photo": datasets.Image(),
            "title": datasets.Value("string"),
            "kind": datasets.ClassLabel(names=NAMES),
        }
    )


def table(data, **arguments):
    return Table("none.csv", **{"fields": FIELDS, "label": "kind"} | arguments).over(data)


def kinds():
    made = columns()
    frame = pd.DataFrame(made)
    return {
        "pandas": frame,
        "pyarrow": pa.table(made),
        "record batch": pa.RecordBatch.from_pydict(made),
        "datasets": datasets.Dataset.from_dict(made),
        "shuffled datasets": datasets.Dataset.from_dict(
            {name: cells[::-1] for name, cells in made.items()}
        ).select(range(39, -1, -1)),
        "categories": frame.assign(kind=frame["kind"].astype("category")),
    }


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_gives_the_samples_of_a_file(tmp_path, kind):
    pq.write_table(pa.table(columns()), tmp_path / "t.parquet")
    file = Table(str(tmp_path / "t.parquet"), FIELDS, "kind")
    held = table(kinds()[kind])
    assert held.classes == file.classes == ["0", "1", "2"]
    for split in ("train", "val", "test", "predict"):
        expected, found = file.split(split), held.split(split)
        assert [(s.id, s.fields, s.target) for s in found] == [
            (s.id, s.fields, s.target) for s in expected
        ]
        assert list(pickle.loads(pickle.dumps(found))) == list(found)
    name = type(kinds()[kind]).__name__
    assert held.split("predict")[6].origin == f"{name}, row 7"


def test_splits_are_a_mapping_under_any_of_their_names():
    frame = pd.DataFrame(columns())
    held = table({"train": frame[:30], "validation": frame[30:35], "test": frame[35:]})
    assert [len(held.split(name)) for name in ("train", "val", "test")] == [30, 5, 5]
    assert held.split("val")[1].origin == "DataFrame (val), row 2"
    held = table({"train": frame[:30], "test": frame[30:]})
    assert [len(held.split(name)) for name in ("train", "val", "test")] == [27, 3, 10]


def test_class_labels_of_hugging_face_name_the_classes(tmp_path, features):
    whole = datasets.Dataset.from_dict(columns(), features=features)
    saved = whole.train_test_split(0.25, seed=0)
    saved.save_to_disk(tmp_path / "saved")
    whole.to_parquet(tmp_path / "t.parquet")
    folder, file = str(tmp_path / "saved"), str(tmp_path / "t.parquet")
    made = [
        table(whole),
        table(saved),
        table(datasets.load_from_disk(folder)),
        *(Table(given, FIELDS, "kind") for given in (folder, f"{folder}/train", file)),
    ]
    for found in made:
        assert found.classes == NAMES
        for sample in found.split("train"):
            assert sample.target == int(sample.fields["text"].split()[1]) % 3
    assert [len(made[3].split(name)) for name in ("train", "val", "test")] == [27, 3, 10]
    assert made[3].split("test")[0].origin == "data-00000-of-00001.arrow, row 1"


def test_lists_of_class_labels_are_several_labels():
    names = datasets.List(datasets.ClassLabel(names=NAMES))
    features = datasets.Features({"title": datasets.Value("string"), "tags": names})
    cells = {"title": list("abcdef"), "tags": [[2, 0], [], [1], [2], [0], [1]]}
    whole = datasets.Dataset.from_dict(cells, features=features)
    held = table(
        {"train": whole, "val": whole}, fields={"text": "title"}, label="tags", task="multi_label"
    )
    assert held.classes == NAMES
    assert [s.target for s in held.split("train")] == [(0, 2), (), (1,), (2,), (0,), (1,)]


def test_a_hidden_class_label_is_an_empty_cell(features):
    whole = datasets.Dataset.from_dict({**columns(3), "kind": [0, -1, 2]}, features=features)
    with pytest.raises(DataError, match=r"Dataset \(train\), row 2: label column 'kind' is empty"):
        table({"train": whole}).split("train")


def test_a_saved_data_set_is_mapped_and_pickles_as_its_path(tmp_path, features):
    rows = columns(2000)
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    del rows
    loaded = datasets.load_from_disk(str(tmp_path / "saved"))
    for data in (table(loaded), Table(str(tmp_path / "saved"), FIELDS, "kind")):
        samples = data.split("train")
        content = pickle.dumps(samples)
        assert len(content) < 10_000 + samples.places.nbytes + samples.targets.values.nbytes
        assert pickle.loads(content)[7] == samples[7]


def test_cells_of_frames_are_what_people_put_there():
    frame = pd.DataFrame(
        {
            "photo": [Path("a.png"), None, "https://host/b.png"],
            "title": ["x", np.nan, 3],
            "vector": [np.arange(3.0), np.zeros(3), np.ones(3)],
            "age": [1.5, np.nan, 2],
        },
        index=[9, 9, 7],
    )
    fields = {**FIELDS, "vector": "vector", "table": {"columns": ["age"]}}
    found = [s.fields for s in table(frame, fields=fields, root="/data").split("predict")]
    assert [f["image"] for f in found] == ["/data/a.png", None, "https://host/b.png"]
    assert [f["text"] for f in found] == ["x", "", "3"]
    assert [f["vector"] for f in found] == [[0, 1, 2], [0, 0, 0], [1, 1, 1]]
    assert [f["table"]["age"] for f in found] == [1.5, None, 2]


@pytest.mark.parametrize("kind", kinds())
def test_a_wrong_column_is_suggested(kind):
    with pytest.raises(DataError, match=r"no column 'titel', which field 'text' asks for. Did you"):
        table(kinds()[kind], fields={"text": "titel"}).split("predict")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "Data is a pandas DataFrame, a pyarrow Table, a Dataset of Hugging Face's datasets,"),
        ([{"title": "x"}], "given list."),
        ({"trian": pd.DataFrame()}, "'trian' is no split; given trian. Give one for each of train"),
        ({"val": pa.table({}), "dev": pa.table({})}, "'dev' is a second split val; given val, dev"),
        (pd.DataFrame({"photo": [], "title": []}), "DataFrame has no rows. Give at least one row."),
        (pa.table({}).to_reader(), "given RecordBatchReader."),
        (
            datasets.Dataset.from_dict({"title": ["x"]}).to_iterable_dataset(),
            "A streamed data set was given, whose rows cannot be looked up. Load it without",
        ),
        (
            pd.DataFrame({"photo": [Image.new("L", (2, 2))], "title": ["x"]}),
            "DataFrame: column 'photo' holds Image, which is no cell of a table: Could not convert",
        ),
        (
            pd.DataFrame({"photo": ["a.png", ["b.png"]], "title": ["x", "y"]}),
            "DataFrame: column 'photo' mixes list, str. Write all of one kind.",
        ),
    ],
)
def test_what_is_no_table(data, message):
    with pytest.raises(DataError, match=re.escape(message)):
        table(data).split("predict")


def test_splits_of_two_kinds_contradict_each_other():
    with pytest.raises(ConfigError, match="`split` is for a single file, but `files` has one per"):
        table({"train": pd.DataFrame(columns())}, split="fold")


def test_a_config_says_what_the_data_was_and_reading_it_says_what_to_do():
    frame = pd.DataFrame(columns())
    assert describe(frame) == "(in memory) DataFrame, 40 rows, 3 columns"
    described = describe({"train": frame, "dev": datasets.Dataset.from_dict(columns(2))})
    assert described == {
        "train": "(in memory) DataFrame, 40 rows, 3 columns",
        "val": "(in memory) Dataset, 2 rows, 3 columns",
    }
    gone = Table(described, FIELDS, "kind")
    with pytest.raises(DataError, match=r"no file holds: DataFrame, 40 rows, 3 columns. Name"):
        gone.split("train")


def test_a_table_to_predict_on_needs_no_label():
    frame = pd.DataFrame(columns(3)).drop(columns="kind")
    trained = Table("none.csv", FIELDS, "kind", split="fold")
    assert [s.fields["text"] for s in table_like(trained, frame).split("predict")] == [
        "title 0",
        "title 1",
        "title 2",
    ]


def test_none_of_these_libraries_is_imported():
    code = (
        "import sys, fusionkit.data.memory as m, fusionkit.data.table\n"
        "assert not m.is_table([]) and not m.is_table('t.csv')\n"
        "sys.exit(str({'pandas', 'datasets', 'torch', 'fsspec'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert is_table(pd.DataFrame())
