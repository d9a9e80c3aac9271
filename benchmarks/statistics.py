"""Statistics behind the word "better" in a table: a paired test, and its correction for several comparisons."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TypeVar

from scipy import stats  # type: ignore[import-untyped]  # Library stubs not installed for "scipy"

Key = TypeVar("Key")


@dataclass(frozen=True)
class Comparison:
    """Paired differences: their mean, its standard error, their number and the p of a two-sided paired t-test."""

    mean: float
    standard_error: float
    n: int
    p: float


def compare(differences: Sequence[float]) -> Comparison:
    """Test whether differences, one for each pair, are 0 on average; there must be two or more."""
    mean, n = fmean(differences), len(differences)
    error = stdev(differences) / math.sqrt(n)
    if error == 0:
        return Comparison(mean, 0.0, n, 1.0 if mean == 0 else 0.0)
    return Comparison(mean, error, n, float(2 * stats.t.sf(abs(mean) / error, n - 1)))


def holm(values: Mapping[Key, float]) -> dict[Key, float]:
    """Adjust p values for their number (Holm 1979), so that one in twenty *families* errs at 0.05."""
    adjusted: dict[Key, float] = {}
    largest = 0.0
    for rank, key in enumerate(sorted(values, key=lambda key: values[key])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[key]))
        adjusted[key] = largest
    return adjusted
