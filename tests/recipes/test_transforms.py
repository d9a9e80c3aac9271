import numpy as np
import pytest
from PIL import Image

from recipes.data.encoded import Encoded, OpenedImage
from recipes.data.transforms import CentralCrop, RandomResizedCrop, resize_shorter_side
from tests.recipes.pictures import encoded, noise, numbered


def opened(image, form="PNG", **options):
    return OpenedImage(Encoded(0, encoded(image, form, **options), 0, "an image"))


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("size", "resized", "box"),
    [
        ((500, 375), (341, 256), (58, 16, 282, 240)),  # by hand: 500 * 256 / 375 = 341.3; (341 - 224) / 2 = 58.5
        ((375, 500), (256, 341), (16, 58, 240, 282)),
        ((256, 256), (256, 256), (16, 16, 240, 240)),
        ((90, 60), (384, 256), (80, 16, 304, 240)),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_evaluation_is_the_center_of_the_resized_image(size, resized, box, form):
    content = encoded(noise(*size), form)
    image = OpenedImage(Encoded(0, content, 0, "an image"))
    result = CentralCrop(256, 224)(image, rng())
    assert result.size == (224, 224) and result.mode == "RGB"
    plain = opened(noise(*size), form).pixels().resize(resized, Image.Resampling.BILINEAR).crop(box)
    assert np.array_equal(np.asarray(result), np.asarray(plain))


def test_reducing_averages():
    checks = np.zeros((64, 64, 3), dtype=np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 200
    reduced = np.asarray(resize_shorter_side(Image.fromarray(checks), 8))
    assert reduced.shape == (8, 8, 3)
    assert np.abs(reduced.astype(int) - 100).max() <= 2  # without antialiasing, 0 or 200


def test_a_shorter_side_that_is_right_is_left_alone():
    image = noise(20, 12)
    assert resize_shorter_side(image, 12) is image


@pytest.mark.parametrize("size", [(500, 375), (224, 224), (90, 300)], ids=str)
def test_random_crops_lie_inside_and_have_the_areas_and_ratios_asked_for(size):
    width, height = size
    draw, crop = rng(), RandomResizedCrop(224)
    boxes = np.array([crop.box(width, height, draw) for _ in range(4000)])
    left, upper, right, lower = boxes.T
    assert left.min() >= 0 and upper.min() >= 0 and right.max() <= width and lower.max() <= height
    across, down = right - left, lower - upper
    # rounding moves each side by half a pixel
    assert (across / (down + 0.5)).max() < 4 / 3 + 0.02 and ((across + 0.5) / down).min() > 3 / 4 - 0.02
    areas = across * down / (width * height)
    assert 0.075 < areas.min() < 0.1
    # beginnings are spread over all places
    assert left.min() == 0 and upper.min() == 0 and right.max() == width and lower.max() == height


def test_areas_and_ratios_of_random_crops_are_uniform():
    # Small parts of a square always fit, so that nothing is drawn again.
    draw, crop = rng(), RandomResizedCrop(224, smallest=0.08)
    boxes = np.array([crop.box(1000, 1000, draw) for _ in range(20_000)])
    across, down = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, ratios = across * down / 1e6, np.log(across / down)
    small = areas < 0.5
    deviation = 0.29 / np.sqrt(small.sum())  # of the mean of so many uniform numbers, relative to their range
    assert abs(areas[small].mean() - 0.29) < 4 * deviation * 0.42
    assert abs(ratios[small].mean()) < 4 * deviation * 2 * np.log(4 / 3)
    expected = 2 * np.log(4 / 3) / np.sqrt(12)
    assert ratios[small].std() == pytest.approx(expected, rel=0.03)
    # the share of small ones among all draws, of which those above 3/4 may not fit
    assert 0.42 / 0.92 < small.mean() < 0.6


@pytest.mark.parametrize(("size", "box"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506))], ids=str)
def test_where_nothing_fits_the_largest_center_is_taken(size, box):
    assert RandomResizedCrop(8, smallest=1.0).box(*size, rng()) == box


def test_a_training_image_is_the_part_that_was_drawn_resized():
    crop, image = RandomResizedCrop(32), noise(100, 80)
    seen = set()
    for seed in range(8):
        result = np.asarray(crop(opened(image), rng(seed)))
        part = image.crop(crop.box(100, 80, rng(seed))).resize((32, 32), Image.Resampling.BILINEAR)
        pixels = np.asarray(part)
        flipped = np.array_equal(result, pixels[:, ::-1])
        assert flipped or np.array_equal(result, pixels)
        seen.add(flipped)
    assert seen == {True, False}


def test_half_of_the_training_images_are_flipped():
    half = Image.new("L", (8, 8))
    half.paste(255, (4, 0, 8, 8))
    crop = RandomResizedCrop(8, smallest=1.0)
    flips = [np.asarray(crop(opened(half), rng(seed)))[0, 0, 0] > 127 for seed in range(1000)]
    assert abs(np.mean(flips) - 0.5) < 4 * 0.5 / np.sqrt(1000)


def test_a_large_jpeg_is_decoded_small_and_shows_the_same_part():
    large = noise(1600, 1200)
    # The same pixels in a format that cannot be decoded small.
    full = opened(opened(large, "JPEG", quality=95).pixels())
    sizes = set()
    for seed in range(6):
        image = opened(large, "JPEG", quality=95)
        small = np.asarray(RandomResizedCrop(64)(image, rng(seed))).astype(int)
        sizes.add(image.size)
        exact = np.asarray(RandomResizedCrop(64)(full, rng(seed))).astype(int)
        difference = np.abs(small - exact).mean()
        moved = min(np.abs(np.diff(exact, axis=axis)).mean() for axis in (0, 1))  # by one pixel of the result
        assert difference < 0.5 < 4 * difference < moved
    assert all(width < 1600 for width, _ in sizes) and len(sizes) > 1


def test_evaluation_decodes_at_full_size():
    image = opened(numbered(3, 1600, 1200), "JPEG")
    CentralCrop(64, 64)(image, rng())
    assert image.size == (1600, 1200)
