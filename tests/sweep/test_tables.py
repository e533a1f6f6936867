from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from scipy.stats import ttest_rel

from fusionkit.errors import DataError
from fusionkit.sweep.plots import _grows, _name_axes, plot
from fusionkit.sweep.results import Run, select
from fusionkit.sweep.tables import make_table, write_table

VALUES = {
    ("a", "2"): [0.80, 0.82, 0.84],
    ("a", "4"): [0.90, 0.91, 0.95],
    ("b", "2"): [0.50, 0.53, 0.56],
    ("b", "4"): [0.90, 0.93, 0.96],
}


def run(labels: dict, seed: int, accuracy: float | None, **more) -> Run:
    metrics = {} if accuracy is None else {"test/accuracy": accuracy, "test/loss": 1 - accuracy}
    status = "failed" if accuracy is None else "finished"
    values = {**labels, "fusion.experts": int(labels.get("fusion.experts", 1))}
    config = {"data": {"name": more.get("data", "digits")}}
    return Run(Path("nowhere"), 0, labels, values, seed, status, None, metrics, {}, {}, config)


@pytest.fixture
def runs():
    return [
        run({"system": system, "fusion.experts": experts}, seed, value)
        for (system, experts), values in VALUES.items()
        for seed, value in enumerate(values)
    ]


def test_mean_spread_and_test_by_hand(runs):
    table = make_table(runs, columns="experts", metrics=["accuracy"])
    assert table.rows == [("a",), ("b",)]
    assert [title for title, _ in table.columns] == ["2", "4"]
    worse = table.cells[1][0]
    assert worse.mean == pytest.approx(0.53)
    assert worse.sd == pytest.approx(0.03)
    assert worse.p == pytest.approx(ttest_rel(VALUES["b", "2"], VALUES["a", "2"]).pvalue)
    assert [cell.best for cell in table.cells[0]] == [True, False]
    text = write_table(table, "markdown")
    assert text.splitlines()[:4] == [
        "| system | 2 | 4 |",
        "|---|---:|---:|",
        "| a | **82.0 ± 2.0** | 92.0 ± 2.6 |",
        "| b | 53.0 ± 3.0\\* | **93.0 ± 3.0** |",
    ]
    assert "Mean ± standard deviation over 3 seeds; the best in bold. \\* differs from" in text


def test_metrics_are_columns_and_less_loss_is_better(runs):
    table = make_table(runs, metrics=["accuracy", "loss"])
    assert table.rows[0] == ("a", "2")
    best = [[cell.best for cell in row] for row in table.cells]
    assert [sum(column) for column in zip(*best, strict=True)] == [1, 1]
    assert all(a == b for a, b in best)


def test_against_a_row(runs):
    table = make_table(runs, metrics=["accuracy"], against="a, 2")
    assert table.cells[0][0].p is None
    assert table.cells[3][0].p == pytest.approx(
        ttest_rel(VALUES["b", "4"], VALUES["a", "2"]).pvalue
    )
    assert "differs from a, 2" in write_table(table, "markdown")
    with pytest.raises(DataError, match=r"--against: no row 'a, 3'\."):
        make_table(runs, against="a, 3")


def test_other_formats(runs):
    table = make_table(runs, columns="experts", metrics=["accuracy"])
    latex = write_table(table, "latex")
    assert "\\begin{tabular}{lrr}" in latex
    assert "a & \\textbf{82.0 $\\pm$ 2.0} & 92.0 $\\pm$ 2.6 \\\\" in latex
    lines = write_table(table, "csv").splitlines()
    assert lines[0] == "system,2 mean,2 sd,2 seeds,2 p,4 mean,4 sd,4 seeds,4 p"
    assert lines[1].startswith("a,0.82,0.0")


def test_what_is_missing_is_said(runs):
    failed = run({"system": "c", "fusion.experts": "2"}, 0, None)
    text = write_table(make_table([*runs, failed], columns="experts"), "markdown")
    assert "| c | - | - |" in text
    assert "1 runs failed or are not finished." in text
    with pytest.raises(DataError, match="No run has finished yet"):
        make_table([failed])
    one = write_table(make_table(runs[:1]), "markdown")
    assert "One seed each: no spread" in one
    both = write_table(make_table([runs[0], failed]), "markdown")
    assert "One seed each" in both
    assert "1 runs failed or are not finished." in both
    with pytest.raises(DataError, match=r"A cell would mix system: a, b\. Name it in --rows"):
        make_table(runs, rows=["experts"])


