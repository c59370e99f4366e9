"""docs/adaptive_filtering.md: its code, its pictures and its claims."""

import doctest

import pytest

from tests.insgd_optax import docs_examples
from tests.insgd_optax.docs_examples import DOCS


@pytest.fixture(scope="module")
def figures():
    return docs_examples.load("adaptive_filtering")


@pytest.fixture(scope="module")
def curves():
    return docs_examples.load("learning_curves")


def test_the_examples_on_the_page_pass():
    page = doctest.testfile(str(DOCS / "adaptive_filtering.md"), module_relative=False)
    assert page.attempted > 40 and page.failed == 0


def test_the_pictures_on_the_page_are_the_ones_drawn(x64, figures, curves, tmp_path):
    figures.draw_projection(tmp_path / "nlms_projection.png")
    figures.draw_step_sizes(tmp_path / "nlms_step_sizes.png")
    figures.draw_tracking(tmp_path / "tracking.png", seeds=[0])
    curves.draw(tmp_path / "learning_curves.png", seeds=[0], num_samples=600)
    page = (DOCS / "adaptive_filtering.md").read_text()
    for picture in tmp_path.iterdir():
        assert f"(images/{picture.name})" in page
        assert (DOCS / "images" / picture.name).exists()


def test_colored_input_slows_nlms_but_not_rls(x64, curves):
    white, colored = (
        {
            name: curves.samples_until(curve, threshold=-10)
            for name, curve in curves.learning_curves(color, [0], 4000).items()
        }
        for color in curves.COLORS.values()
    )
    assert colored["NLMS"] > 5 * white["NLMS"]
    for name in ("RLS", "affine projection, order 2", "LMS-Newton, known R"):
        assert colored[name] < 3 * white[name] + 50
        assert 4 * colored[name] < colored["NLMS"]


@pytest.mark.parametrize("through_system", [True, False])
def test_l1_is_not_more_robust_to_impulses_than_l2(x64, figures, through_system):
    for seed in range(3):
        l2, l1 = (
            figures.impulse_misalignment(1000, through_system, p, seed) for p in (2, 1)
        )
        assert l2 < -15 < 20 < l1


@pytest.mark.parametrize("through_system", [True, False])
def test_l1_with_a_sign_error_is_robust_to_impulses(x64, figures, through_system):
    for seed in range(3):
        misalignment = figures.impulse_misalignment(
            1000, through_system, 1, seed, sign_error=True
        )
        assert misalignment < -25
