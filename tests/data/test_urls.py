"""Tables and cells at URLs, in the process and in its workers."""

import io
import json
import zipfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from served import serve

from fusionkit.config.schema import LoaderConfig
from fusionkit.data import read
from fusionkit.data.loading import RoleInput, make_loader
from fusionkit.data.table import Table
from fusionkit.encoders.images import load_image
from fusionkit.errors import DataError, MissingExtraError

ROWS = [{"photo": f"images/{i}.png", "title": f"t {i}", "kind": "ab"[i % 2]} for i in range(40)]


class Shade:
    def __call__(self, raw):
        return float(load_image(raw).getpixel((0, 0)))

    def collate(self, rows):
        return {"shade": torch.tensor(rows)}


def contents():
    """Files by name: the same table in several formats, and its images."""
    lines = "photo,title,kind\n" + "".join(",".join(row.values()) + "\n" for row in ROWS)
    parquet, arrow = io.BytesIO(), io.BytesIO()
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, parquet)
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table)
    files = {
        "t.csv": lines.encode(),
        "t.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
        "t.parquet": parquet.getvalue(),
        "t.arrow": arrow.getvalue(),
    }
    for i in range(40):
        image = io.BytesIO()
        Image.new("L", (2, 2), i).save(image, "png")
        files[f"images/{i}.png"] = image.getvalue()
    return files


@pytest.fixture
def addresses(tmp_path):
    """Where the same files are: in memory, and in an archive."""
    memory = fsspec.filesystem("memory")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in contents().items():
            memory.pipe(f"/urls/{name}", content)
            archive.writestr(f"d/{name}", content)
    return ("memory://urls/{}", f"zip://d/{{}}::{tmp_path}/a.zip")


def shades(table, workers):
    samples = table.split("train")
    roles = [RoleInput("main", "image", Shade())]
    config = LoaderConfig(batch_size=4, workers=workers)
    batches = make_loader(samples, roles, "single_label", 2, config, train=False, seed=0)
    return [shade for batch in batches for shade in batch["inputs"]["main"]["shade"].tolist()]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet", "t.arrow"])
def test_a_table_at_a_url_and_the_images_beside_it(addresses, name, workers):
    for address in addresses:
        table = Table(address.format(name), {"image": "photo"}, "kind", split_shares=(1, 0, 0))
        expected = [float(row["photo"][7:-4]) for row in ROWS]
        assert shades(table, 0)[:3] == [0, 1, 2]  # what is open here is not shared with workers
        assert sorted(shades(table, workers)) == expected[:40]


def test_workers_fetch_over_http_after_this_process_has(tmp_path):
    """fsspec's HTTP runs in a thread of its own, which forked workers do not have."""
    (tmp_path / "images").mkdir()
    for name, content in contents().items():
        (tmp_path / name).write_bytes(content)
    with serve(tmp_path) as address:
        table = Table(f"{address}/t.csv", {"image": "photo"}, "kind", split_shares=(1, 0, 0))
        assert shades(table, 0) == shades(table, 2) == [float(i) for i in range(40)]


def test_a_local_table_with_images_elsewhere(tmp_path, addresses):
    rows = [dict(row) for row in ROWS]
    rows[1]["photo"] = addresses[1].format("images/7.png")
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    root = addresses[0].format("")
    table = Table(str(tmp_path / "t.jsonl"), {"image": "photo"}, "kind", root=root)
    shade = [load_image(s.fields["image"]).getpixel((0, 0)) for s in table.split("predict")]
    assert shade == [0, 7, *range(2, 40)]


def test_a_large_table_at_a_url_is_copied_once(addresses, monkeypatch, tmp_path):
    monkeypatch.setattr(read, "IN_MEMORY", 100)
    monkeypatch.setenv("FUSIONKIT_CACHE", str(tmp_path / "cache"))
    for address in addresses:
        for name in ("t.csv", "t.arrow"):
            samples = [
                Table(address.format(name), {"text": "title"}, id="photo").split("predict")
                for _ in range(2)
            ]
            assert list(samples[0]) == list(samples[1])
            assert samples[0][39].fields == {"text": "t 39"}
    assert len(list((tmp_path / "cache" / "tables").glob("*.arrow"))) == 4


def test_an_image_that_is_missing_or_broken_names_its_row_and_address(addresses):
    memory = fsspec.filesystem("memory")
    memory.pipe("/urls/images/3.png", b"no image")
    table = Table(addresses[0].format("t.csv"), {"image": "photo"}, "kind")
    message = r"t\.csv, row 4: field 'image' \('memory://urls/images/3\.png'\) cannot be read: .*"
    with pytest.raises(DataError, match=message + "in no format that PIL knows"):
        shades(table, 2)
    memory.rm("/urls/images/3.png")
    with pytest.raises(DataError, match=message + "it does not exist. Check the address"):
        shades(table, 2)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t-*.csv"])
def test_a_table_that_is_not_there(name):
    with pytest.raises(DataError, match=r"memory://nowhere/.*does not exist|No file is called"):
        Table(f"memory://nowhere/{name}", {"image": "photo"}).split("predict")
    with pytest.raises(MissingExtraError, match=r"smb:// needs a library that is not installed"):
        Table(f"smb://host/{name}", {"image": "photo"}).split("predict")


def test_a_malformed_table_at_a_url_names_the_row():
    fsspec.filesystem("memory").pipe("/urls/bad.csv", b"t,y\na,1\nb\n")
    with pytest.raises(DataError, match=r"bad\.csv, row 2: Expected 2 columns, got 1: b\. Quote"):
        Table("memory://urls/bad.csv", {"text": "t"}).split("predict")
