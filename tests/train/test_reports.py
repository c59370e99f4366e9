"""Reports of a series: valid JSON, atomic replacement, and pictures."""

import json
import math
import os

import numpy as np
import pytest

from train.experiments import plots, reports
from train.experiments.rates.points import Point
from train.experiments.reports import MeanStd


def test_a_diverged_run_is_null_in_json(tmp_path):
    values = {"effective_rates": [0.1, math.nan, math.inf], "std": None}
    reports.write(tmp_path, "sweep", "text", values)
    text = (tmp_path / "sweep.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found == {"effective_rates": [0.1, None, None], "std": None}


def test_a_failed_write_leaves_the_old_report_intact(tmp_path, monkeypatch):
    reports.write(tmp_path, "table", "old", {"seeds": 1})

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        reports.write(tmp_path, "table", "new", {"seeds": 2})
    assert (tmp_path / "table.md").read_text() == "old"
    assert json.loads((tmp_path / "table.json").read_text()) == {"seeds": 1}


def test_the_sweeps_picture_leaves_out_rates_that_are_not_finite(tmp_path, monkeypatch):
    drawn = []
    make = plots.create_figure

    def spy(*args, **options):
        figure, axes = make(*args, **options)
        drawn.extend(axes)
        return figure, axes

    monkeypatch.setattr(plots, "create_figure", spy)
    rates = [0.1, math.nan, 0.05, 3, math.nan, 0.01]
    points = [
        Point(i + 1.0, rate, MeanStd(10.0, None), 1) for i, rate in enumerate(rates)
    ]
    plots.plot_sweep({"insgd-l2": points}, tmp_path / "sweep.png")
    given, taken = (axes.get_lines()[0].get_xdata() for axes in drawn)
    np.testing.assert_array_equal(given, [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(taken, [0.01, 0.05, 0.1, 3])
