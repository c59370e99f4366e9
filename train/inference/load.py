"""`train.load_run`: the trained network of a run, for your own scripts."""

import contextlib
import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from train.data.images import augment, crops, decode
from train.data.types import Preprocessing, RecordedDataset
from train.errors import UserError
from train.run import folder as run_folder
from train.run.checkpoints import Checkpoints, Restored
from train.run.experiment import Experiment
from train.run.folder import RunFolder
from train.run_config import RunConfig
from train.training.networks import train_option
from train.training.state import LoopState, TrainState

Checkpoint = Literal["latest", "best"]


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained network, and how images become its input.

    Attributes:
        model: the Flax module.
        variables: trained "params" and, with batch normalization, "batch_stats".
        class_names: names of the classes, in the order of the logits.
        image_shape: (height, width, channels) of its images.
        preprocessing: mean and standard deviation of each channel, of pixels in [0, 1],
            and how encoded images are brought to `image_shape`.
        step: the optimizer step of the checkpoint.
        config: the options of the run.
    """

    model: nn.Module
    variables: dict[str, Any]
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    preprocessing: Preprocessing
    step: int
    config: RunConfig

    def preprocess(self, images: npt.ArrayLike | jax.Array) -> jax.Array:
        """Normalizes images as in training; works under `jax.jit`.

        Args:
            images: uint8 of shape (batch, *image_shape).

        Returns:
            The input of `model`, float32 of the same shape.

        Raises:
            ValueError: for images of another dtype or shape.
        """
        array = images if isinstance(images, jax.Array) else np.asarray(images)
        if array.dtype != np.uint8 or array.shape[1:] != self.image_shape:
            shape = ", ".join(map(str, self.image_shape))
            raise ValueError(
                f"images must be uint8 of shape (batch, {shape}), got {array.dtype} of "
                f"shape {array.shape}"
            )
        return augment.normalize(
            jnp.asarray(array), self.preprocessing.mean, self.preprocessing.std
        )

    def decode(self, encoded: bytes) -> np.ndarray:
        """Decodes an image file and brings it to the size of the network's images.

        The image is resized to the smallest size that covers `image_shape`, or to the
        shorter side `preprocessing.shorter_side` if that is set, and center-cropped, as
        test images are. Without a `shorter_side`, an image of the right size is not
        changed.

        Args:
            encoded: the bytes of a file, of any format that Pillow reads.

        Returns:
            uint8, of shape `image_shape`: RGB, or gray if the network's images have one
            channel.

        Raises:
            ValueError: if it cannot be decoded.
            train.errors.UserError: if the network's images have neither one channel nor
                three.
        """
        return decode_image(self, encoded)[0]

    def predict(self, images: npt.ArrayLike, batch_size: int = 256) -> np.ndarray:
        """Computes the probability of each class for each image.

        Args:
            images: uint8 of shape (number of images, *image_shape).
            batch_size: images per call of the network; the last batch is padded.

        Returns:
            Probabilities, float32 of shape (number of images, number of classes).

        Raises:
            ValueError: for images of another dtype or shape.
        """
        images = np.asarray(images)
        if not len(images):
            self.preprocess(images)
            return np.zeros((0, len(self.class_names)), np.float32)
        batch_size = min(batch_size, len(images))
        found = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            padding = [(0, batch_size - len(batch)), *[(0, 0)] * (images.ndim - 1)]
            probabilities = self._probabilities(self.variables, np.pad(batch, padding))
            found.append(np.asarray(probabilities)[: len(batch)])
        return np.concatenate(found)

    @functools.cached_property
    def _probabilities(self) -> Any:
        def probabilities(variables: Any, images: jax.Array) -> jax.Array:
            logits: Any = self.model.apply(
                variables, self.preprocess(images), **train_option(self.model, False)
            )
            return jax.nn.softmax(logits.astype(jnp.float32))

        return jax.jit(probabilities)


def decode_image(model: TrainedModel, encoded: bytes) -> tuple[np.ndarray, bool]:
    """Like `TrainedModel.decode`; also returns whether the image had another size."""
    height, width, channels = model.image_shape
    if channels not in (1, 3):
        raise UserError(
            f"The network takes images of {channels} channels, which cannot be read "
            "from files. Pass arrays to the predict method of the model that "
            "train.load_run returns."
        )
    try:
        image = decode.image(encoded)
    except decode.UNDECODABLE as error:
        # Pillow's message ends with the memory address of the buffer.
        reason = str(error).partition(" <_io.")[0]
        raise ValueError(f"not an image that can be decoded: {reason}") from error
    if channels == 1:
        image = image.convert("L")
    pixels = crops.resize_and_crop(
        image, (height, width), model.preprocessing.shorter_side
    )
    return pixels.reshape(model.image_shape), image.size != (width, height)


def load_run(
    path: str | Path, checkpoint: Checkpoint = "latest", *, trust_code: bool = False
) -> TrainedModel:
    """Loads the trained network of a run.

    Neither the training images nor the devices on which it was trained are needed. The
    checkpoint is verified by its checksum; if it is damaged, the latest or best of the
    others that is intact takes its place, with a warning.

    Args:
        path: the run folder.
        checkpoint: "latest", or "best", the one with the highest accuracy on the
            validation images. In a run without validation images, "best" is selected on
            the test images, so its test accuracy is optimistic.
        trust_code: whether to import, and so run, code that the run's record names as
            MODULE:NAME.

    Returns:
        The network, its variables and its preprocessing.

    Raises:
        train.errors.UserError: if it is not a run folder, has no intact checkpoint, or
            names code and `trust_code` is not set.

    Example:
        >>> run = train.load_run("runs/digits")  # doctest: +SKIP
        >>> run.class_names[run.predict(images)[0].argmax()]  # doctest: +SKIP
        '7'
    """
    if checkpoint not in ("latest", "best"):
        raise ValueError(f"checkpoint must be 'latest' or 'best', got {checkpoint!r}")
    folder = run_folder.load(Path(path), None if trust_code else ())
    model, found = restore_model(folder, checkpoint)
    for message in found:
        warnings.warn(message, stacklevel=2)
    return model


def restore_model(
    folder: RunFolder, checkpoint: Checkpoint
) -> tuple[TrainedModel, tuple[str, ...]]:
    """Like `load_run`, but returns the warnings with the model.

    Raises:
        UserError: as `restore`.
    """
    run = restore(folder, checkpoint)
    state, dataset = run.state, run.dataset
    variables = {name: tree for name, tree in state.variables.items() if tree}
    model = TrainedModel(
        model=run.model,
        variables=variables,
        class_names=dataset.class_names,
        image_shape=dataset.image_shape,
        preprocessing=dataset.preprocessing,
        step=run.step,
        config=run.config,
    )
    return model, run.warnings


@dataclasses.dataclass(frozen=True)
class RestoredRun:
    """A run's state at a checkpoint, on the first device."""

    config: RunConfig
    dataset: RecordedDataset
    model: nn.Module
    state: TrainState
    step: int
    warnings: tuple[str, ...]  # About checkpoints, and about the user's own code.


