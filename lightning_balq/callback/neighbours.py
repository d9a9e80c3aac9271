"""What several quantizing callbacks in one Trainer may not do to one model."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from lightning_balq.nn.plan import Plan, quantized_tensors


class Neighbour(NamedTuple):
    """A callback as the others see it."""

    name: str
    plan: Plan
    start_step: int
    blend_steps: int


def check_neighbours(model: nn.Module, own: Neighbour, others: Iterable[Neighbour]) -> None:
    """Refuse what a callback cannot share with those that have quantized ``model`` before it.

    Raises:
        ValueError: if two of them would quantize one tensor, or follow different schedules.
    """
    tensors = quantized_tensors(model, own.plan)
    for other in others:
        theirs = quantized_tensors(model, other.plan)
        both = [theirs[tensor] for tensor in tensors if tensor in theirs]
        if both:
            more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
            raise ValueError(
                f"{other.name} and {own.name} would both quantize {both[0]!r}{more}, and a tensor can be quantized by "
                "one callback only: set `include` or `exclude` so that their layers, and tied weights, do not overlap"
            )
        if (own.start_step, own.blend_steps) != (other.start_step, other.blend_steps):
            raise ValueError(
                f"{own.name} has start_step={own.start_step} and blend_steps={own.blend_steps}, {other.name} has "
                f"{other.start_step} and {other.blend_steps}, but a model has one schedule: give both the same values"
            )
