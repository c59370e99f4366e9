"""docs/examples/small_networks.py: its numbers, and runs that are not repeated."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from insgd_optax._input_power import divisor_function
from tests.insgd_optax import docs_examples

RUNS = docs_examples.DOCS / "benchmarks" / "small-networks" / "runs.json"


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("sklearn", reason="its digits are the script's data")
    return docs_examples.load("small_networks")


def test_the_divisors_match_the_library_s(example):
    powers = jnp.array([0.1, 1.0, 1.005, 20.0])
    for name, normalizer in (("insgd", "log"), ("insgd+log1p", "log1p")):
        found = example.DIVISORS[name](powers)
        np.testing.assert_allclose(found, divisor_function(normalizer, 0.01)(powers))
    np.testing.assert_array_equal(example.DIVISORS["sgd"](powers), 1)


def test_rates_are_half_decades_apart(example):
    rates = [example.rate_at("sgd", index) for index in (-2, -1, 0, 1, 2)]
    np.testing.assert_allclose(rates, [0.01, 0.03, 0.1, 0.3, 1])
    assert example.neighbor("lms-newton", rates[2], 1) == rates[3]


def test_the_search_finds_the_best_rate_and_repeats_no_run(
    example, tmp_path, monkeypatch
):
    calls = []

    def program(task, compiled):
        def run(seed, hyperparameters):
            calls.append((seed, hyperparameters.rate))
            distance = abs(math.log10(hyperparameters.rate) + 1.5)
            return {"accuracy": 90 - distance, "loss": 1.0, "first_multipliers": {}}

        return run

    monkeypatch.setattr(example, "program", program)
    path = tmp_path / "runs.json"
    best = example.Results(path).best_rate("mlp", "sgd", "constant")
    assert best == pytest.approx(0.03)
    assert sorted(rate for _, rate in calls) == pytest.approx([0.01, 0.03, 0.1, 0.3])

    before = len(calls)
    assert example.Results(path).best_rate("mlp", "sgd", "constant") == best
    assert len(calls) == before
    runs = json.loads(path.read_text())["runs"]
    assert next(iter(runs)) == "mlp sgd 0.1 inf constant 0"


def rows_of_published_runs(example, capsys, monkeypatch, print_table, *args):
    """The cells of a table that the script prints without training anything."""
    monkeypatch.setattr(example, "program", None)
    print_table(example.Results(RUNS), *args)
    _, *rows = capsys.readouterr().out.splitlines()
    return [row.strip("| ").split(" | ") for row in rows]


def page(name):
    return (docs_examples.DOCS / name).read_text().replace("**", "")


def test_the_published_runs_give_the_guide_s_table_of_normalizers(
    example, capsys, monkeypatch
):
    tasks = ["text_gru", "text_transformer"]
    for *_, before, best, _, rate, _ in rows_of_published_runs(
        example, capsys, monkeypatch, example.normalizers, tasks, ["constant"]
    ):
        assert f"| {rate} | {best} | {before} |" in page("guide.md")


def test_the_published_runs_give_the_page_s_table_of_factors(
    example, capsys, monkeypatch
):
    args = list(example.TASKS), ["constant"], ["sgd"]
    rows = rows_of_published_runs(example, capsys, monkeypatch, example.factors, *args)
    assert len(rows) == len(example.TASKS)
    for _, _, _, *cells in rows:
        assert f"| {' | '.join(cells)} |" in page("robustness.md")


def test_a_cell_is_a_mean_and_a_sample_standard_deviation(example):
    assert example.cell([97.0, 98.0, 99.0]) == "98.0 ± 1.0"
    assert example.cell([-2.0, -2.1, -2.2]) == "2.100 ± 0.100"
    assert example.cell([-2.5]) == "2.500"
    assert example.cell([90.0, -math.inf]) == "diverged"
