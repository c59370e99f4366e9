"""Pictures of runs: everything fits, because matplotlib would warn otherwise."""

import numpy as np
import pytest

from train.run import plots


@pytest.mark.parametrize("num_weights", [1, 22, 23, 160])
def test_any_number_of_weights_fits_beside_the_panel(num_weights, tmp_path):
    names = [f"stage_{i}_block_{i}/Conv_{i}/kernel" for i in range(num_weights)]
    rows = [
        {
            "epoch": epoch,
            "powers": {name: 2.0 + i for i, name in enumerate(names)},
            "multipliers": {name: 0.1 + i for i, name in enumerate(names)},
            "mean_multiplier": 0.2,
        }
        for epoch in (1, 2)
    ]
    plots.plot_multipliers(rows, tmp_path / "multipliers.png")
    assert (tmp_path / "multipliers.png").stat().st_size > 0


def drawn_by(monkeypatch):
    figures, make = [], plots.create_figure
    monkeypatch.setattr(
        plots,
        "create_figure",
        lambda *given, **o: figures.append(make(*given, **o)) or figures[-1],
    )
    return figures


@pytest.mark.parametrize(("number", "deep"), [(2, False), (12, True)])
def test_a_narrow_logarithmic_axis_has_plain_numbers(
    number, deep, tmp_path, monkeypatch
):
    figures = drawn_by(monkeypatch)
    values = {f"Conv_{i}/kernel": 0.18 + 0.09 * i / number for i in range(number)}
    rows = [
        {
            "epoch": epoch,
            "powers": {
                name: 1e-5 * 1e9 ** (10 * v - 1.8) for name, v in values.items()
            },
            "multipliers": values,
            "mean_multiplier": 0.2,
        }
        for epoch in (1, 2)
    ]
    plots.plot_multipliers(rows, tmp_path / "p.png")
    ((figure, panels),) = figures
    power, multiplier = figure.axes[2:] if deep else panels

    def numbers(axes):
        ticks = [*axes.get_yticklabels(), *axes.get_yticklabels(minor=True)]
        return [tick.get_text() for tick in ticks if tick.get_text()]

    assert {float(text) for text in numbers(multiplier)} >= {0.2, 0.22}
    assert any("10^" in text for text in numbers(power))  # It spans many decades.


def test_a_deep_network_is_drawn_as_a_map_in_the_order_of_its_blocks(
    tmp_path, monkeypatch
):
    figures = drawn_by(monkeypatch)
    names = [f"block_{i}/Conv_0/kernel" for i in (1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8)]
    rows = [
        {
            "epoch": epoch,
            "powers": {name: 2.0 for name in names},
            "multipliers": {name: 0.1 * (i + epoch) for i, name in enumerate(names)},
            "mean_multiplier": 0.2 * epoch,
        }
        for epoch in (1, 2)
    ]
    rows[1]["multipliers"][names[0]] = float("nan")
    plots.plot_multipliers(rows, tmp_path / "multipliers.png", "insgd-l2, a on b")
    ((figure, (power, multiplier)),) = figures
    labels = [label.get_text() for label in power.get_yticklabels()]
    assert labels == [f"block_{i}/Conv_0/kernel" for i in (*range(1, 9), 10, 11, 12)]
    values = multiplier.get_images()[0].get_array()
    expected = [0.1 * (names.index(name) + 1) for name in labels]
    np.testing.assert_allclose(values[:, 0], expected)
    assert "insgd-l2, a on b" in figure.get_suptitle()
    assert "0.4 after epoch 2" in figure.get_suptitle()


@pytest.mark.parametrize("number", [1, 2, 5, 6, 12])
def test_a_legend_covers_no_line(number, tmp_path, monkeypatch):
    figures = drawn_by(monkeypatch)
    rows = [{"epoch": epoch, "test_top1": 0.2 * epoch} for epoch in (1, 2)]
    runs = {f"insgd-l{n + 1}+layer+log1p": [rows] for n in range(number)}
    plots.plot_test_error(runs, tmp_path / "p.png", title="a on b")
    ((figure, (axes,)),) = figures
    assert axes.get_title() == "a on b"
    (legend,) = [*figure.legends, *filter(None, [axes.get_legend()])]
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    width = figure.get_window_extent().x1
    # Except for the rounding of the line of its frame.
    assert legend.get_window_extent().x0 > -2
    assert legend.get_window_extent().x1 < width + 4


def test_a_link_in_place_of_a_picture_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("!")
    (tmp_path / "test_error.png").symlink_to(tmp_path / "precious")
    plots.plot_test_error({"sgd": [[]]}, tmp_path / "test_error.png")
    assert (tmp_path / "precious").read_text() == "!"
    assert (tmp_path / "test_error.png").read_bytes().startswith(b"\x89PNG")
