"""Integers are chosen so that no kernel overflows."""

import pytest

from lightning_balq.export.description import QuantizedInput
from lightning_balq.export.onnx.forms import WeightForm, choose_form
from tests.export.onnx.test_decode import make_weight


def given(bits, signed=False):
    return QuantizedInput(bits, 1.0, signed, "unit", "auto")


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("activation_bits", range(1, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_int8_up_to_the_bound_of_pairs_and_uint8_beyond(bits, activation_bits, signed):
    form = choose_form(make_weight((3, 5), bits), given(activation_bits, signed))
    if signed and activation_bits == 8:
        assert form == "a signed input of 8 bits takes 257 values, zero among them"
        return
    largest = (2**activation_bits - 1) * (2 if signed else 1)
    exact = 2 * largest * (2**bits - 1) <= 32767
    assert form == WeightForm("codes" if bits == 8 else "int8" if exact else "uint8", 1.0)


def test_known_cases_on_both_sides_of_the_bound():
    kinds = {(8, 6): "int8", (7, 7): "int8", (8, 7): "uint8", (7, 8): "codes", (8, 8): "codes", (4, 4): "int8"}
    for (activation_bits, bits), kind in kinds.items():
        assert choose_form(make_weight((3, 5), bits), given(activation_bits)).kind == kind


def test_units_are_those_of_the_grid():
    units = {grid: choose_form(make_weight((3, 5), 3, grid), given(4)).unit for grid in ("odd", "half", "integer")}
    assert units == {"odd": 1, "half": 0.5, "integer": 1}
    assert choose_form(make_weight((3, 5), 3, "unit"), given(4)).unit == pytest.approx(1 / 7)
    assert choose_form(make_weight((3, 5), 8, "integer"), given(4)).kind == "int8"


def test_what_stays_float_says_why():
    weight = make_weight((3, 5), 4)
    assert choose_form(weight, None) == "its input is float"
    unknown = QuantizedInput(4, None, None, "observed", "auto")
    assert choose_form(weight, unknown) == "no training batch has shown the range of its input"
    pruned = make_weight((3, 5), 8, kept=weight.codes > 3)
    assert choose_form(pruned, given(4)) == "pruned weights are none of the codes of 8 bits"
    wide = make_weight((1, 20_000), 8)
    assert choose_form(wide, given(8)) == "sums of 20000 products could exceed 32 bits"
