import pytest

from benchmarks.statistics import compare, holm


def test_compare_equals_the_paired_t_test_by_hand():
    # mean 2, deviation 1, so t = 2 / (1 / sqrt(3)) = 3.4641 with 2 degrees of freedom: p = 1 - t / sqrt(t^2 + 2)
    comparison = compare([1.0, 2.0, 3.0])
    assert (comparison.mean, comparison.n) == (2.0, 3)
    assert comparison.standard_error == pytest.approx(3**-0.5)
    assert comparison.p == pytest.approx(1 - (12 / 14) ** 0.5)


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (0.5, 0.0)])
def test_compare_of_equal_differences_is_certain(value, p):
    assert compare([value, value]).p == p


def test_holm_multiplies_by_the_comparisons_left_and_stays_in_order():
    assert holm({"a": 0.03, "b": 0.01, "c": 0.02, "d": 0.9}) == pytest.approx(
        {"b": 0.04, "c": 0.06, "a": 0.06, "d": 0.9}
    )
