"""Streams of k-bit codes: no bit is wasted between them, whatever k is."""

import torch
from torch import Tensor

from lightning_balq.functional._checks import check_bits

_GROUP = 8
"""Codes that fill whole bytes together: 8 codes of k bits are k bytes."""


def packed_size(count: int, bits: int) -> int:
    """Bytes of ``count`` codes.

    Example:
        >>> packed_size(3, bits=3)
        2
    """
    return (count * bits + 7) // 8


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes in their order; code ``i`` takes bits ``i * k`` to ``i * k + k - 1``, the lowest bit of a byte first.

    NumPy reads it as ``np.unpackbits(stream, bitorder="little")[: count * k].reshape(count, k) @ 2 ** np.arange(k)``.

    Args:
        codes: uint8, from 0 to ``2**bits - 1``, any shape.
        bits: width of a code in bits, 1 to 8.

    Returns:
        uint8, shape ``(packed_size(codes.numel(), bits),)``; bits that are left over are 0.

    Raises:
        ValueError: if a code is too large, or ``bits`` is out of range.

    Example:
        >>> pack_codes(torch.tensor([1, 2, 3, 0, 3], dtype=torch.uint8), bits=2)
        tensor([57,  3], dtype=torch.uint8)
    """
    check_bits(bits)
    flat = codes.reshape(-1)
    if flat.numel() and int(flat.max()) >= 2**bits:
        raise ValueError(f"`codes` must be below {2**bits}, got {int(flat.max())}")
    groups = _in_groups(flat, _GROUP)
    words = torch.zeros(len(groups), dtype=torch.int64)
    for index in range(_GROUP):
        words |= groups[:, index].long() << (bits * index)
    stream = torch.stack([(words >> (8 * index)) & 0xFF for index in range(bits)], dim=1)
    return stream.to(torch.uint8).reshape(-1)[: packed_size(flat.numel(), bits)].clone()


def unpack_codes(stream: Tensor, count: int, bits: int) -> Tensor:
    """Undo :func:`pack_codes`.

    Args:
        stream: uint8, of the size that ``count`` codes take.
        count: number of codes.
        bits: width of a code in bits, 1 to 8.

    Returns:
        uint8, shape ``(count,)``.

    Raises:
        ValueError: if ``stream`` is not of that size, or ``bits`` is out of range.

    Example:
        >>> unpack_codes(torch.tensor([57, 3], dtype=torch.uint8), 5, bits=2)
        tensor([1, 2, 3, 0, 3], dtype=torch.uint8)
    """
    check_bits(bits)
    if stream.shape != (packed_size(count, bits),):
        raise ValueError(
            f"`stream` must have shape ({packed_size(count, bits)},) for {count} codes of {bits} bits, got "
            f"{tuple(stream.shape)}"
        )
    groups = _in_groups(stream, bits)
    words = torch.zeros(len(groups), dtype=torch.int64)
    for index in range(bits):
        words |= groups[:, index].long() << (8 * index)
    mask = 2**bits - 1
    codes = torch.stack([(words >> (bits * index)) & mask for index in range(_GROUP)], dim=1)
    return codes.to(torch.uint8).reshape(-1)[:count].clone()


def _in_groups(values: Tensor, size: int) -> Tensor:
    """Rows of ``size`` values, the last one filled up with zeros."""
    missing = -values.numel() % size
    if missing:
        values = torch.cat([values, values.new_zeros(missing)])
    return values.reshape(-1, size)
