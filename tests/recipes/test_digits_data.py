import numpy as np
import pytest
import torch
from torch.testing import assert_close

from recipes.data.digits import Digits

load_digits = pytest.importorskip("sklearn.datasets").load_digits
pytestmark = pytest.mark.usefixtures("no_seed")


def ready(**options):
    data = Digits(**options)
    data.setup("fit")
    return data


def rows(loader):
    batches = list(loader)
    images, labels = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    return [(tuple(image.flatten().tolist()), int(label)) for image, label in zip(images, labels, strict=True)]


def test_both_parts_together_are_the_digits_of_scikit_learn():
    data = ready()
    assert data.classes == 10
    train, test = rows(data.train_dataloader()), rows(data.test_dataloader())
    assert (len(train), len(test)) == (1197, 600)
    source = load_digits()
    expected = [
        (tuple(image.flatten() / 16), int(label)) for image, label in zip(source.images, source.target, strict=True)
    ]
    assert sorted(train + test) == sorted(expected)
    assert rows(data.val_dataloader()) == test


def test_batches_are_of_one_channel_and_shuffled_anew_in_each_epoch():
    loader = ready(batch_size=100, drop_last=True).train_dataloader()
    images, labels = next(iter(loader))
    assert images.shape == (100, 1, 8, 8) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.min() >= 0 and images.max() == 1
    assert len(loader) == 11
    loader.batches.set_epoch(1)
    again = next(iter(loader))[0]
    assert not torch.equal(images, again)
    assert_close(next(iter(loader))[0], again, rtol=0, atol=0)


def test_the_split_is_that_of_the_quickstart():
    from recipes.digits import digits

    images, labels = digits()[1].tensors
    found = next(iter(ready().test_dataloader()))
    assert np.array_equal(found[0], images) and np.array_equal(found[1], labels)


def test_batch_sizes_must_be_positive():
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        Digits(batch_size=0)
