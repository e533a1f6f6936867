"""configs/experiments: every table and figure of arXiv 2312.03734, counted and built."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusionkit.sweep.grid import read_grid
from fusionkit.sweep.run import count

# Points of each, by what the paper has: systems x data sets, combinations x data sets, ...
POINTS = {
    "table1_food101": 17,
    "table1_mmimdb": 17,
    "table1_snli_ve": 17,
    "data": 3,
    "table2": 7 * 3,
    "table3": 2 * 3,
    "table4": 8,
    "fig4": (7 + 4) * 3,
    "fig5": 2,
    "fig6": 2 * 3,
    "fig7": 5 * 5 * 3,
    "digits_fig7": 4 * 3,
    "digits_table4": 5,
    "digits_mapper": 3,
    "fashion_experts": 7,
    "fashion_fig7": 4 * 3,
    "fashion_table4": 3,
    "fashion_transfer": 7,
    "spoken_fig7": 4 * 3,
    "spoken_table4": 7,
    "nlvr_causes": 4,
    "nlvr_fig7": 3 * 3,
    "nlvr_heads": 4,
    "nlvr_mapper": 3,
    "nlvr_table4": 3,
    "nlvr_transfer": 3,
}


def test_there_is_a_file_for_each(root):
    files = (root / "configs" / "experiments").glob("*.yaml")
    assert {path.stem for path in files} == set(POINTS)


def test_the_documents_list_each(root):
    text = (root / "docs" / "sweeps.md").read_text()
    known = (f"`{name}.yaml`" if name == "data" else f"`{name}`" for name in POINTS)
    assert [name for name in known if name not in text] == []


@pytest.mark.parametrize("name", POINTS)
def test_every_point_is_counted_and_built(name, root):
    path = root / "configs" / "experiments" / f"{name}.yaml"
    command = f"#   fusionkit sweep --config configs/experiments/{name}.yaml --dry-run\n"
    assert command in path.read_text()
    grid = read_grid([path])
    assert len(grid.points) == POINTS[name]
    assert grid.seeds == (0, 1, 2)
    if name.startswith("table1"):  # built one by one in test_baselines.py
        return
    # Of what is the same for each data set, once; `data` has all three.
    first = [p for p in grid.points if name == "data" or p.labels.get("data") in (None, "SNLI-VE")]
    found = count(replace(grid, points=first))
    assert [each.error for each in found if each.error] == []
    assert all(each.trained for each in found)


def test_prompts_of_figure_4_are_counted_as_in_the_paper(root):
    for point in read_grid([root / "configs" / "experiments" / "fig4.yaml"]).points:
        init = point.experiment.fusion.init
        rows = (init["experts"] + 1) * init["prompt_length"] + 1
        assert rows == point.values["prompts"]


def test_the_seven_combinations_of_table_2(root):
    grid = read_grid(
        [root / "configs/experiments/table2.yaml", root / "configs/quickstart.yaml"],
        [("sweep.data", "null")],
    )
    kinds = ("static", "dynamic", "mapped")
    used = {
        tuple(point.experiment.fusion.init.get(kind, True) for kind in kinds)
        for point in grid.points
    }
    assert len(used) == 7
    assert (False, False, False) not in used
    assert {point.experiment.data.name for point in grid.points} == {"digit_claims"}
