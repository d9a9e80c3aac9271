"""The share of the quantized value follows the steps, and mixing is what the formula says."""

import pytest
import torch

from lightning_balq.nn.schedule import Schedule, blend_at
from tests.helpers import assert_equal, randn


@pytest.mark.parametrize(
    ("start_step", "blend_steps", "expected"),
    [
        (0, 0, [1, 1, 1, 1, 1, 1]),
        (2, 0, [0, 0, 1, 1, 1, 1]),
        (0, 4, [0, 0.25, 0.5, 0.75, 1, 1]),
        (1, 2, [0, 0, 0.5, 1, 1, 1]),
        (4, 1, [0, 0, 0, 0, 0, 1]),
    ],
)
def test_share_rises_linearly_from_start(start_step, blend_steps, expected):
    assert [blend_at(step, start_step, blend_steps) for step in range(6)] == expected


def test_new_schedule_is_quantized():
    schedule = Schedule()
    assert (schedule.blend, schedule.phase, schedule.timer) == (1.0, "quantized", None)


@pytest.mark.parametrize(("blend", "phase"), [(0.0, "float"), (0.01, "blend"), (0.99, "blend"), (1.0, "quantized")])
def test_phase_follows_the_share_both_ways(blend, phase):
    schedule = Schedule()
    schedule.set_blend(0.5)
    schedule.set_blend(blend)
    assert (schedule.blend, schedule.phase) == (blend, phase)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("blend", [0.25, 0.5, 0.75])
def test_mix_is_the_weighted_sum_in_the_type_of_the_value(blend, dtype):
    schedule = Schedule()
    schedule.set_blend(blend)
    value, quantized = randn(40, dtype=dtype), randn(40, seed=1, dtype=dtype)
    mixed = schedule.mix(value, quantized)
    assert mixed.dtype == dtype
    assert_equal(mixed, (1 - blend) * value + blend * quantized)


def test_mix_follows_a_changed_share():
    schedule = Schedule()
    for blend in (0.25, 0.75):
        schedule.set_blend(blend)
        assert_equal(schedule.mix(torch.zeros(1), torch.ones(1)), torch.tensor([blend]))


def test_gradient_of_a_mix_is_shared_between_the_two():
    schedule = Schedule()
    schedule.set_blend(0.25)
    value, quantized = randn(4).requires_grad_(), randn(4, seed=1).requires_grad_()
    schedule.mix(value, quantized).sum().backward()
    assert_equal(value.grad, torch.full((4,), 0.75))
    assert_equal(quantized.grad, torch.full((4,), 0.25))
