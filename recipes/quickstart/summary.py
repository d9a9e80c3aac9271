"""The table and the comparisons, computed from the runs."""

from dataclasses import dataclass
from statistics import fmean

from recipes.quickstart.methods import CASES, FLOAT, METHODS, Case
from recipes.quickstart.results import Results, Run
from recipes.statistics import SIGNIFICANCE, deviation, format_p, holm, paired_test, quartiles


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        case: its name.
        width: ``"W2A2"`` or ``"float"``.
        label: its method.
        accuracy: mean over seeds, in percent.
        accuracy_deviation: standard deviation over seeds; ``None`` for a single seed.
        n: number of seeds.
        effective_bitwidth: of the quantized layers after the last step, mean over seeds; ``None`` for float.
        float_bytes: bytes of all parameters in float32.
        quantized_bytes: the same with the quantized layers as codes and scales.
        step_time: lower quartile, median and upper quartile relative to float; ``None`` for float.
    """

    case: str
    width: str
    label: str
    accuracy: float
    accuracy_deviation: float | None
    n: int
    effective_bitwidth: float | None
    float_bytes: int
    quantized_bytes: int
    step_time: tuple[float, float, float] | None


@dataclass(frozen=True)
class Comparison:
    """One row's accuracy against another's, paired by seed.

    Attributes:
        case: name of the one row.
        baseline: name of the other.
        difference: mean of ``case`` minus ``baseline``, in points.
        difference_deviation: standard deviation over seeds; ``None`` for a single seed.
        n: number of seeds.
        p: of the paired t-test, adjusted (Holm) for the comparisons with the same kind of baseline; ``None`` where
            there is nothing to test.
    """

    case: str
    baseline: str
    difference: float
    difference_deviation: float | None
    n: int
    p: float | None

    @property
    def distinguishable(self) -> bool:
        """Whether chance is an unlikely explanation of the difference."""
        return self.p is not None and self.p < SIGNIFICANCE

    @property
    def sentence(self) -> str:
        """What can be said."""
        pair = f"{self.case} against {CASES[self.baseline].method.label}: {self.difference:+.2f} points"
        if self.p is None:
            return f"{pair}, n = {self.n}, not tested."
        verdict = "" if self.distinguishable else ": not distinguishable"
        return f"{pair}, p = {format_p(self.p)}, n = {self.n}{verdict}."


def table_rows(results: Results) -> list[Row]:
    """Every row, in the order of the cases."""
    return [_row(case, _runs(results, name), results) for name, case in CASES.items()]


def _row(case: Case, runs: list[Run], results: Results) -> Row:
    accuracies = [run.accuracy for run in runs]
    last = [run.effective_bitwidth[-1][1] for run in runs if run.effective_bitwidth]
    times = results.step_time.get(case.name)
    return Row(
        case=case.name,
        width=case.width,
        label=case.method.label,
        accuracy=fmean(accuracies),
        accuracy_deviation=deviation(accuracies),
        n=len(runs),
        effective_bitwidth=fmean(last) if last else None,
        float_bytes=runs[0].float_bytes,
        quantized_bytes=runs[0].quantized_bytes,
        step_time=quartiles(times) if times else None,
    )


def comparisons(results: Results) -> list[list[Comparison]]:
    """Every quantized row against float, and every balanced one against each uniform one of its width.

    Returns:
        One list for each kind of baseline, within which p values are adjusted.
    """
    quantized = [case for case in CASES.values() if case.method is not FLOAT]
    balanced = [case for case in quantized if case.method.callback == "BalancedQuantization"]
    uniform = [method for method in METHODS if method.callback == "UniformQuantization"]
    families = [
        [(case, CASES[FLOAT.label]) for case in quantized],
        *([(case, Case(method, case.bits)) for case in balanced] for method in uniform),
    ]
    return [_compare(family, results) for family in families]


def _compare(pairs: list[tuple[Case, Case]], results: Results) -> list[Comparison]:
    differences = [_differences(results, case.name, baseline.name) for case, baseline in pairs]
    adjusted = holm([paired_test(values).p for values in differences])
    return [
        Comparison(case.name, baseline.name, fmean(values), deviation(values), len(values), p)
        for (case, baseline), values, p in zip(pairs, differences, adjusted, strict=True)
    ]


def _differences(results: Results, case: str, baseline: str) -> list[float]:
    ours = {run.seed: run.accuracy for run in _runs(results, case)}
    theirs = {run.seed: run.accuracy for run in _runs(results, baseline)}
    return [ours[seed] - theirs[seed] for seed in sorted(ours)]


def _runs(results: Results, case: str) -> list[Run]:
    return [run for run in results.runs if run.case == case]
