import numpy as np
import pytest
from scipy import stats

from recipes.statistics import deviation, holm, paired_test, quartiles


@pytest.mark.parametrize("n", [2, 5, 20])
def test_paired_test_equals_scipy(n):
    rng = np.random.default_rng(n)
    ours, theirs = rng.normal(1, 1, n), rng.normal(0, 1, n)
    expected = stats.ttest_rel(ours, theirs)
    test = paired_test((ours - theirs).tolist())
    assert (test.mean, test.n) == (pytest.approx(np.mean(ours - theirs)), n)
    assert test.standard_error == pytest.approx(stats.sem(ours - theirs))
    assert test.p == pytest.approx(expected.pvalue, rel=1e-9)
    for level in (0.9, 0.95):
        assert test.interval(level) == pytest.approx(expected.confidence_interval(level), rel=1e-9)


def test_paired_test_equals_the_formula_by_hand():
    # mean 2, deviation 1, so t = 2 / (1 / sqrt(3)) = 3.4641 with 2 degrees of freedom: p = 1 - t / sqrt(t^2 + 2)
    test = paired_test([1.0, 2.0, 3.0])
    assert (test.mean, test.n) == (2.0, 3)
    assert test.standard_error == pytest.approx(3**-0.5)
    assert test.p == pytest.approx(1 - (12 / 14) ** 0.5)


@pytest.mark.parametrize("differences", [[0.5], [0.0, 0.0, 0.0], [0.5, 0.5, 0.5]], ids=str)
def test_paired_test_without_spread_tests_nothing(differences):
    test = paired_test(differences)
    assert (test.mean, test.n, test.p, test.interval()) == (differences[0], len(differences), None, None)


def test_holm_equals_an_example_worked_by_hand():
    # Sorted .005 .01 .03 .04, times 4 3 2 1, and never below the one before.
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03, 0.01, 0.02, 0.9]) == pytest.approx([0.06, 0.04, 0.06, 0.9])


def test_deviation_and_quartiles_equal_numpy():
    values = np.random.default_rng(0).normal(size=11).tolist()
    assert deviation(values) == pytest.approx(np.std(values, ddof=1))
    assert deviation(values[:1]) is None
    for n in (1, 2, 10, 11):
        assert quartiles(values[:n]) == pytest.approx(np.quantile(values[:n], [0.25, 0.5, 0.75]))
