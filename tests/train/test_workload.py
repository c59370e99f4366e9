"""Workloads of the benchmark, parsed from text."""

import pytest

from train.benchmark import workload
from train.benchmark.workload import Workload


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("custom_cnn", [("custom_cnn", (), 8), ("custom_cnn", (), 16)]),
        ("vit:width=128,depth=4@32", [("vit", (("width", 128), ("depth", 4)), 32)]),
        (
            "resnet20:stage_sizes=1x2x1,shortcut=identity@4",
            [
                (
                    "resnet20",
                    (("stage_sizes", (1, 2, 1)), ("shortcut", "identity")),
                    4,
                )
            ],
        ),
    ],
)
def test_networks_with_options_and_batch_sizes_are_parsed(text, expected):
    parsed = workload.parse(text, (8, 16), "float32")
    assert parsed == [Workload(*one, "float32") for one in expected]
    assert {one.network for one in parsed} == {text.partition("@")[0]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resnet21", "is not a network: expected one of custom_cnn, resnet20"),
        ("vit@many", "expected a batch size after @, got 'many'"),
        ("vit:width", "must be NAME=VALUE, such as stem=cifar, got 'width'"),
        ("vit:widht=4", "did you mean 'width'"),
    ],
)
def test_invalid_workloads_are_errors(text, words):
    with pytest.raises(ValueError, match=words):
        workload.parse(text, (8,), "float32")


def test_one_quantity_varies_along_an_axis():
    (base,) = workload.parse("resnet20:width=4@32", (), "float32")
    (vit,) = workload.parse("vit@32", (), "float32")
    grown = {axis: workload.along(axis, base, (1, 2)) for axis in workload.AXES}
    assert [w.options for w in grown["width"]] == [(("width", 1),), (("width", 2),)]
    assert [dict(w.options)["stage_sizes"] for w in grown["depth"]] == [
        (1, 1, 1),
        (2, 2, 2),
    ]
    assert [w.batch_size for w in grown["batch"]] == [1, 2]
    assert workload.along("depth", vit, (3,))[0].options == (("depth", 3),)
    assert len(workload.along("width", base, ())) == 3
    (cnn,) = workload.parse("custom_cnn@8", (), "float32")
    with pytest.raises(ValueError, match="--axis width: .*'custom_cnn' has no option"):
        workload.along("width", cnn, (1,))
