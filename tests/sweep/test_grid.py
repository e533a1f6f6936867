from __future__ import annotations

import pytest
import yaml

from fusionkit.errors import ConfigError
from fusionkit.sweep.grid import read_grid


@pytest.fixture
def read(tiny_config, tmp_path):
    def read(sweep, **more):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({**tiny_config, "sweep": sweep, **more}, sort_keys=False))
        return read_grid([path])

    return read


def test_the_grid_is_the_product_of_its_axes(read, tmp_path):
    grid = read(
        {
            "fusion.experts": [2, 3],
            "prompts": {"all": {}, "static only": {"fusion": {"dynamic": False, "mapped": False}}},
        },
        seeds=[1, 2],
    )
    assert (grid.name, grid.folder, grid.seeds) == ("tiny", tmp_path / "runs" / "tiny", (1, 2))
    assert [tuple(point.labels.values()) for point in grid.points] == [
        ("2", "all"), ("2", "static only"), ("3", "all"), ("3", "static only"),
    ]  # fmt: skip
    last = grid.points[-1]
    assert last.values == {"fusion.experts": 3, "prompts": "static only"}
    assert last.name == "experts=3, prompts=static only"
    assert last.folder == "experts=3,prompts=static_only"
    init = last.experiment.fusion.init
    assert (init["experts"], init["dynamic"], init["prompt_length"]) == (3, False, 2)
    assert last.experiment.name == "tiny"


def test_values_may_be_null_or_components(read):
    grid = read({"loader.shots": [4, None], "complement_transfer": ["frozen", "fine_tune"]})
    assert [point.labels["loader.shots"] for point in grid.points] == ["4", "4", "null", "null"]
    assert [p.experiment.loader.shots for p in grid.points] == [4, 4, None, None]
    assert grid.points[1].experiment.complements[0].transfer.name == "fine_tune"


def test_two_axes_may_vary_together(read):
    grid = read({"grown, prompts": {"experts, 5": {"fusion": {"experts": 3}}, "length, 7": {}}})
    assert [point.labels for point in grid.points] == [
        {"grown": "experts", "prompts": "5"}, {"grown": "length", "prompts": "7"},
    ]  # fmt: skip
    assert [point.values["prompts"] for point in grid.points] == [5, 7]  # numbers have places
    with pytest.raises(ConfigError, match=r"'experts' has not a label for each"):
        read({"grown, prompts": {"experts": {}}})


def test_labels_may_be_files(read, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "few.yaml").write_text("fusion: {experts: 2}")
    (tmp_path / "more" / "many.yaml").write_text("fusion: {experts: 9}\nname: other")
    for axis in ("more/*.yaml", {"few": "more/few.yaml", "many": "more/many.yaml"}):
        grid = read({"size": axis})
        assert [p.labels["size"] for p in grid.points] == ["few", "many"]
        assert [p.experiment.fusion.init["experts"] for p in grid.points] == [2, 9]
        assert {p.experiment.name for p in grid.points} == {"tiny"}


def test_overrides_hold_and_null_takes_an_axis_out(tiny_config, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump({**tiny_config, "sweep": {"a": {"x": {}}, "seeds_of": {"y": {}}}})
    )
    grid = read_grid([path], [("sweep.a", "null"), ("fusion.experts", "5")])
    (point,) = grid.points
    assert point.labels == {"seeds_of": "y"}
    assert point.experiment.fusion.init["experts"] == 5


def test_an_axis_with_dots_is_overridden_as_a_whole(tiny_config, tmp_path):
    path = tmp_path / "mine.yaml"
    sweep = {"fusion.experts": [2, 3], "a": {"x": {}}}
    path.write_text(yaml.safe_dump({**tiny_config, "sweep": sweep}))
    (point,) = read_grid([path], [("sweep.fusion.experts", "null")]).points
    assert point.labels == {"a": "x"}
    points = read_grid([path], [("sweep.fusion.experts", "[5, 6, 7]")]).points
    assert [point.experiment.fusion.init["experts"] for point in points] == [5, 6, 7]
    with pytest.raises(ConfigError, match=r"no axis 'fusion\.expert' to take out\. Did you mean"):
        read_grid([path], [("sweep.fusion.expert", "null")])


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({}, r"there is no sweep\. Add one, such as `sweep: \{fusion\.experts"),
        ({"fusio.experts": [1]}, r"'fusio' is no key of a config\. Did you mean 'fusion'\?"),
        ({"seed": [1, 2]}, r"seed cannot be swept\. List them in `seeds`"),
        ({"fusion.experts": []}, r"sweep: fusion\.experts: nothing is listed"),
        ({"fusion.experts": [2, 2]}, r"2 is there twice"),
        ({"fusion.experts": 3}, r"expected a list of values, a mapping .*, given 3"),
        ({"a": {"x": 5}}, r"sweep: a: x: expected a config to merge over this one"),
        ({"a": {"x": {"seed": 5}}}, r"sweep: a: x: seed cannot be swept"),
        ({"a": "nowhere/*.yaml"}, r"no file matches nowhere/\*\.yaml in "),
        ({"a": {"x y": {}, "x_y": {}}}, r"a=x y and a=x_y share a folder"),
        ({"status": {"x": {}}}, r"status: tables of results have a column of that name"),
        ({"a, epoch": {"x, y": {}}}, r"epoch: tables of results have a column of that name"),
        ({"a": {"x": {}}, "a, b": {"x, y": {}}}, r"sweep: a is there twice"),
        ([1], r"sweep: expected a mapping|sweep"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(read, sweep, message):
    with pytest.raises(ConfigError, match=message):
        read(sweep)


def test_all_points_are_checked_at_once(read):
    with pytest.raises(ConfigError) as error:
        read({"fusion.expert": [1, 2], "main": ["tiny_main", "brt"]})
    text = str(error.value)
    assert "fusion.expert: 1, main: tiny_main: " in text
    assert "fusion.expert: 2, main: brt: " in text
    assert "Did you mean 'experts'" in text
    assert "Unknown main encoder 'brt'" in text
