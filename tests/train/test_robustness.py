"""The range of usable rates: which rates are tried, its width, and the command."""

import json

import numpy as np
import pytest
from PIL import Image

from train import cli
from train.experiments import plots, series
from train.experiments.rates import search as rate_search
from train.experiments.rates.points import Point, spanned_range
from train.experiments.reports import MeanStd

from ..insgd_optax.docs_examples import load


def points(accuracies):
    return [
        Point(rate, rate, MeanStd(float(value), None), 1)
        for rate, value in accuracies.items()
    ]


def test_the_grid_is_even_in_decades_around_its_center():
    rates = rate_search.grid(0.1, decades=5, per_decade=2)
    assert rates[:3] == [0.000316, 0.001, 0.00316] and rates[-1] == 31.6
    assert len(rates) == 11 and rates[5] == 0.1
    np.testing.assert_allclose(np.diff(np.log10(rates)), 0.5, atol=1e-3)
    assert rate_search.grid(2.0, decades=1, per_decade=1) == [2.0]


def test_gaps_at_the_edges_are_halved_until_they_are_small():
    def accuracy(rate):  # usable from 0.02 to 0.7
        return 60 if 0.02 <= rate <= 0.7 else 20

    found = {rate: accuracy(rate) for rate in rate_search.grid(0.1, 5, 2)}
    passes = 0
    while rates := rate_search.refined(points(found), margin=1.0, gap_in_decades=0.125):
        assert not set(rates) & set(found)
        found |= {rate: accuracy(rate) for rate in rates}
        passes += 1
    assert passes == 2 and len(found) == 11 + 4
    usable = spanned_range(points(found), 1.0)
    assert usable.low.learning_rate / 10**0.13 <= 0.02 <= usable.low.learning_rate
    assert usable.high.learning_rate <= 0.7 <= usable.high.learning_rate * 10**0.13


def test_a_gap_below_three_digits_is_not_refined():
    found = {0.0199: 60, 0.02: 10}
    assert rate_search.refined(points(found), margin=1.0, gap_in_decades=1e-6) == []


def test_a_better_accuracy_found_by_refinement_moves_the_edges():
    found = {0.01: 50, 0.1: 55, 1: 10}
    assert rate_search.refined(points(found), 1.0, 0.5) == [0.0316, 0.316]
    found |= {0.0316: 60, 0.316: 10}
    assert spanned_range(points(found), 1.0)[1:] == (points(found)[3],) * 2
    assert rate_search.refined(points(found), 1.0, 0.5) == []


def test_the_range_includes_an_unusable_rate_between_usable_ones():
    span = spanned_range(points({1: 59.5, 10: 58.9, 100: 60, 1000: 10}), margin=1.0)
    assert span.factor == 100 and span.best.learning_rate == 100


@pytest.fixture
def train(tmp_path, tiny_setting):
    """Runs the command on a tiny network and data; returns the status."""

    def run(*arguments):
        return cli.main(
            ["robustness", *arguments, "--batch-size", "16", "--epochs", "1"]
            + ["--runs-dir", str(tmp_path), "--parallel", "jit"]
        )

    return run


