from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from fusionkit.errors import DataError
from fusionkit.sweep.plots import plot
from fusionkit.sweep.results import Run
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
    return Run(Path("nowhere"), 0, labels, values, seed, status, None, metrics, {}, {})


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
    with pytest.raises(DataError, match=r"A cell would mix system: a, b\. Name it in --rows"):
        make_table(runs, rows=["experts"])


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figures(runs, tmp_path, suffix):
    path = tmp_path / "new" / f"a.{suffix}"
    plot(runs, "experts", "accuracy", "system", path, "Accuracy by experts")
    assert path.stat().st_size > 4000
    if suffix == "svg":
        plot(runs, "system", "accuracy", "experts", path)  # labels, not numbers
        assert path.stat().st_size > 4000


def test_wrong_figures(runs, tmp_path):
    with pytest.raises(DataError, match=r"a figure's name ends in \.png, \.svg, \.pdf"):
        plot(runs, "experts", "accuracy", "system", tmp_path / "a.gif")
    with pytest.raises(DataError, match=r"A line would mix system: a, b"):
        plot(runs, "experts", "accuracy", None, tmp_path / "a.png")
    with pytest.raises(DataError, match="No metric 'accurcy'"):
        plot(runs, "experts", "accurcy", "system", tmp_path / "a.png")