def test_rows_of_different_data_sets_are_not_compared(runs):
    there = [run({**r.labels, "data": "D"}, r.seed, r.metrics["test/accuracy"]) for r in runs]
    here = [
        run({**r.labels, "data": "E"}, r.seed, r.metrics["test/accuracy"] / 2, data="other")
        for r in runs
    ]
    alone, both = (
        make_table(each, ["data", "system"], "experts") for each in (there, there + here)
    )
    assert both.cells[:2] == alone.cells
    assert [row[0].best for row in both.cells] == [True, False, True, False]
    assert both.cells[3][0].p == pytest.approx(alone.cells[1][0].p)
    assert "the best on each data set in bold" in write_table(both, "markdown")

    against = make_table([*there, *here], ["data", "system"], "experts", against="b")
    assert [row[0].p is None for row in against.cells] == [False, True, False, True]
    with pytest.raises(DataError, match=r"'D' is in several rows on digits; give all labels"):
        make_table([*there, *here], ["data", "system"], "experts", against="D")


def test_columns_show_the_metrics_that_their_runs_have(runs):
    other = [replace(r, metrics={"test/f1_macro": 0.5}, labels={**r.labels, "data": "E"})
             for r in runs]  # fmt: skip
    both = [replace(r, labels={**r.labels, "data": "D"}) for r in runs] + other
    table = make_table(both, ["system", "experts"], "data", ["accuracy", "f1_macro"])
    assert table.columns == [
        ("D, accuracy %", "test/accuracy"), ("E, f1 macro %", "test/f1_macro"),
    ]  # fmt: skip


def test_a_grid_is_cut_by_its_labels(runs):
    cut = select(runs, ["experts=2"])
    assert {tuple(r.labels) for r in cut} == {("system",)}
    assert len(cut) == 6
    table = make_table(cut, metrics=["accuracy"])
    assert [cell.mean for (cell,) in table.cells] == pytest.approx([0.82, 0.53])
    assert select(runs, ["experts=2", "experts=4"]) == list(runs)
    with pytest.raises(DataError, match=r"fusion\.experts has no label '3'.* There are 2, 4\."):
        select(runs, ["experts=3"])
    with pytest.raises(DataError, match=r"--only is AXIS=LABEL, such as data=digits; given 'a'"):
        select(runs, ["a"])


def test_runs_of_two_grids_are_not_mixed(runs, tmp_path):
    more = replace(runs[0], labels={**runs[0].labels, "b": "x"})
    message = r"holds runs of two grids, over system, fusion\.experts and over system, .*, b\."
    with pytest.raises(DataError, match=message):
        make_table([*runs, more])
    with pytest.raises(DataError, match=message):
        plot([*runs, more], "experts", "accuracy", "system", tmp_path / "a.png")


def test_labels_are_safe_in_every_format():
    some = [run({"a": label}, 0, 0.5) for label in ("x & y_1", "p|q #2 {50 %} ~^\\")]
    latex = write_table(make_table(some), "latex")
    assert r"x \& y\_1 & \textbf{50.0} \\" in latex
    assert r"p|q \#2 \{50 \%\} \textasciitilde{}\textasciicircum{}\textbackslash{} & " in latex
    assert "| p\\|q #2" in write_table(make_table(some), "markdown")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figures(runs, tmp_path, suffix):
    path = tmp_path / "new" / f"a.{suffix}"
    plot(runs, "experts", "accuracy", "system", path, "Accuracy by experts")
    assert path.stat().st_size > 4000
    if suffix == "svg":
        plot(runs, "system", "accuracy", "experts", path)  # labels, not numbers
        assert path.stat().st_size > 4000


@pytest.mark.parametrize(
    ("places", "grows"),
    [
        ([2, 4, 8, 16], True),
        ([19, 31, 55, 103, 199], True),  # Fig. 4
        ([64, 256, 512, 1024], True),
        ([1, 2, 3, 4], False),
        ([0, 1, 4, 16], False),  # has no logarithm
        ([10, 11, 13], False),
        ([1, 100], False),
    ],
)
def test_a_scale_is_logarithmic_where_steps_grow(places, grows):
    assert _grows(places) is grows


@pytest.mark.parametrize("epochs", [[1], [1, 2], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_epochs_are_whole(epochs):
    axes = Figure().add_subplot()
    axes.plot(epochs, epochs)
    _name_axes(axes, None, "val/loss", epochs, numbers=True)
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_wrong_figures(runs, tmp_path):
    with pytest.raises(DataError, match=r"a figure's name ends in \.png, \.svg, \.pdf"):
        plot(runs, "experts", "accuracy", "system", tmp_path / "a.gif")
    with pytest.raises(DataError, match=r"A line would mix system: a, b"):
        plot(runs, "experts", "accuracy", None, tmp_path / "a.png")
    with pytest.raises(DataError, match="No metric 'accurcy'"):
        plot(runs, "experts", "accurcy", "system", tmp_path / "a.png")