def restore(folder: RunFolder, checkpoint: Checkpoint) -> RestoredRun:
    """Restores a run's state, without its data.

    Raises:
        UserError: if there is no checkpoint, or none is intact.
    """
    config, dataset = folder.config, folder.recorded_dataset()
    experiment = Experiment(dataclasses.replace(config, parallel="jit"), dataset)
    restored = _restore(folder, checkpoint, experiment)
    found = [
        f"{message} Step {restored.step} is used instead."
        for message in restored.damaged.values()
    ]
    found += [each for each in (restored.warning, folder.code_warning) if each]
    return RestoredRun(
        config=config,
        dataset=dataset,
        model=experiment.model,
        state=LoopState.from_checkpoint(restored.tree).state,
        step=restored.step,
        warnings=tuple(found),
    )


def _restore(
    folder: RunFolder, checkpoint: Checkpoint, experiment: Experiment
) -> Restored:
    restored = None
    if folder.checkpoints.is_dir():  # `Checkpoints` would create it.
        checkpoints = Checkpoints(folder.checkpoints, LoopState.step_of_checkpoint)
        with contextlib.closing(checkpoints):
            start = experiment.abstract_start().to_checkpoint()
            if checkpoint == "best":
                restored = checkpoints.restore_best(like=start)
            else:
                restored = checkpoints.restore_latest(like=start)
    if restored is None:
        raise UserError(
            f"{folder.checkpoints} has no checkpoint yet. Resume the run: "
            f"python -m train --resume {folder.path}"
        )
    return restored
