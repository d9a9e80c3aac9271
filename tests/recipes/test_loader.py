import gc
import warnings

import pytest
import torch
from lightning.fabric.utilities.types import _Stateful  # the protocol by which Lightning knows what it can resume

from recipes.data.batches import EpochBatches, shuffled
from recipes.data.loader import Batch, Loader

SAMPLES, BATCH = 22, 4


def fetch(epoch, samples):
    """Images that tell epoch and sample; every fifth sample is unreadable."""
    kept = torch.tensor([sample for sample in samples if sample % 5])
    return Batch((100.0 * epoch + kept).view(-1, 1, 1, 1), kept, len(samples) - len(kept))


def loader(workers=0, batch_size=BATCH):
    sampler = EpochBatches(lambda epoch: shuffled(SAMPLES, 0, epoch), SAMPLES, batch_size)
    return Loader(sampler, fetch, workers)


def values(batches):
    return [images.flatten().tolist() for images, _ in batches]


def epoch(loader, number):
    loader.batches.set_epoch(number)
    with pytest.warns(UserWarning, match=f"5 images of epoch {number} could not be read and were left out"):
        return values(loader)


def test_workers_change_nothing_and_all_that_is_left_out_is_counted_once():
    alone, several = loader(), loader(workers=2)
    for number in range(2):
        expected = [[100.0 * number + sample for sample in batch if sample % 5] for batch in cut(number)]
        assert epoch(alone, number) == epoch(several, number) == expected
        assert alone.unreadable == several.unreadable == 5


def cut(number):
    order = shuffled(SAMPLES, 0, number)
    return [order[start : start + BATCH] for start in range(0, SAMPLES, BATCH)]


def test_what_an_epoch_that_is_broken_off_left_out_is_counted_too():
    batches = loader()
    iterator = iter(batches)
    while not batches.unreadable:
        next(iterator)
    with pytest.warns(UserWarning, match=f"{batches.unreadable} images of epoch 0"):
        iterator.close()


def test_nothing_is_said_if_nothing_is_left_out():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(Loader(EpochBatches(lambda epoch: [1, 2, 3], 3, 2), fetch))
        gc.collect()


@pytest.mark.filterwarnings("ignore:.* could not be read")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_restored_loader_goes_on_after_the_last_batch_and_then_starts_anew(workers):
    batches = loader(workers)
    batches.batches.set_epoch(3)
    whole = values(batches)
    iterator = iter(batches)
    for _ in range(2):
        next(iterator)
    resumed = loader(workers)
    assert isinstance(resumed, _Stateful)
    resumed.load_state_dict(batches.state_dict())
    assert resumed.state_dict() == batches.state_dict() == {"epoch": 3, "position": 2, "batches": 6}
    iter(resumed)  # Lightning makes an iterator that it may not use
    resumed.batches.set_epoch(3)  # as Lightning does
    assert values(resumed) == whole[2:]
    assert values(resumed) == whole


@pytest.mark.filterwarnings("ignore:.* could not be read")
def test_the_epoch_after_one_that_was_broken_off_or_finished_is_whole():
    batches = loader()
    next(iter(batches))
    resumed = loader()
    resumed.load_state_dict(batches.state_dict())
    resumed.batches.set_epoch(1)  # a limit of the Trainer had ended epoch 0
    assert values(resumed) == values_of_epoch_one()
    list(batches)
    another = loader(batch_size=8)
    another.load_state_dict(batches.state_dict())  # at the end of an epoch, the number of batches may change
    assert len(values(another)) == 3


def values_of_epoch_one():
    batches = loader()
    batches.batches.set_epoch(1)
    return values(batches)


def test_the_middle_of_another_epoch_is_refused():
    with pytest.raises(ValueError, match="after batch 1 of 3 of an epoch, which has 6 batches here"):
        loader().load_state_dict({"epoch": 0, "position": 1, "batches": 3})


@pytest.mark.filterwarnings("ignore:.* could not be read")
def test_no_number_is_drawn_from_the_global_generator():
    before = torch.get_rng_state()
    iterator = iter(loader(workers=1))
    next(iterator)
    del iterator
    assert torch.equal(torch.get_rng_state(), before)
