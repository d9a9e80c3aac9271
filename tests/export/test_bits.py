"""Streams of k-bit codes, against NumPy."""

import numpy as np
import pytest
import torch

from lightning_balq.export import pack_codes, unpack_codes

COUNTS = [0, 1, 7, 8, 9, 1000]


def draw(bits, count):
    return np.random.default_rng(bits).integers(0, 2**bits, count).astype(np.uint8)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", COUNTS)
def test_stream_holds_the_bits_of_each_code_lowest_first(bits, count):
    codes = draw(bits, count)
    stream = pack_codes(torch.from_numpy(codes), bits)
    planes = (codes[:, None] >> np.arange(bits)) & 1
    expected = np.packbits(planes.astype(np.uint8).reshape(-1), bitorder="little")
    assert len(stream) == -(-count * bits // 8)
    np.testing.assert_array_equal(stream.numpy(), expected)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", COUNTS)
def test_unpacking_gives_back_the_codes(bits, count):
    codes = torch.from_numpy(draw(bits, count))
    assert torch.equal(unpack_codes(pack_codes(codes, bits), count, bits), codes)


def test_codes_of_any_shape_and_stride_are_packed_in_their_order():
    codes = torch.arange(12, dtype=torch.uint8).reshape(3, 4).t()
    assert torch.equal(unpack_codes(pack_codes(codes, 4), 12, 4), codes.reshape(-1))


def test_code_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="`codes` must be below 4, got 4"):
        pack_codes(torch.tensor([1, 4], dtype=torch.uint8), 2)


@pytest.mark.parametrize("size", [3, 5])
def test_stream_of_another_size_is_refused(size):
    with pytest.raises(ValueError, match=r"must have shape \(4,\) for 10 codes of 3 bits"):
        unpack_codes(torch.zeros(size, dtype=torch.uint8), 10, 3)


def test_bits_out_of_range_are_refused():
    with pytest.raises(ValueError, match="`bits` must be from 1 to 8"):
        pack_codes(torch.zeros(3, dtype=torch.uint8), 9)
    with pytest.raises(ValueError, match="`bits` must be from 1 to 8"):
        unpack_codes(torch.zeros(3, dtype=torch.uint8), 3, 0)
