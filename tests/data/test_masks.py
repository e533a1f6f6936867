"""Masks are drawn to the sample, written, read, and fit only the data they were made for."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fusionkit.data.base import Sample
from fusionkit.data.masks import Mask, draw_mask, read_mask
from fusionkit.data.missing import ids_of, lacks
from fusionkit.data.table import Table
from fusionkit.errors import ConfigError, DataError


def full(rows: int, *fields: str) -> dict[str, np.ndarray]:
    return {field: np.ones(rows, dtype=bool) for field in fields}


def shares(left) -> dict[str, float]:
    return {field: 1 - flags.mean() for field, flags in left.items()}


def test_the_share_is_exact_and_the_draw_follows_the_seed():
    present = full(200, "image", "text")
    first, again = (draw_mask(present, ["image"], 0.3, (1, 0)) for _ in range(2))
    assert shares(first) == {"image": pytest.approx(0.3)}
    assert np.array_equal(first["image"], again["image"])
    for other in ((2, 0), (1, 1)):
        assert not np.array_equal(
            first["image"], draw_mask(present, ["image"], 0.3, other)["image"]
        )
    assert present["image"].all()


def test_a_draw_is_the_same_on_every_machine():
    left = draw_mask(full(12, "image", "text"), ["image"], 0.5, (0, 2))["image"]
    assert "".join(map(str, left.astype(int))) == "000100111110"


def test_fields_are_drawn_independently_whatever_their_order():
    present = full(400, "a", "b", "c")
    both = draw_mask(present, ["a", "b"], 0.5, (0, 0))
    assert list(draw_mask(present, ["b", "a"], 0.5, (0, 0))) == ["b", "a"]
    for field in "ab":
        alone = draw_mask(present, [field], 0.5, (0, 0))[field]
        assert np.array_equal(alone, both[field])
    assert 0.15 < (~both["a"] & ~both["b"]).mean() < 0.35


def test_what_is_missing_at_one_rate_is_missing_at_a_higher_one():
    present = full(100, "image", "text")
    drawn = [draw_mask(present, ["image"], rate, (0, 0))["image"] for rate in (0.2, 0.5, 1.0)]
    assert [int((~left).sum()) for left in drawn] == [20, 50, 100]
    assert not (drawn[1] & ~drawn[0]).any()


@pytest.mark.parametrize(
    ("fields", "rate"), [("ab", 0.5), ("ab", 0.4), ("abc", 2 / 3), ("abc", 0.6)]
)
def test_every_sample_keeps_a_field_and_the_shares_stay_exact(fields, rate):
    for seed in range(5):
        left = draw_mask(full(300, *fields), list(fields), rate, (seed, 0))
        assert np.any(list(left.values()), axis=0).all()
        assert shares(left) == {field: pytest.approx(round(rate * 300) / 300) for field in fields}


def test_what_the_data_lacks_counts_and_stays_missing():
    present = full(100, "a", "b")
    present["a"][:10] = False
    present["b"][5:35] = False
    left = draw_mask(present, ["a", "b"], 0.3, (0, 0))
    for field in "ab":
        assert not left[field][~present[field]].any()
        assert shares(left)[field] == pytest.approx(0.3)
    nothing = np.flatnonzero(~left["a"] & ~left["b"])
    assert nothing.tolist() == [5, 6, 7, 8, 9]  # as in the data
    lacking_more = draw_mask(present, ["b"], 0.1, (0, 0))
    assert np.array_equal(lacking_more["b"], present["b"])


def test_where_nobody_can_spare_a_field_the_share_stays_below_the_rate():
    present = {"a": np.array([True, True, False, False]), "b": np.array([True, True, True, True])}
    present["b"][:2] = False
    left = draw_mask(present, ["a"], 1.0, (0, 0))
    assert left["a"].tolist() == [True, True, False, False]


def test_a_rate_that_leaves_nothing_is_refused():
    message = "Without 60% of each of a, b, some samples would have nothing left; take at most 50%"
    with pytest.raises(ConfigError, match=message):
        draw_mask(full(10, "a", "b"), ["a", "b"], 0.6, (0, 0))
    draw_mask(full(10, "a", "b", "c"), ["a", "b"], 0.6, (0, 0))


SAMPLES = [Sample(f"id {i}", {"a": i, "t": "x" * i}, i, f"t.csv, row {i + 11}") for i in range(4)]


@pytest.fixture
def file(tmp_path):
    present = {"a": np.array([True, False, True, False]), "t": np.array([True, True, False, True])}
    mask = Mask("m.csv", {"test": ids_of(SAMPLES)}, {"test": present})
    mask.write(tmp_path / "deep" / "m.csv")
    return tmp_path / "deep" / "m.csv"


def test_a_mask_is_a_small_readable_file(file):
    assert file.read_text() == (
        "split,row,id,a,t\ntest,1,id 0,1,1\ntest,2,id 1,0,1\ntest,3,id 2,1,0\ntest,4,id 3,0,1\n"
    )
    assert [path.name for path in file.parent.iterdir()] == ["m.csv"]


def test_a_mask_takes_fields_away_and_nothing_else(file):
    mask = read_mask(str(file), ["a", "t"])
    masked = mask.apply("test", SAMPLES)
    assert [s.fields["a"] for s in masked] == [0, None, 2, None]
    assert [s.fields["t"] for s in masked] == ["", "x", None, "xxx"]
    assert [s.target for s in masked] == [0, 1, 2, 3]
    assert masked[0] is SAMPLES[0]
    assert masked[1].origin == "t.csv, row 12 (masked by m.csv)"
    assert [s.id for s in masked[2:]] == ["id 2", "id 3"]
    assert lacks(masked, "a", empty=False).tolist() == [False, True, False, True]
    assert lacks(masked, "t", empty=True).tolist() == [True, False, True, False]
    assert ids_of(masked) == ids_of(SAMPLES)
    assert mask.apply("train", SAMPLES) is SAMPLES


def test_ids_come_back_as_they_were(tmp_path):
    odd = ['a,"b"', "", " x ", "zwei\nZeilen", "007"]
    mask = Mask("m.csv", {"val": odd}, {"val": full(5, "a")})
    mask.write(tmp_path / "m.csv")
    assert read_mask(str(tmp_path / "m.csv"), ["a"]).ids == {"val": odd}


def test_a_table_is_masked_without_making_its_samples(tmp_path):
    (tmp_path / "t.csv").write_text("photo,title\n1.png,a\n2.png,\n,c\n")
    table = Table(files=str(tmp_path / "t.csv"), fields={"image": "photo", "text": "title"})
    samples = table.split("predict")
    mask = Mask("m.csv", {"test": ids_of(samples)}, {"test": {"text": np.array([0, 1, 1]) > 0}})
    masked = mask.apply("test", samples)
    assert lacks(masked, "image", empty=True).tolist() == [False, False, True]
    assert lacks(masked, "text", empty=True).tolist() == [True, True, False]
    assert lacks(masked, "text", empty=False).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("id 2", "id 9", "m.csv: row 3 of test has the id 'id 9', in the data (t.csv, row 13) it "
         "has 'id 2'. A mask belongs to the data it was made for; make another with `fus"),
        ("test,4,id 3,0,1\n", "", "m.csv has 3 rows of test, the data has 4. A mask belongs to"),
        ("test,2,id 1,0,1\ntest,3,id 2,1,0\n", "test,3,id 2,1,0\ntest,2,id 1,0,1\n",
         "m.csv, row 2: this is row '3' of 'test'. The splits are train, val, test, each with its"),
        ("test,3", "tset,3", "m.csv, row 3: this is row '3' of 'tset'."),
        ("id 1,0", "id 1,no", "m.csv, row 2: 'a' is 'no'. Write 1 for present, 0 for missing."),
        ("id,a,t", "id,a,tt", "m.csv: the data has no field 'tt'. Did you mean 't'? Fields: a, t."),
        ("row,id", "line,id", "m.csv has no column 'row'; a mask has split, row, id."),
    ],
)  # fmt: skip
def test_a_mask_that_was_changed_or_made_for_other_data_is_refused(file, before, after, message):
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    with pytest.raises(DataError, match=re.escape(message)):
        read_mask(str(file), ["a", "t"]).apply("test", SAMPLES)


def test_a_mask_that_is_not_there_or_no_mask(tmp_path):
    with pytest.raises(DataError, match=r"missing.mask: .*m.csv does not exist. Make it with `fus"):
        read_mask(str(tmp_path / "m.csv"), ["a"])
    with pytest.raises(DataError, match="'m.parquet' is no CSV"):
        read_mask("m.parquet", ["a"])


def test_a_field_may_not_be_called_like_a_column_of_masks(tmp_path):
    with pytest.raises(ConfigError, match="rename the field row"):
        Mask("m.csv", {"test": ["1"]}, {"test": full(1, "row")}).write(tmp_path / "m.csv")
