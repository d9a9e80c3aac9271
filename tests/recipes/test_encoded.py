import numpy as np
import pytest
from PIL import Image

from recipes.data.encoded import Encoded, OpenedImage, UnreadableImage
from tests.recipes.pictures import encoded, noise, truncated


def opened(content):
    return OpenedImage(Encoded(3, content, 0, "image 3 of data"))


def grey(value):
    return Image.new("L", (6, 4), value)


def palette():
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return image


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (encoded(grey(77)), (77, 77, 77)),
        (encoded(grey(77), "JPEG"), (77, 77, 77)),
        (encoded(Image.new("1", (6, 4), 1)), (255, 255, 255)),
        (encoded(Image.new("LA", (6, 4), (50, 128))), (50, 50, 50)),
        (encoded(palette()), (10, 200, 30)),
        (encoded(palette(), transparency=b"\x00\x80"), (10, 200, 30)),
        (encoded(Image.new("RGBA", (6, 4), (9, 8, 7, 0))), (9, 8, 7)),
        (encoded(Image.new("CMYK", (6, 4), (255, 0, 0, 0)), "JPEG"), (0, 255, 255)),
        (encoded(Image.new("RGB", (6, 4), (1, 2, 3)), "GIF"), (1, 2, 3)),
    ],
    ids=["grey", "grey JPEG", "1 bit", "grey, alpha", "palette", "palette, alpha", "alpha", "CMYK", "GIF"],
)
def test_every_mode_becomes_rgb(content, colour, recwarn):
    image = opened(content)
    assert image.size == (6, 4)
    pixels = image.pixels()
    assert pixels.mode == "RGB"
    # a JPEG is exact to rounding
    assert np.abs(np.asarray(pixels).astype(int) - colour).max() <= 1
    assert not recwarn.list


def test_pixels_need_no_decoding():
    stored = np.asarray(noise(6, 4))
    assert np.array_equal(np.asarray(opened(stored).pixels()), stored)


def test_a_jpeg_is_decoded_at_a_fraction_that_is_large_enough():
    content = encoded(noise(320, 240), "JPEG")
    sizes = {
        at_least: opened(content).pixels(at_least).size for at_least in [None, (81, 60), (80, 60), (40, 31), (1, 1)]
    }
    assert list(sizes.values()) == [(320, 240), (160, 120), (80, 60), (80, 60), (40, 30)]


@pytest.mark.parametrize(
    "content",
    [b"", b"no image at all", encoded(noise(32, 24))[:-200], "/nowhere/at/all.png"],
    ids=["empty", "text", "PNG without end", "no file"],
)
def test_what_cannot_be_read_is_named(content):
    with pytest.raises(UnreadableImage, match="image 3 of data cannot be read: "):
        opened(content).pixels()


def test_a_truncated_jpeg_is_opened_and_not_decoded():
    image = opened(truncated())
    assert image.size == (160, 120)
    with pytest.raises(UnreadableImage, match=r"image 3 of data cannot be read: (?i:.*truncated)"):
        image.pixels()
