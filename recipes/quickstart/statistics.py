"""Statistics of a few paired runs."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from scipy.special import stdtr  # type: ignore[import-untyped]  # Library stubs not installed for "scipy"


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; ``None`` for a single value."""
    return stdev(values) if len(values) > 1 else None


def paired_test(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test that differences are 0 on average.

    Returns:
        The p value; ``None`` where there is no spread to test against: one difference, or the same one every time.
    """
    spread = deviation(differences)
    if not spread:
        return None
    t = fmean(differences) / (spread / math.sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Adjust p values for their number (Holm 1979): at 0.05, one *list* of true hypotheses in twenty holds an error.

    ``None`` stays ``None`` and is not counted.
    """
    known = sorted((p, index) for index, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return adjusted


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile, interpolated linearly."""
    ordered = sorted(values)

    def quantile(share: float) -> float:
        position = share * (len(ordered) - 1)
        below = math.floor(position)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (position - below) * (ordered[above] - ordered[below])

    return quantile(0.25), quantile(0.5), quantile(0.75)
