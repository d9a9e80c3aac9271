"""Statistics behind the word "better" in a table: paired differences, their test, and its correction for several."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]  # Library stubs not installed for "scipy"

SIGNIFICANCE = 0.05
"""A difference is distinguishable from chance if its p, adjusted for the number of tests, is less."""


@dataclass(frozen=True)
class PairedTest:
    """Paired differences, and whether they are 0 on average.

    Attributes:
        mean: of the differences.
        standard_error: of the mean; ``None`` for a single difference.
        n: number of pairs.
        p: of the two-sided paired t-test that differences are 0 on average; ``None`` where there is no spread to test
            against: one difference, or the same one every time.
    """

    mean: float
    standard_error: float | None
    n: int
    p: float | None

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Confidence interval of the mean; ``None`` where there is no test."""
        if self.p is None or self.standard_error is None:
            return None
        half = float(stdtrit(self.n - 1, (1 + level) / 2)) * self.standard_error
        return self.mean - half, self.mean + half


def paired_test(differences: Sequence[float]) -> PairedTest:
    """Test whether differences, one for each pair, are 0 on average.

    Example:
        >>> test = paired_test([1.0, 2.0, 3.0])
        >>> test.mean, test.n, round(test.p, 4)
        (2.0, 3, 0.0742)
    """
    n, spread = len(differences), deviation(differences)
    mean, error = fmean(differences), None if spread is None else spread / math.sqrt(n)
    p = None if not error else float(2 * stdtr(n - 1, -abs(mean) / error))
    return PairedTest(mean, error, n, p)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Adjust p values for their number (Holm 1979): at 0.05, one *list* of true hypotheses in twenty holds an error.

    ``None`` stays ``None`` and is not counted.

    Example:
        >>> holm([0.5, None, 0.01])
        [0.5, None, 0.02]
    """
    known = sorted((p, index) for index, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return adjusted


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; ``None`` for a single value."""
    return stdev(values) if len(values) > 1 else None


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile, interpolated linearly."""
    ordered = sorted(values)

    def quantile(share: float) -> float:
        position = share * (len(ordered) - 1)
        below = math.floor(position)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (position - below) * (ordered[above] - ordered[below])

    return quantile(0.25), quantile(0.5), quantile(0.75)


def format_p(p: float) -> str:
    """As many digits as decide something.

    Example:
        >>> format_p(0.0002), format_p(0.034), format_p(0.21)
        ('< 0.001', '0.034', '0.21')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
