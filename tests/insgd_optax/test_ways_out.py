"""Errors before training name the remedy."""

import re
from pathlib import Path

import jax.numpy as jnp
import optax
import pytest

import insgd_optax
from insgd_optax import insgd, lms_newton

PARAMS = {"d": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}}
DOCS = Path(__file__).parents[2]


@pytest.mark.parametrize("rule", [insgd, lms_newton])
def test_the_error_for_a_group_without_kernels_names_the_remedy(rule):
    """A decay and a no-decay group: only the group's own weights are listed."""
    labels = {"d": {"kernel": "decay", "bias": "no decay"}}
    tx = optax.partition({"decay": rule(0.1), "no decay": rule(0.1)}, labels)
    with pytest.raises(ValueError, match="optax.partition(.|\n)*optax.sgd") as error:
        tx.init(PARAMS)
    assert "  d/bias\n" in str(error.value) and "d/kernel" not in str(error.value)
    assert "\n1 other is masked away. A group" in str(error.value)
    optax.partition({"decay": rule(0.1), "no decay": optax.sgd(0.1)}, labels).init(
        PARAMS
    )


@pytest.mark.parametrize("rule", [insgd, lms_newton])
def test_flattened_weights_are_an_error(rule):
    with pytest.raises(ValueError, match="optax.flatten, for example,(.|\n)*Leave"):
        optax.flatten(rule(0.1)).init(PARAMS)


def test_code_and_docs_pass_the_whole_sown_collection():
    """`sown["intermediates"]` is a bare KeyError if nothing was sown."""
    files = [DOCS / "README.md", *DOCS.glob("docs/**/*.md"), *DOCS.glob("docs/**/*.py")]
    files += Path(insgd_optax.__file__).parent.glob("*.py")
    handed = re.compile(
        r"input_(norms|covariances)=\w+\[|, \w+\[.intermediates.\]$", re.MULTILINE
    )
    assert len(files) > 40
    for file in files:
        assert not handed.search(file.read_text()), file
    tx = insgd(0.1)
    with pytest.raises(ValueError, match="applied outside"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, input_norms={})


def test_a_bias_outside_any_layer_is_an_error():
    params = {**PARAMS, "bias": jnp.ones(1)}
    norms = {"d": {"input_norm": jnp.array(9.0)}}
    tx = insgd(0.1, scope="layer")
    with pytest.raises(
        ValueError, match=r"outside any layer:\n +exclude it with scope="
    ):
        tx.update(params, tx.init(params), params, input_norms=norms)
