"""docs/examples/transformer_curves.py: the runs that it draws, and their times."""

import json

import pytest

from ..insgd_optax import docs_examples


@pytest.fixture
def curves():
    return docs_examples.load("transformer_curves")


def run(optimizer, rate, seed, *losses):
    by_step = {str(50 * step): loss for step, loss in enumerate(losses, start=1)}
    settings = {"optimizer": optimizer, "learning_rate": rate, "seed": seed}
    return settings | {"test_losses": by_step}


def test_each_optimizer_has_the_learning_rate_that_is_best_for_seed_0(curves):
    others = [run(name, 0.1, 0, 3.0, 2.0) for name in curves.LABELS if name != "muon"]
    runs = [
        *others,
        run("muon", 0.3, 0, 2.0, 1.9),  # Lower at first.
        run("muon", 0.1, 0, 3.0, 1.8),
        run("muon", 0.1, 1, 3.0, 2.5),
        run("lms_newton", 0.1, 0, 1.0, 1.0),  # It has no label.
    ]
    best = curves.best_runs(runs)
    assert list(best) == list(curves.LABELS)
    assert best["muon"] == (0.1, [{50: 3.0, 100: 1.8}, {50: 3.0, 100: 2.5}])


def test_time_is_steps_times_the_ratio_of_step_times(curves, tmp_path, monkeypatch):
    names = list(curves.LABELS)
    losses, steps = tmp_path / "losses.json", tmp_path / "steps.jsonl"
    losses.write_text(json.dumps([run(name, 0.1, 0, 3.0, 2.0) for name in names]))
    rows = [{"optimizer": name, "ratio": 1.0 + i} for i, name in enumerate(names)]
    steps.write_text("\n".join(map(json.dumps, rows)))
    drawn = []
    monkeypatch.setattr("sys.argv", ["", str(tmp_path / "a.png"), losses, steps])
    monkeypatch.setattr(
        "matplotlib.axes.Axes.fill_between",
        lambda ax, x, low, high, **options: drawn.append(list(x)),
    )
    curves.main()
    over_steps, over_time = drawn[::2], drawn[1::2]
    assert over_steps == [[50, 100]] * len(names)
    assert over_time == [[50.0 * ratio, 100.0 * ratio] for ratio in (1, 2, 3, 4)]
    assert (tmp_path / "a.png").stat().st_size > 10_000
