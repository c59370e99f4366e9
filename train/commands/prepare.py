"""`python -m train prepare`: data sets made ready to be read."""

import dataclasses

import tyro

from train import cifar, prepared

Name = tyro.extras.literal_type_from_choices(tuple(cifar.ALL))


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Write a data set as tensorflow-datasets does, once; needs no TensorFlow."""

    name: tyro.conf.Positional[Name]
    """The data set. Its archive is looked for in downloads/ below
    $TFDS_DATA_DIR or ~/tensorflow_datasets, and else downloaded."""


def prepare(config: PrepareConfig) -> int:
    """Finds or downloads the archive, checks it, and writes the data set."""
    from train import tfds_cifar  # Takes seconds to import.

    chosen = cifar.ALL[config.name]
    tfds_cifar.prepare(chosen, prepared.archive(chosen), prepared.data_dir())
    print(
        f"{config.name} is prepared in {prepared.data_dir() / config.name}. Train on "
        f"it: python -m train --dataset {config.name}"
    )
    return 0
