"""Images on PyTorch's device, cropped and flipped as in `train.data.images.augment`."""

from collections.abc import Iterator

import torch

from benchmarks.parts.pytorch import step
from train.data.types import ImageDataset

Batch = tuple[torch.Tensor, torch.Tensor]
_EVALUATION_BATCH = 1000


class Images:
    """A whole dataset on the device.

    Args:
        dataset: the dataset.
        batch_size: training batch size; an epoch omits an incomplete last batch.
    """

    def __init__(self, dataset: ImageDataset, batch_size: int):
        device = step.device()
        train, test = dataset.train, dataset.test
        self._train = torch.tensor(train.images, device=device)
        self._labels = torch.tensor(train.labels, device=device, dtype=torch.long)
        self._test = torch.tensor(test.images, device=device)
        self._test_labels = torch.tensor(test.labels, device=device, dtype=torch.long)
        mean, std, self._augmentation, *_ = dataset.preprocessing
        self._mean = 255 * torch.tensor(mean, device=device)
        self._std = 255 * torch.tensor(std, device=device)
        self._batch_size = batch_size

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """Yields an epoch's batches; its number determines their order and crops."""
        device, size = self._train.device, self._batch_size
        generator = torch.Generator(device).manual_seed(epoch)
        order = torch.randperm(len(self._labels), generator=generator, device=device)
        # All at once: a few kernels an epoch instead of a few a step.
        images = self._normalized(self._augmented(order, generator))
        labels = self._labels[order]
        for first in range(0, len(labels) - size + 1, size):
            batch = slice(first, first + size)
            yield images[batch], labels[batch]

    def test_batches(self) -> Iterator[Batch]:
        """All test images."""
        for first in range(0, len(self._test_labels), _EVALUATION_BATCH):
            batch = slice(first, first + _EVALUATION_BATCH)
            yield self._normalized(self._test[batch]), self._test_labels[batch]

    @property
    def num_test(self) -> int:
        """Returns the number of test images."""
        return len(self._test_labels)

    def _augmented(
        self, indices: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Returns images by index, each padded, cropped and possibly flipped."""
        _, height, width, _ = self._train.shape
        padding, flip, _ = self._augmentation
        samples, device = len(indices), indices.device

        def draw(count: int, shape: tuple[int, ...]) -> torch.Tensor:
            """Draws integers from 0 to `count` - 1."""
            return torch.randint(0, count, shape, generator=generator, device=device)

        offsets = draw(2 * padding + 1, (samples, 2)) - padding
        flips = (draw(2, (samples, 1)) * flip).bool()
        columns = torch.arange(width, device=device)[None]
        columns = torch.where(flips, width - 1 - columns, columns) + offsets[:, 1:]
        rows = torch.arange(height, device=device)[None] + offsets[:, :1]
        inside = ((rows >= 0) & (rows < height))[:, :, None]
        inside = inside & ((columns >= 0) & (columns < width))[:, None]
        taken = self._train[
            indices[:, None, None],
            rows.clamp(0, height - 1)[:, :, None],
            columns.clamp(0, width - 1)[:, None],
        ]
        return taken * inside[..., None]

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        """Returns shape (batch, channels, height, width), channels last in memory."""
        return ((images - self._mean) / self._std).permute(0, 3, 1, 2)
