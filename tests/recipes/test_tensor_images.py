import numpy as np
import pytest
import torch
from torch.testing import assert_close

from recipes.data.tensor_images import TensorImages
from tests.waiting import DEVICES, without_waiting

COUNT, SIZE, PADDING = 400, 5, 2
IMAGES = torch.randint(1, 256, (COUNT, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT)
PLAIN = {"mean": (0.0,) * 3, "deviation": (1 / 255,) * 3}  # values stay those of pixels


def augmented(epoch=0, seed=0, indices=range(COUNT)):
    fetch = TensorImages(IMAGES, LABELS, **PLAIN, padding=PADDING, flip=True, seed=seed)
    return fetch(epoch, list(indices)).images.round().to(torch.uint8)


def variants(image):
    """All crops of an image, and their mirror images, by shift and flip."""
    padded = np.zeros((3, SIZE + 2 * PADDING, SIZE + 2 * PADDING), dtype=np.uint8)
    padded[:, PADDING : PADDING + SIZE, PADDING : PADDING + SIZE] = image
    shifts = range(2 * PADDING + 1)
    crops = {(down, right): padded[:, down : down + SIZE, right : right + SIZE] for down in shifts for right in shifts}
    return {(*shift, flip): crop[:, :, ::-1] if flip else crop for shift, crop in crops.items() for flip in (0, 1)}


def test_every_image_is_a_crop_of_its_padded_self_and_all_are_as_likely():
    counts = {}
    for image, result in zip(IMAGES.numpy(), augmented().numpy(), strict=True):
        (found,) = [name for name, crop in variants(image).items() if np.array_equal(crop, result)]
        counts[found] = counts.get(found, 0) + 1
    for axis in (0, 1):
        shares = np.bincount([name[axis] for name, count in counts.items() for _ in range(count)]) / COUNT
        assert len(shares) == 5 and np.abs(shares - 0.2).max() < 4 * np.sqrt(0.16 / COUNT)
    assert abs(sum(count for name, count in counts.items() if name[2]) / COUNT - 0.5) < 4 * np.sqrt(0.25 / COUNT)


def test_augmentation_follows_from_seed_epoch_and_image():
    whole = augmented()
    assert torch.equal(augmented(indices=[7, 3, 99]), whole[[7, 3, 99]])
    assert not torch.equal(augmented(epoch=1), whole)
    assert not torch.equal(augmented(seed=1), whole)
    fetch = TensorImages(IMAGES, LABELS, **PLAIN, padding=PADDING, flip=True)
    fetch(5, [0])
    assert torch.equal(fetch(0, list(range(COUNT))).images.round().to(torch.uint8), whole)


def test_without_augmentation_images_are_normalised_and_no_more():
    mean, deviation = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    before = IMAGES.clone()
    images, labels, unreadable = TensorImages(IMAGES, LABELS, mean, deviation)(3, [5, 2])
    expected = IMAGES[[5, 2]].numpy().transpose(0, 2, 3, 1).astype(np.float32) / np.float32(255) - np.float32(mean)
    expected = expected / np.float32(deviation)
    assert_close(images, torch.from_numpy(expected).permute(0, 3, 1, 2), rtol=0, atol=0)
    assert labels.tolist() == [5, 2] and labels.dtype == torch.int64 and unreadable == 0
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize("flip", [True, False])
def test_flips_happen_only_when_asked_for(flip):
    images = TensorImages(IMAGES, LABELS, **PLAIN, flip=flip)(0, list(range(COUNT))).images.round().to(torch.uint8)
    changed = (images != IMAGES).flatten(1).any(1)
    assert bool(changed.any()) == flip
    assert torch.equal(images[changed], IMAGES[changed].flip(-1))


@pytest.mark.parametrize("device", DEVICES)
def test_no_batch_waits_for_the_device(device):
    fetch = TensorImages(IMAGES.to(device), LABELS.to(device), **PLAIN, padding=PADDING, flip=True)
    fetch(0, [0])  # mean and deviation are uploaded once
    with without_waiting(device):
        images, labels, _ = fetch(1, [3, 5, 7])
    assert torch.equal(images.round().to(torch.uint8).cpu(), augmented(epoch=1, indices=[3, 5, 7]))
    assert labels.tolist() == [3, 5, 7]
