"""`python -m train benchmark`: what it measures, writes and refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from train import cli
from train.benchmark import device_peaks, measure, operations
from train.benchmark.workload import Workload
from train.training import in_memory

from .tiny_cnn import TinyCNN


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Measures a small network into `tmp_path`; returns status and record."""
    create = models.create

    def small(name, **options):
        return TinyCNN(**options) if name == "custom_cnn" else create(name, **options)

    monkeypatch.setattr(models, "create", small)

    def run(*options):
        status = cli.main(
            ["benchmark", "--models", "custom_cnn@8", "--rounds", "3"]
            + ["--image-size", "8", "--output-dir", str(tmp_path / "out"), *options]
        )
        return status, json.loads((tmp_path / "out/benchmark.json").read_text())

    return run


@pytest.mark.parametrize("loop", [False, True])
def test_a_step_is_measured(benchmark, monkeypatch, capsys, tmp_path, loop):
    # As on an accelerator: many steps in one program.
    monkeypatch.setattr(in_memory, "loops_are_fast", lambda: loop)
    monkeypatch.setattr(measure, "_LOOP_STEPS", 3)
    monkeypatch.setattr(device_peaks, "peak_flops", lambda kind, dtype: 1e12)

    status, record = benchmark()

    assert status == 0
    (result,) = record["results"]
    assert (result["network"], result["batch_size"]) == ("custom_cnn", 8)
    # Two float32 values, P and multiplier, for each of two kernels, and the step count.
    assert result["scaled_weights"] == 2
    state_bytes = result["state_bytes"]
    assert state_bytes["insgd"] - state_bytes["sgd"] == 4 * 2 * 2 + 4
    medians = {name: one["median"] for name, one in result["seconds"].items()}
    assert medians.keys() == {"sgd", "insgd", "sgd_again"}
    assert result["overhead"]["of_medians"] == pytest.approx(
        medians["insgd"] / medians["sgd"]
    )
    assert result["control"]["of_medians"] == pytest.approx(
        medians["sgd_again"] / medians["sgd"]
    )
    assert result["processor_overhead"]["of_medians"] > 0
    assert result["images_per_second"]["sgd"] == pytest.approx(8 / medians["sgd"])
    # At least a multiply and an add per weight and position in the forward pass.
    assert result["flops"] > 2 * 8 * (4 * 4 * 9 * 3 * 4 + 64 * 10)
    assert result["flops"] < 10 * 2 * 8 * (4 * 4 * 9 * 3 * 4 + 64 * 10)
    assert result["utilization"] == pytest.approx(
        result["flops"] / medians["insgd"] / 1e12
    )
    assert result["memory"]["insgd"]["temporary"] > 0
    assert record["environment"]["versions"]["jax"]
    out = capsys.readouterr().out
    assert (tmp_path / "out/benchmark.md").read_text() in out
    assert "| custom_cnn | 8 | float32 |" in " ".join(out.split())
    assert "FLOP utilization" in out


def test_another_optimizer_is_compared_with_sgd(benchmark, capsys):
    _, record = benchmark("--optimizer", "lms-newton")
    (result,) = record["results"]
    assert result["optimizer"] == "lms-newton"
    assert result["scaled_weights"] == 2
    assert result["overhead"]["of_medians"] == pytest.approx(
        result["seconds"]["lms-newton"]["median"] / result["seconds"]["sgd"]["median"]
    )
    # A covariance, its inverse and two scalars per kernel, with 27 and 64 inputs; and
    # the numbers of updates and of failed factorizations.
    state = result["state_bytes"]
    kernels = sum(4 * (2 * inputs**2 + 2) for inputs in (27, 64))
    assert state["lms-newton"] - state["sgd"] == kernels + 4 + 4
    assert "lms-newton / SGD" in capsys.readouterr().out


def test_steps_that_capture_have_a_program_of_their_own(benchmark):
    called = []

    class Recorded(dict):
        def __getitem__(self, pattern):
            called.append(pattern)
            return super().__getitem__(pattern)

    stepper = measure.Stepper(Workload("custom_cnn", (), 8, "float32"), 8, "lms-newton")
    vars(stepper)["_compiled"] = Recorded(stepper._compiled)
    run = stepper.run_from(stepper.state, 6)
    run(1)
    run(1)
    assert [pattern.segments for pattern in called] == [
        ((which, 1),) for which in [True, *9 * [False], True, False]
    ]


def test_an_axis_is_measured_and_results_are_not_overwritten(benchmark, capsys):
    _, record = benchmark("--axis", "batch", "--values", "4", "8")
    assert [result["batch_size"] for result in record["results"]] == [4, 8]
    assert "FLOP utilization" not in capsys.readouterr().out  # Unknown for CPUs.
    # Results are not overwritten.
    assert benchmark()[0] == 2
    assert "already exists and was left unchanged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--models", "resnet21"], "is not a network"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--values", "4"], "--values needs --axis"),
        (["--optimizer", "sgd"], "--optimizer is compared with sgd"),
        (
            ["--axis", "width", "--dtypes", "float32", "bfloat16"],
            "--axis varies one network: --dtypes takes one value with it",
        ),
        (
            ["--axis", "width", "--models", "resnet20", "vit"],
            "--axis varies one network: --models takes one value with it",
        ),
        (["--batch-sizes", "0"], "--batch-sizes must all be at least 1"),
    ],
)
def test_invalid_options_are_refused(options, words, capsys):
    with pytest.raises(SystemExit):
        cli.main(["benchmark", *options])
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_images_that_are_too_small_are_an_error_that_names_their_size(tmp_path, capsys):
    options = ["--models", "custom_cnn", "--image-size", "4"]
    assert cli.main(["benchmark", *options, "--output-dir", str(tmp_path)]) == 2
    assert "custom_cnn on images of 4x4 pixels" in capsys.readouterr().err


def test_peaks_are_found_by_the_start_of_the_device_name():
    peak = device_peaks.peak_flops
    assert peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak("Tesla V100-SXM2-16GB", "bfloat16") is None
    assert peak("cpu", "float32") is None


def test_operations_are_counted_by_the_cpu_whatever_the_default_device(monkeypatch):
    operands = (np.ones((3, 5), np.float32), np.ones((5, 7), np.float32))
    other = jax.devices()[-1]
    with jax.default_device(other):
        on_other = tuple(jax.device_put(each, other) for each in operands)
        assert operations.count_flops(jnp.matmul, *on_other) == 2 * 3 * 5 * 7

    def absent(platform=None):
        raise RuntimeError(f"unknown backend {platform}")

    monkeypatch.setattr(jax, "devices", absent)
    assert operations.count_flops(jnp.matmul, *operands) is None
