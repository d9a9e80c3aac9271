"""Scales are found exactly, from levels alone."""

import pytest
import torch

from lightning_balq.export.fit import fit_odd_grid
from tests.helpers import randn

SCALES = [0.1, 1 / 3, 7.1e-20, 3.3e-45, 2.0**-149, 1.2e36, 1.0]


def levels_of(codes, scale, bits):
    return (2.0 * codes - (2**bits - 1)) * torch.tensor(scale)


def codes_of(bits, count=200):
    return torch.randint(0, 2**bits, (1, count), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_scale_and_codes_are_found_exactly(scale, bits):
    codes = codes_of(bits)
    found, scales = fit_odd_grid(levels_of(codes, scale, bits), codes, bits)
    assert torch.equal(found, codes)
    assert torch.equal(levels_of(found, scales.item(), bits), levels_of(codes, scale, bits))


def test_random_scales_are_found_exactly_without_the_innermost_levels():
    for scale in randn(300).abs().tolist():
        codes = torch.tensor([[0, 7, 0, 6, 1]], dtype=torch.uint8)
        levels = levels_of(codes, scale, 3)
        found, scales = fit_odd_grid(levels, codes, 3)
        assert torch.equal(found, codes)
        assert torch.equal(levels_of(found, scales.item(), 3), levels)


def test_levels_decide_where_a_code_is_off_by_one():
    codes = codes_of(4)
    wrong = codes.clone()
    wrong[0, [3, 50, 120]] ^= 1
    assert torch.equal(fit_odd_grid(levels_of(codes, 0.3, 4), wrong, 4)[0], codes)


def test_rows_have_scales_of_their_own_and_zero_rows_keep_their_codes():
    codes = codes_of(2, 60).reshape(3, 20)
    scale = torch.tensor([0.3, 0.0, 5.7])
    found, scales = fit_odd_grid((2.0 * codes - 3) * scale[:, None], codes, 2)
    assert torch.equal(found, codes)
    assert torch.equal(scales, scale)


def test_empty_rows_have_scale_zero():
    assert torch.equal(fit_odd_grid(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.uint8), 2)[1], torch.zeros(2))


def test_levels_off_the_grid_are_refused():
    levels = torch.tensor([[-3.0, -1.0, 1.0, 3.0], [-3.0, -1.0, 1.1, 3.0]])
    with pytest.raises(ValueError, match="the levels of row 1 are not multiples `2c - 3` of one scale"):
        fit_odd_grid(levels, torch.tensor([[0, 1, 2, 3]] * 2, dtype=torch.uint8), 2)
