"""Flat layout of a list of weights: which values share statistics, where they lie, which program handles them.

A *segment* is one weight (per tensor) or one output channel (per channel). Weights are read where they are, through a
table of their addresses; the levels of all of them go to one new buffer. Both tables are uploaded without waiting for
the device, and kept for as long as weights and shapes stay the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lightning_balq.functional._checks import Granularity

FIELDS = 5
"""Columns of a table of segments: weight, offset in it, offset in the result, length, first part (elements, int64)."""

TILES = {256: 1, 1024: 2, 2048: 4, 4096: 4, 8192: 8, 16384: 16}
"""Warps of a program that holds a segment of up to so many values."""

PART = 4096
"""Values of a longer segment that one program handles."""

_ALIGNMENT = 16
"""Bytes of the widest load; where addresses and lengths are multiples of it, loads are wide."""


@dataclass(frozen=True)
class Group:
    """Segments that one launch handles, one program for each segment or, if they are long, for each part."""

    table: Tensor
    """int64, shape ``(segments, FIELDS)``."""
    owners: Tensor
    """Segment of each part, int64; empty for segments of one part."""
    tile: int
    even: bool
    """Whether all lengths are multiples of 16."""


@dataclass(frozen=True)
class Layout:
    """Where the values of a list of weights lie in one buffer."""

    size: int
    places: tuple[int, ...]
    """Offset of each weight."""
    short: tuple[Group, ...]
    long: Group | None


@dataclass(frozen=True)
class Batch:
    """Weights of one type, ready to be quantized."""

    layout: Layout
    addresses: Tensor
    """Address of each weight, int64."""
    levels: Tensor
    """Where the result goes, shape ``(layout.size,)``, type of the weights."""
    aligned: bool
    """Whether all addresses are multiples of 16 bytes."""


def quantize(weights: Sequence[Tensor], granularity: Granularity, launch: Callable[[Batch], None]) -> list[Tensor]:
    """Levels of ``weights``: ``launch`` is called once for each type among them and fills ``batch.levels``."""
    results: dict[int, Tensor] = {}
    with torch.no_grad():
        for dtype in dict.fromkeys(weight.dtype for weight in weights):
            chosen = [index for index, weight in enumerate(weights) if weight.dtype == dtype]
            sources = [_readable(weights[index], granularity) for index in chosen]
            with torch.cuda.device_of(sources[0]):  # type: ignore[no-untyped-call]  # untyped function "device_of"
                levels = _quantize_batch(sources, granularity, launch)
            for index, source, level in zip(chosen, sources, levels, strict=True):
                copied = source.data_ptr() != weights[index].data_ptr()
                results[index] = torch.empty_like(weights[index]).copy_(level) if copied else level
    return [results[index] for index in range(len(weights))]


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements of ``tensor`` fill one piece of memory, in whatever order."""
    if tensor.is_contiguous():
        return True
    extent = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != extent:
                return False
            extent *= size
    return True


def _readable(weight: Tensor, granularity: Granularity) -> Tensor:
    """Return ``weight``, or a contiguous copy if its segments do not lie one after the other."""
    rows = _rows(weight, granularity)
    if is_dense(weight) and (rows <= 1 or weight.stride(0) == weight.numel() // rows):
        return weight.detach()
    return weight.detach().contiguous()


def _rows(weight: Tensor, granularity: Granularity) -> int:
    return weight.shape[0] if granularity == "per_channel" else 1


def _quantize_batch(sources: list[Tensor], granularity: Granularity, launch: Callable[[Batch], None]) -> list[Tensor]:
    device = sources[0].device
    # A table is uploaded in the order of one stream; on another it might be read too early.
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    rows = [_rows(source, granularity) for source in sources]
    extents = tuple((count, source.numel() // max(count, 1)) for count, source in zip(rows, sources, strict=True))
    addresses = tuple(source.data_ptr() for source in sources)
    layout = _layout(extents, device, stream)
    levels = sources[0].new_empty(layout.size)
    if layout.size > 0:
        aligned = all(address % _ALIGNMENT == 0 for address in addresses)
        launch(Batch(layout, _addresses(addresses, device, stream), levels, aligned))
    storage = levels.untyped_storage()
    # Tensors of their own over one storage, not views of each other: autograd may change one in place.
    return [
        levels.new_empty(0).set_(storage, place, source.shape, source.stride())
        for place, source in zip(layout.places, sources, strict=True)
    ]


@lru_cache(maxsize=16)
def _addresses(addresses: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    return _upload(torch.tensor(addresses, dtype=torch.int64), device)


@lru_cache(maxsize=16)
def _layout(extents: tuple[tuple[int, int], ...], device: torch.device, stream: int) -> Layout:
    """Layout of weights of ``(rows, length)`` each, with its tables on the device."""
    places, size = [], 0
    tables: dict[int, list[Tensor]] = {}
    for weight, (rows, length) in enumerate(extents):
        places.append(size)
        if rows * length > 0:
            tile = next((tile for tile in TILES if length <= tile), 0)
            offset = torch.arange(rows) * length
            columns = [torch.full_like(offset, weight), offset, size + offset, torch.full_like(offset, length)]
            tables.setdefault(tile, []).append(torch.stack([*columns, torch.zeros_like(offset)], dim=1))
            size += -(-rows * length // _ALIGNMENT) * _ALIGNMENT
    groups = {tile: torch.cat(parts) for tile, parts in sorted(tables.items())}
    short = [_group(table, tile, device) for tile, table in groups.items() if tile > 0]
    return Layout(size, tuple(places), tuple(short), _long_group(groups[0], device) if 0 in groups else None)


def _group(table: Tensor, tile: int, device: torch.device) -> Group:
    owners = torch.empty(0, dtype=torch.int64, device=device)
    return Group(_upload(table, device), owners, tile, _is_even(table))


def _long_group(table: Tensor, device: torch.device) -> Group:
    parts = (table[:, 3] + PART - 1) // PART
    table[:, 4] = parts.cumsum(0) - parts
    owners = torch.arange(len(table)).repeat_interleave(parts)
    return Group(_upload(table, device), _upload(owners, device), PART, _is_even(table))


def _is_even(table: Tensor) -> bool:
    return bool((table[:, 3] % 16 == 0).all())  # the table is still on the host


def _upload(table: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)
