"""A long run takes no more memory and time for a step than a short one."""

import pytest

from benchmarks.bench_soak import BLOCK, STEPS, growth, slowest, soak

MIB = 2**20


def test_300_steps_leave_no_more_tensors_hooks_and_levels_than_100() -> None:
    record = soak(300, 100, exclude=["rnn.state"])  # the code for states takes long to compile
    for name in ("tensors", "hooks", "levels_kept"):
        first, *later = record[name]
        assert later == [first, first], name
    assert record["levels_kept"][0] == 3  # of a convolution and the two weights of an LSTM: none of an earlier step
    assert growth(record) <= 4 * MIB  # allocators keep some


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_10000_steps_grow_neither_in_memory_nor_in_time() -> None:
    record = soak(STEPS, BLOCK)
    assert growth(record) <= 16 * MIB
    assert slowest(record) <= 1.1
    for name in ("tensors", "hooks", "levels_kept"):
        assert len(set(record[name])) == 1, name
