"""Images that must not be decoded."""

import io
import tracemalloc

import pytest
from PIL import Image

from train.data.images import decode


@pytest.mark.parametrize("kind", ["png", "gif", "tiff"])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(kind):
    encoded = io.BytesIO()
    Image.new("1", (13000, 13000)).save(encoded, kind)  # A few KB as PNG.
    tracemalloc.start()
    with pytest.raises(decode.UNDECODABLE, match="13000 x 13000 pixels exceed"):
        decode.rgb(encoded.getvalue())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 30e6
