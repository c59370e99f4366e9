"""Pictures of runs: whatever is drawn fits, which matplotlib would warn of."""

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


def test_a_link_in_the_place_of_a_picture_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("!")
    (tmp_path / "test_error.png").symlink_to(tmp_path / "precious")
    plots.plot_test_error({"sgd": [[]]}, tmp_path / "test_error.png")
    assert (tmp_path / "precious").read_text() == "!"
    assert (tmp_path / "test_error.png").read_bytes().startswith(b"\x89PNG")
