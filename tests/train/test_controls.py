"""Control rows, which the paper lacks."""

from train.experiments import series
from train.experiments.paper import controls
from train.run_config import RunConfig


def test_sgd_has_the_effective_rate_of_bounded_insgd(monkeypatch):
    rows = [
        {"mean_multiplier": 0.5, "train_polyak_scale": 0.1},
        {"mean_multiplier": 0.5, "train_polyak_scale": 0.3},
    ]
    monkeypatch.setattr(series, "finished_metrics", lambda config: rows)
    row = [RunConfig(learning_rate=2.0, polyak_factor=0.3)]
    (sgd,) = controls.controls_for(row)["SGD at INSGD's effective rate"]
    assert (sgd.optimizer, sgd.learning_rate, sgd.polyak_factor) == ("sgd", 0.2, None)
    # The other controls change one option, and keep the bound.
    (layer,) = controls.controls_for(row)["scope layer"]
    assert (layer.scope, layer.polyak_factor) == ("layer", 0.3)


def test_controls_drop_the_options_that_they_do_not_take(monkeypatch):
    monkeypatch.setattr(series, "finished_metrics", lambda config: [{}])
    options = {"eps": 1e-3, "power_decay": 0.5, "conv_input": "patch", "momentum": 0.8}
    rows = controls.controls_for([RunConfig(**options)])
    (sgd,), (layer,), (log1p,) = rows.values()
    assert sgd == RunConfig(optimizer="sgd", learning_rate=0.1, momentum=0.8)
    assert layer == RunConfig(**options, scope="layer")
    del options["eps"]
    assert log1p == RunConfig(**options, normalizer="log1p")