def test_the_command_trains_reports_and_draws(train, tmp_path, capsys, monkeypatch):
    grid = ("--decades", "2", "--per-decade", "1", "--gap", "0.5", "--seeds", "2")
    names = ("--optimizers", "sgd", "insgd-l2+polyak@1")
    assert train(*names, *grid) == 0

    (folder,) = tmp_path.glob("robustness-*")
    with Image.open(folder / "robustness.png") as image:
        assert image.size == (1800, 585)
    assert (folder / "ratios.png").exists()
    assert "Usable: at most 1 point below" in (folder / "robustness.md").read_text()
    found = json.loads((folder / "robustness.json").read_text())
    for name, center in (("sgd", 0.1), ("insgd-l2+polyak@1", 1.0)):
        rates = [point["learning_rate"] for point in found["points"][name]]
        assert {center / 10, center, center * 10} <= set(rates)
        assert rates == sorted(rates)
        assert all(point["seeds"] == 2 for point in found["points"][name])
        # The effective rate: what remains after INSGD's multiplier and the bound.
        for point in found["points"][name]:
            taken = point["effective_rate"] / point["learning_rate"]
            assert (taken == 1) if name == "sgd" else (0 < taken < 1)
        # Between a usable rate and an unusable neighbor, further rates were tried.
        again = points(
            {p["learning_rate"]: p["accuracy"]["mean"] for p in found["points"][name]}
        )
        assert rate_search.refined(again, 1.0, 0.5) == []
    assert found["devices"]
    out = capsys.readouterr().out
    assert "  learning rate capped at " in out
    assert "Usable between" in out and (folder / "robustness.md").read_text() in out
    # The second time, nothing is run.
    monkeypatch.setattr(series, "run", None)
    assert train(*names, *grid) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--decades", "0"), "--decades must be greater than 0"),
        (("--gap", "nan"), "--gap must be greater than 0"),
        (
            ("--optimizers", "adam+polyak"),
            "SGD, INSGD and lms-newton accept polyak or polyak0.5",
        ),
        (("--optimizers", "sgd+polyakx"), "'sgd+polyakx' is not a valid optimizer"),
    ],
)
def test_invalid_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["robustness", *arguments])
    out = "".join(capsys.readouterr())
    assert message in " ".join(out.replace("│", " ").split())


def test_bars_end_at_the_ratio(tmp_path, monkeypatch):
    drawn, make = [], plots.create_figure
    monkeypatch.setattr(
        plots,
        "create_figure",
        lambda *args, **kw: drawn.append(make(*args, **kw)) or drawn[0],
    )
    found = {"wide": points({1: 60, 10: 60, 100: 10}), "one": points({1: 60, 10: 20})}
    plots.plot_ratios(found, 1.0, tmp_path / "plot.png", "cnn on digits")
    ((_, (bars,)),) = drawn
    ends = [bar.get_x() + bar.get_width() for bar in bars.patches]
    assert ends == pytest.approx([10, 1])
    # A ratio of 1 has a bar, too, and no text is cut off.
    assert all(bar.get_window_extent().width > 20 for bar in bars.patches)
    right = bars.get_window_extent().x1
    assert all(text.get_window_extent().x1 < right for text in bars.texts)
    assert bars.get_title() == "cnn on digits"
    assert bars.get_xlabel().endswith("within 1 point of the best accuracy")


@pytest.mark.parametrize("number", [1, 2, 5, 11])
def test_each_optimizer_has_a_panel_that_shows_all_of_its_curve(
    number, tmp_path, monkeypatch
):
    drawn, make = [], plots.create_figure
    monkeypatch.setattr(
        plots,
        "create_figure",
        lambda *args, **kw: drawn.append(make(*args, **kw)) or drawn[0],
    )
    monkeypatch.setattr(
        plots, "save", lambda figure, path: None
    )  # Saving takes seconds.
    found = {f"o{n}": points({1: 0.5, 10: 100, 100: 9}) for n in range(number)}
    plots.plot_robustness(found, 1.0, tmp_path / "plot.png", "cnn on digits")
    ((figure, _),) = drawn
    assert [axes.get_title() for axes in figure.axes] == list(found)
    assert figure.get_suptitle() == "cnn on digits"
    for column in range(min(number, 4)):
        # The lowest panel of a column shows the learning rates.
        lowest = figure.axes[column::4][-1]
        assert any(label.get_visible() for label in lowest.get_xticklabels())
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert low <= 0.5 and high >= 100


def test_the_figures_of_the_docs_match_their_tables():
    figures = load("robustness_figures")
    found = figures.read(figures.PAGE.read_text())
    assert found.keys() == figures.TITLES.keys()
    for curves, usable in found.values():
        assert len(curves) == 11
        for name, curve in curves.items():
            span = spanned_range(curve, figures.MARGIN)
            ends = span.low.learning_rate, span.high.learning_rate
            assert ends == usable[name], name


def test_a_single_point_is_drawn(tmp_path):
    plots.plot_robustness({"sgd": points({0.1: 50})}, 1.0, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
