import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from fusionkit.cache.store import DIGEST, FeatureStore, StoredRows, StoreWriter, remove_unfinished
from fusionkit.encoders.base import KEEP, POOLED, TOKENS
from fusionkit.errors import DataError


def key(number: int) -> bytes:
    return (number + 1).to_bytes(16, "little")  # zeros at the end, which numpy takes off


def keys(*numbers: int) -> np.ndarray:
    return np.array([key(number) for number in numbers], dtype=DIGEST)


def pooled(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(5).astype(np.float32)


def tokens(number: int) -> np.ndarray:
    length = number % 4
    return np.random.default_rng(number).standard_normal((length, 3)).astype(np.float32)


def write(folder, numbers, **settings) -> None:
    with StoreWriter(folder, **settings) as writer:
        for number in numbers:
            writer.add(key(number), {"pooled": pooled(number), "tokens": tokens(number)})


def test_what_was_written_is_found_and_nothing_else(tmp_path):
    write(tmp_path, range(10))
    write(tmp_path, range(20, 23))
    store = FeatureStore(tmp_path)
    assert len(store) == 13
    found = store.find(keys(21, 3, 15, 256, 3 * 256))
    assert found.tolist()[2:] == [-1, -1, -1]
    for number, place in zip((21, 3), found.tolist(), strict=False):
        row = store[place]
        assert np.array_equal(row["pooled"], pooled(number))
        assert np.array_equal(row["tokens"], tokens(number))
    assert store.size == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_an_empty_store_finds_nothing(tmp_path):
    store = FeatureStore(tmp_path / "nowhere")
    assert len(store) == 0
    assert store.find(keys(1)).tolist() == [-1]
    assert store.find(keys()).tolist() == []


def test_rows_are_views_of_the_file(tmp_path):
    write(tmp_path, range(3))
    row = FeatureStore(tmp_path)[1]["pooled"]
    assert not row.flags.owndata
    assert not row.flags.writeable


def test_files_are_written_as_they_fill_up(tmp_path):
    write(tmp_path, range(10), most_bytes=60)
    assert len(list(tmp_path.glob("*.arrow"))) > 3
    assert len(FeatureStore(tmp_path)) == 10
    write(tmp_path / "timed", range(5), most_seconds=0.0)
    assert len(list((tmp_path / "timed").glob("*.arrow"))) == 5


def test_what_came_before_an_error_is_kept(tmp_path):
    writer = StoreWriter(tmp_path)
    writer.add(key(1), {"pooled": pooled(1)})
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert FeatureStore(tmp_path).find(keys(1)).tolist() == [0]


def test_a_grid_keeps_its_shape(tmp_path):
    grid = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with StoreWriter(tmp_path) as writer:
        writer.add(key(1), {"entering": grid})
    assert np.array_equal(FeatureStore(tmp_path)[0]["entering"], grid)


def test_half_precision_takes_half_the_space_and_refuses_what_is_too_large(tmp_path):
    with StoreWriter(tmp_path, "float16") as writer:
        writer.add(key(1), {"pooled": pooled(1)})
        with pytest.raises(DataError, match="too large for 16 bits.*dtype: float32"):
            writer.add(key(2), {"pooled": np.array([70_000.0])})
    kept = FeatureStore(tmp_path)[0]["pooled"]
    assert kept.dtype == np.float16
    assert np.allclose(kept, pooled(1), rtol=1e-3)


def test_an_unfinished_file_is_no_part_of_the_store(tmp_path):
    write(tmp_path, range(3))
    (tmp_path / "1.arrow.unfinished").write_bytes(b"half of")
    assert len(FeatureStore(tmp_path)) == 3
    remove_unfinished(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".arrow"]


@pytest.mark.parametrize("keep", [0, 100])
def test_a_damaged_file_is_named(tmp_path, keep):
    write(tmp_path, range(3))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"{file.name} is damaged: .* Delete it"):
        FeatureStore(tmp_path)


def test_a_store_travels_by_the_names_of_its_files(tmp_path):
    write(tmp_path, range(5))
    store = FeatureStore(tmp_path)
    write(tmp_path, range(5, 9))  # another process adds rows
    copy = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 500
    assert len(copy) == 5
    assert np.array_equal(copy[4]["pooled"], pooled(4))


def _add(folder, numbers):
    write(folder, numbers, most_bytes=200)


def test_several_processes_may_write_and_read_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add, args=(tmp_path, range(n, n + 40))) for n in (0, 40)]
    for process in writers:
        process.start()
    while any(process.is_alive() for process in writers):
        store = FeatureStore(tmp_path)  # whole rows at any time
        for place in range(len(store)):
            assert store[place]["pooled"].shape == (5,)
    assert [process.exitcode for process in writers] == [0, 0]
    store = FeatureStore(tmp_path)
    found = store.find(keys(*range(80)))
    assert sorted(found.tolist()) == list(range(80))
    assert all(np.array_equal(store[place]["pooled"], pooled(n)) for n, place in enumerate(found))


def test_rows_are_collated_like_features(tmp_path):
    write(tmp_path, (5, 7))
    store = FeatureStore(tmp_path)
    rows = StoredRows(store, store.find(keys(7, 6, 5)), padded=True)
    assert rows[1] is None
    batch = rows.collate([rows[0], rows[2]])
    assert set(batch) == {POOLED, TOKENS, KEEP}
    assert torch.equal(batch[POOLED], torch.tensor(np.stack([pooled(7), pooled(5)])))
    assert batch[TOKENS].shape == (2, 3, 3)
    assert batch[KEEP].tolist() == [[True, True, True], [True, False, False]]
    assert np.array_equal(batch[TOKENS][batch[KEEP]], np.concatenate([tokens(7), tokens(5)]))


def test_tokens_of_one_length_are_stacked(tmp_path):
    with StoreWriter(tmp_path, "float16") as writer:
        for number in (1, 2):
            writer.add(key(number), {"entering": np.full((2, 3), number)})
    store = FeatureStore(tmp_path)
    rows = StoredRows(store, np.array([1, 0]), layer=4)
    batch = rows.collate([rows[0], rows[1]])
    assert set(batch) == {"fusionkit.entering.4"}
    assert batch["fusionkit.entering.4"].dtype == torch.float32
    assert batch["fusionkit.entering.4"][:, 0, 0].tolist() == [2, 1]
