"""Images damaged at random are either decoded or refused."""

import collections
import io

import numpy as np
import pytest
from PIL import Image

from train.data.images import decode

IMAGES = 40
KINDS = ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm")


def encoded(kind, rng):
    """An image of random size."""
    pixels = rng.integers(0, 256, (*rng.integers(8, 64, 2), 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def damaged(content, rng):
    """Cuts an image, overwrites a part, its header or all of it."""
    kind = rng.integers(4)
    start = int(rng.integers(len(content)))
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[:start] + rng.bytes(16) + content[start + 16 :]
    if kind == 2:
        return content[:16] + rng.bytes(16) + content[32:]
    return rng.bytes(len(content))


@pytest.mark.slow
def test_a_damaged_image_is_decoded_or_refused(report):
    counts = collections.Counter()
    for seed in range(IMAGES):
        rng = np.random.default_rng(seed)
        content = damaged(encoded(KINDS[seed % len(KINDS)], rng), rng)
        try:
            pixels = decode.rgb(content)
        except decode.UNDECODABLE:
            counts["refused"] += 1
        else:
            counts["decoded"] += 1
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
    report(f"{sum(counts.values())} damaged images: {dict(sorted(counts.items()))}")
