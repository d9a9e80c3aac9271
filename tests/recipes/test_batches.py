import pytest

from recipes.data.batches import EpochBatches, shuffled

SHAPES = [(24, 4, 1), (25, 4, 1), (25, 8, 2), (24, 8, 2), (23, 8, 2), (33, 8, 2), (41, 20, 5), (42, 10, 5), (3, 9, 3)]
"""Samples, batch size and processes: whole batches, short ones, and last ones shorter than the number of processes."""


def ranks(samples, batch_size, world_size, **options):
    """The batches of each process."""
    return [
        [
            batch
            for _, batch in EpochBatches(
                range_of(samples), samples, batch_size, rank=rank, world_size=world_size, **options
            )
        ]
        for rank in range(world_size)
    ]


def range_of(samples):
    return lambda epoch: range(samples)


@pytest.mark.parametrize(("samples", "batch_size", "world_size"), SHAPES)
def test_every_sample_is_taken_once_in_as_many_batches_by_each_process(samples, batch_size, world_size):
    taken = ranks(samples, batch_size, world_size)
    assert sorted(sample for batches in taken for batch in batches for sample in batch) == list(range(samples))
    assert {len(batches) for batches in taken} == {-(-samples // batch_size)}
    sizes = {len(batch) for batches in taken for batch in batches}
    assert min(sizes) >= 1 and max(sizes) <= batch_size // world_size


@pytest.mark.parametrize(("samples", "batch_size", "world_size"), SHAPES[:-1])
def test_dropping_leaves_out_what_does_not_fill_a_batch_and_nothing_else(samples, batch_size, world_size):
    taken = ranks(samples, batch_size, world_size, drop_last=True)
    kept = samples // batch_size * batch_size
    assert sorted(sample for batches in taken for batch in batches for sample in batch) == list(range(kept))
    assert {len(batch) for batches in taken for batch in batches} == {batch_size // world_size}


def test_processes_share_the_batches_of_one():
    (whole,) = ranks(26, 8, 1)
    first, second = ranks(26, 8, 2)
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == whole


def test_the_length_is_that_of_the_batches():
    for samples, batch_size, world_size in SHAPES[:-1]:
        for drop_last in (False, True):
            batches = EpochBatches(
                range_of(samples), samples, batch_size, drop_last=drop_last, rank=0, world_size=world_size
            )
            assert len(batches) == len(list(batches))


def test_an_iteration_may_begin_later_and_another_epoch_begins_at_its_beginning():
    batches = EpochBatches(lambda epoch: [10 * epoch + sample for sample in range(6)], 6, 2)
    batches.set_epoch(3)
    batches.start = 2
    batches.set_epoch(3)
    assert list(batches) == [(3, [34, 35])]
    batches.set_epoch(4)
    assert list(batches) == [(4, [40, 41]), (4, [42, 43]), (4, [44, 45])]


def test_the_order_follows_from_seed_and_epoch():
    orders = {(seed, epoch): shuffled(50, seed, epoch) for seed in range(3) for epoch in range(3)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 9
    assert shuffled(50, 2, 1) == orders[2, 1]


@pytest.mark.parametrize(
    ("samples", "batch_size", "world_size", "options", "message"),
    [
        (9, 3, 2, {}, "multiple of the number of processes, 2, got 3"),
        (1, 4, 2, {}, "number of samples must be at least 2, the number of processes; got 1"),
        (3, 4, 1, {"drop_last": True}, "must be at least 4, the batch size, because `drop_last` .*; got 3"),
        (9, 4, 4, {}, "batch size must be at least 7, got 4: the last of 9 samples would not be enough"),
    ],
)
def test_what_cannot_be_divided_is_refused(samples, batch_size, world_size, options, message):
    with pytest.raises(ValueError, match=message):
        EpochBatches(range_of(samples), samples, batch_size, world_size=world_size, **options)
