import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from recipes.data.draws import generator
from recipes.data.tensor_crops import TensorCrops, crop_and_resize, random_boxes
from recipes.data.transforms import RandomResizedCrop
from tests.waiting import DEVICES, without_waiting

SIDE = 16
IMAGES = torch.randint(256, (60, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60)
PLAIN = {"mean": (0.0,) * 3, "deviation": (1 / 255,) * 3}  # values stay those of pixels


def parts(epoch=0, seed=0, indices=range(60), **options):
    fetch = TensorCrops(IMAGES, LABELS, **PLAIN, **{"size": 12, "smallest": 0.3, "seed": seed, **options})
    return fetch(epoch, list(indices))


@pytest.mark.parametrize("box", [(0, 0, 16, 16), (3, 1, 9, 12), (15, 0, 1, 16), (4, 4, 12, 12), (0, 9, 16, 7)])
def test_a_part_is_resized_as_torch_resizes_it_alone(box):
    left, upper, width, height = box
    image = IMAGES[:1].float()
    part = image[:, :, upper : upper + height, left : left + width]
    expected = F.interpolate(part, (12, 12), mode="bilinear", align_corners=False)
    result = crop_and_resize(IMAGES[:1], torch.tensor([box]), 12)
    assert_close(result, expected, rtol=0, atol=0.01)  # of 255: places in an image are rounded in float32


def test_parts_are_drawn_as_one_by_one():
    crop = RandomResizedCrop(12, 0.3)
    one_by_one = np.array([crop.box(SIDE, SIDE, generator(0, 0, 1, number)) for number in range(4000)])
    sizes = np.concatenate([one_by_one[:, :2], one_by_one[:, 2:] - one_by_one[:, :2]], axis=1)
    boxes = random_boxes(np.random.default_rng(1), 4000, SIDE, 0.3)
    assert (boxes >= [0, 0, 1, 1]).all() and (boxes[:, :2] + boxes[:, 2:] <= SIDE).all()
    for power in (1, 2):
        difference = (boxes**power).mean(0) - (sizes**power).mean(0)
        error = np.sqrt(((boxes**power).var(0) + (sizes**power).var(0)) / 4000)
        assert (np.abs(difference) < 4 * error).all()


def test_where_no_part_fits_the_image_is_taken_whole():
    assert random_boxes(np.random.default_rng(0), 1, 1, 0.3).tolist() == [[0, 0, 1, 1]]
    never = np.random.default_rng(0)
    boxes = random_boxes(never, 50, 2, 1.0)  # of all of the area, and not square: too wide or too high
    assert (boxes[:, 2:] <= 2).all() and (boxes[:, 2:] == 2).any()


def test_parts_follow_from_seed_epoch_and_image():
    whole = parts()
    assert torch.equal(parts(indices=[7, 3]).images, whole.images[[7, 3]])
    assert not torch.equal(parts(epoch=1).images, whole.images)
    assert not torch.equal(parts(seed=1).images, whole.images)
    assert whole.images.shape == (60, 3, 12, 12) and whole.images.dtype == torch.float32
    assert torch.equal(whole.labels, LABELS) and whole.unreadable == 0


def test_half_of_the_images_are_flipped():
    steps = torch.arange(SIDE, dtype=torch.uint8).expand(400, 3, SIDE, SIDE)  # brighter to the right
    fetch = TensorCrops(steps, torch.arange(400), **PLAIN, size=12, smallest=0.9, seed=0)
    images = fetch(0, list(range(400))).images
    rising = (images.diff(dim=-1) >= 0).flatten(1).all(1)
    falling = (images.diff(dim=-1) <= 0).flatten(1).all(1)
    assert torch.equal(rising, ~falling)
    assert abs(rising.float().mean() - 0.5) < 4 * math.sqrt(0.25 / 400)


@pytest.mark.parametrize("device", DEVICES)
def test_no_batch_waits_for_the_device(device):
    fetch = TensorCrops(IMAGES.to(device), LABELS.to(device), **PLAIN, size=12, smallest=0.3, seed=0)
    fetch(0, [0])  # mean and deviation are uploaded once
    with without_waiting(device):
        images, labels, _ = fetch(1, [3, 5, 7])
    assert_close(images.cpu(), parts(epoch=1, indices=[3, 5, 7]).images, rtol=0, atol=0.01)  # as above
    assert labels.tolist() == [3, 5, 7]
