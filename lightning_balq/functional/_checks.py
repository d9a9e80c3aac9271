"""Argument checks shared by the quantizers: every message names the argument, what was expected and what came."""

from collections.abc import Collection
from typing import Literal, get_args

from torch import Tensor

Granularity = Literal["per_tensor", "per_channel"]
Center = Literal["mean", "median"]
Scale = Literal["max", "mean", "least_squares"]
BalancedScale = Literal["max", "mean", "least_squares", "unit"]

# Plain tuples, because torch.compile cannot look into a Literal.
GRANULARITIES: tuple[str, ...] = get_args(Granularity)
CENTERS: tuple[str, ...] = get_args(Center)
SCALES: tuple[str, ...] = get_args(Scale)
BALANCED_SCALES: tuple[str, ...] = get_args(BalancedScale)

MAX_BITS = 8


def check_bits(bits: int, name: str = "bits") -> int:
    """Return ``bits`` if it is an integer from 1 to 8.

    Raises:
        TypeError: if ``bits`` is not an ``int`` (``True`` is not one).
        ValueError: if it is out of range.
    """
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"`{name}` must be an int from 1 to {MAX_BITS}, got {bits!r} of type {type(bits).__name__}")
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"`{name}` must be from 1 to {MAX_BITS} (the width of a code in bits), got {bits}")
    return bits


def check_choice(value: str, name: str, choices: Collection[str]) -> None:
    """Raise :class:`ValueError` unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:  # an array would be compared element by element
        raise ValueError(f"`{name}` must be one of {sorted(choices)}, got {value!r}")


def check_floating(tensor: Tensor, name: str) -> None:
    """Raise :class:`TypeError` unless ``tensor`` is a real floating-point tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"`{name}` must be a real floating-point tensor, got dtype {tensor.dtype}")
