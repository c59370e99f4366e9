"""Prints the multiplier 1 / max(log P, eps) of every layer at initialization.

    python docs/examples/input_multipliers.py PATH_TO_IMAGES

PATH_TO_IMAGES holds `train/<class>/*` images of 32x32; 128 of them are read, spread
over the classes. Each row is a layer, with its l1 and l2 multipliers, for both values
of `conv_input`.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # The application's folder.

import models
from insgd_optax import (
    capture_input_norms,
    learning_rate_multipliers,
    scale_by_input_power,
)

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def read_images(folder: Path, count: int = 128) -> np.ndarray:
    """Every n-th training image, normalized with the paper's constants."""
    files = sorted((folder / "train").glob("*/*"))
    if len(files) < count:
        sys.exit(
            f"{folder}/train/<class>/ holds {len(files)} images: {count} are needed"
        )
    files = files[:: len(files) // count][:count]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]) / 255.0
    return ((pixels - MEAN) / STD).astype(np.float32)


def multipliers(name: str, images: np.ndarray, p: int, conv_input: str) -> dict:
    """The multiplier of every kernel after one batch."""
    model = models.create(name, num_classes=10)
    variables = model.init(jax.random.key(0), images[:2], False)
    with capture_input_norms(p, conv_input=conv_input):
        _, new = model.apply(
            variables,
            images,
            True,
            mutable=["batch_stats", "intermediates"],
            rngs={"dropout": jax.random.key(1)},
        )
    tx = scale_by_input_power()
    params = variables["params"]
    _, state = tx.update(params, tx.init(params), input_norms=new)
    return learning_rate_multipliers(state)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    images = read_images(Path(sys.argv[1]))
    columns = [(p, c) for c in ("feature_map", "patch") for p in (1, 2)]
    for name in ("custom_cnn", "resnet20"):
        table = {column: multipliers(name, images, *column) for column in columns}
        print(f"\n{name:40}", *(f"l{p} {c:12}" for p, c in columns))
        for path in table[columns[0]]:
            print(f"{path:40}", *(f"{table[c][path]:<15.3f}" for c in columns))


if __name__ == "__main__":
    main()
