"""Small data and runs for the tests of the application."""

import jax
import numpy as np
import pytest
from PIL import Image

from train.augment import Augmentation
from train.datasets import ImageDataset, Preprocessing, Split


@pytest.fixture
def small_dataset():
    """48 training and 20 test images of 8x8 pixels in 3 classes, told apart by eye."""

    def split(rng, size):
        labels = np.arange(size, dtype=np.int32) % 3
        images = rng.integers(0, 60, (size, 8, 8, 1))
        images[np.arange(size), 2 * labels, :, 0] += 190
        return Split(images.astype(np.uint8), labels)

    rng = np.random.default_rng(0)
    return ImageDataset(
        name="stripes",
        train=split(rng, 48),
        test=split(rng, 20),
        class_names=("a", "b", "c"),
        preprocessing=Preprocessing(
            (0.3,), (0.25,), Augmentation(padding=1, flip=True)
        ),
    )


@pytest.fixture
def image_folder(tmp_path):
    """A folder of 3 training and 1 test image in each of 2 classes, as PNG, 32x32."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for split, size in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(size):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session", autouse=True)
def quick_compilation(tmp_path_factory):
    """Small programs that run a few times: compiling them is what takes the time."""
    settings = {
        "jax_disable_most_optimizations": True,
        # Runs that are compared with each other compile the same programs.
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.3,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
