"""The code in README.md and the guide runs as printed."""

import inspect
import re
from pathlib import Path

import pytest

import insgd_optax
import insgd_optax.nnx
from tests.docs import python_blocks
from tests.docs import run_block as run

ROOT = Path(__file__).parents[2]


def test_the_code_in_the_guide_runs():
    loop, bound, stack, mesh, *_ = python_blocks("docs/guide.md")
    namespace = {}
    assert "layers_0/kernel" in run(loop, namespace)
    assert float(namespace["loss"]) < 2.5
    scale = run(bound, namespace).removesuffix(" of the learning rate\n")
    assert 0 < float(scale) < 1
    assert run(stack, namespace) == "(4, 1, 1)\n"
    run(loop, namespace)
    loss = namespace["loss"]
    run(mesh, namespace)
    assert namespace["loss"] < loss
    kernel = namespace["params"]["layers_0"]["kernel"]
    assert len(kernel.sharding.device_set) == 8


@pytest.mark.parametrize("path", ["README.md"])
def test_the_code_in_the_readme_trains(path):
    loop, nnx_capture = python_blocks(path)
    namespace = {}
    printed = run(loop, namespace)
    first, *_, last = (float(line.split()[-1]) for line in printed.splitlines())
    assert last < 0.1 * first
    run(nnx_capture, namespace)
    assert "input_norm" in namespace["norms"]


def test_the_code_on_the_page_of_the_input_covariance_trains():
    namespace = {}
    for block in python_blocks("docs/input_covariance.md"):
        run(block, namespace)
    assert float(namespace["loss"]) < 2.3
    namespace["adam"].init(namespace["params"])


def test_the_code_on_the_first_page_of_the_site_trains():
    (block,) = python_blocks("docs/index.md")
    namespace = {}
    printed = run(block, namespace)
    assert float(printed.removeprefix("loss ")) < 0.1


LISTED = re.findall(r"auto\w+:: (\w+)", (ROOT / "docs/api.md").read_text())


@pytest.mark.parametrize("name", LISTED)
def test_a_docstring_renders_well_in_the_api_reference(name):
    for module in (insgd_optax, insgd_optax.nnx):
        text = inspect.getdoc(getattr(module, name, None)) or ""
        # Sphinx reads the text before a colon in this line as a type.
        for line in re.findall(r"^(?:Returns|Yields):\n +(.*)", text, re.MULTILINE):
            assert ": " not in re.sub(r"`[^`]*`", "", line + " ")
        # An indented formula would be run together into one paragraph.
        for before, block in re.findall(r"^(\S.*)\n\n( {4}\S.*)", text, re.MULTILINE):
            assert before.endswith(":"), block
        # "d. 0 is" would be the fourth item of a list.
        assert not re.search(r"^ +(\w+: )?[a-z]\. ", text, re.MULTILINE)


def test_the_api_reference_lists_every_public_name():
    public = {
        name
        for name, value in vars(insgd_optax).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert set(LISTED) == public
