"""Rows of a weight: shapes, types, and what is shared by all granularities."""

import pytest
import torch

from lightning_balq.functional._rows import accumulation_dtype, divide, per_row, to_rows
from tests.helpers import assert_equal, randn


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rows_are_the_float32_values_of_the_weight_or_of_each_channel(dtype):
    weight = randn(3, 4, 5).to(dtype).requires_grad_()
    rows = weight.detach().float()
    for granularity, expected in {"per_tensor": rows.reshape(1, 60), "per_channel": rows.reshape(3, 20)}.items():
        result = to_rows(weight, granularity)
        assert_equal(result, expected)
        assert not result.requires_grad


@pytest.mark.parametrize(("shape", "expected"), [((0, 3), (0, 0)), ((3, 0), (3, 0)), ((0,), (0, 0)), ((4,), (4, 1))])
def test_channels_without_values_are_empty_rows(shape, expected):
    assert to_rows(torch.ones(shape), "per_channel").shape == expected


@pytest.mark.parametrize(("shape", "expected"), [((3,), (3,)), ((3, 2), (3, 1)), ((3, 2, 4, 1), (3, 1, 1, 1))])
def test_statistic_of_rows_has_the_dimensions_of_the_weight(shape, expected):
    assert per_row(torch.ones(3), torch.ones(shape)).shape == expected


def test_statistic_of_a_scalar_weight_is_a_scalar():
    assert per_row(torch.ones(1), torch.tensor(2.0)).shape == ()


def test_division_is_correctly_rounded():
    values = randn(1000)
    assert_equal(divide(values, 15), (values.double() / 15).float())


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float64), ("cuda", torch.float64), ("mps", torch.float32)], ids=str
)
def test_sums_are_in_float64_but_where_there_is_none(device, dtype):
    assert accumulation_dtype(torch.device(device)) == dtype
