"""Bars of speed and memory: what the library promises, and what the records say about it.

A bar is compared with the median; quartiles and n show how sure that is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from benchmarks import bench_deploy, bench_export, bench_recurrent, bench_scaling, bench_steps
from benchmarks.harness import Quartiles, quartiles, ratio, ratios
from benchmarks.program import show
from benchmarks.records import Record
from benchmarks.weights import REFERENCE

Value = Callable[[Sequence[Record]], Quartiles | None]

NOT_MEASURED = "No records yet. Measure: `make bench`."

LINEAR = 1.5
"""Growth of the time per weight from one size to the next (3 to 4 times as many) that still counts as linear: it holds
the step from weights that fit into a cache to weights that do not."""

FREED = 0.01
"""Weight-sized buffers kept after a call that still count as none: scales and thresholds are a few numbers."""


@dataclass(frozen=True)
class Bar:
    """A bar: what is measured, how much it may be at most, and how to read it from the records of the last runs.

    Without a limit it is there to compare others with.
    """

    what: str
    limit: float | None
    value: Value
    digits: int = 2


def last_runs(records: Iterable[Record]) -> list[Record]:
    """Records of the last run of each benchmark."""
    records = list(records)
    last = {record["bench"]: record["run"] for record in sorted(records, key=lambda record: record["run"])}
    return [record for record in records if last[record["bench"]] == record["run"]]


def select(records: Iterable[Record], bench: str, **parameters: Any) -> list[Record]:
    """Records of a benchmark with the given parameters."""
    wanted = parameters.items()
    return [r for r in records if r["bench"] == bench and wanted <= r["parameters"].items()]


def time_ratio(
    records: Sequence[Record], bench: str, parameters: Mapping[str, Any], case: str, reference: str
) -> Quartiles | None:
    """Time of a case over that of another in the same round."""
    group = select(records, bench, **parameters)
    if not {case, reference} <= {record["case"] for record in group}:
        return None
    return ratio(group, case, reference)


def growth(records: Sequence[Record], bits: int, case: str = "balanced mean") -> Quartiles | None:
    """Time per weight over that of the next smaller size, where it grows most."""
    points = [record for record in _by_weights(records, bits) if record["case"] == case]
    steps = []
    for small, large in pairwise(points):
        more = large["parameters"]["weights"] / small["parameters"]["weights"]
        low, median, high, n = ratios(large["times"], small["times"])
        steps.append(Quartiles(low / more, median / more, high / more, n))
    return max(steps, key=lambda step: step.median, default=None)


def extra_buffers(records: Sequence[Record], key: str, least_weights: int = 0) -> Quartiles | None:
    """Memory besides the result, in units of the weight: the most of all sizes and widths, mean or median."""
    extras = [
        record[key] / (4 * record["parameters"]["weights"]) - 1
        for bits in bench_scaling.WEIGHTS_BITS
        for record in _by_weights(records, bits)
        if record["case"].startswith("balanced")
        and record[key] is not None
        and record["parameters"]["weights"] >= least_weights
    ]
    return quartiles([max(extras)]) if extras else None


def bars() -> list[Bar]:
    """All bars that hold on a CPU."""
    return [*weight_bars(), *step_bars(), *recurrent_bars(), *deploy_bars(), *export_bars(), *scaling_bars()]


def weight_bars() -> list[Bar]:
    """Quantizing one weight."""

    def bar(limit: float, bits: int, case: str, reference: str) -> Bar:
        parameters = {"granularity": "per_tensor", "bits": bits}
        value = partial(time_ratio, bench="bench_weights", parameters=parameters, case=case, reference=reference)
        return Bar(f"{case} against {reference}; one weight, {bits} bits", limit, value)

    return [
        *(bar(limit, bits, "balanced mean", "uniform, compiled") for bits, limit in ((2, 2), (4, 4), (8, 6))),
        *(bar(limit, bits, "balanced mean", "uniform, op by op") for bits, limit in ((2, 1), (3, 1), (4, 1.5))),
        *(bar(3, bits, "balanced median", "balanced mean") for bits in (2, 3, 4, 8)),
    ]


def step_bars() -> list[Bar]:
    """Training steps and evaluation forwards of whole networks."""

    def bar(limit: float, network: str, case: str, bench: str = "bench_steps", what: str = "training step") -> Bar:
        parameters, reference = {"network": network}, bench_steps.REFERENCE
        value = partial(time_ratio, bench=bench, parameters=parameters, case=case, reference=reference)
        return Bar(f"{what}, {network}: {case} against float", limit, value, digits=3)

    def evaluation(network: str) -> Bar:
        return bar(1.01, network, "balanced W4", "bench_evaluation", "evaluation, weights quantized before")

    return [
        bar(1.05, bench_steps.RESNET18, "balanced W4"),
        bar(1.25, bench_steps.RESNET20, "balanced W2A2"),
        bar(1.03, bench_steps.RESNET20, "balanced W2"),
        bar(1.08, bench_steps.LSTM, "balanced W2"),
        bar(1.3, bench_steps.MLP, "balanced W4"),
        bar(1.3, bench_steps.MLP, "balanced W2A2"),
        evaluation(bench_steps.RESNET18),
        evaluation(bench_steps.MLP),
    ]


def recurrent_bars() -> list[Bar]:
    """One recurrent layer, forward and backward, against torch's fused one."""

    def bar(limit: float, layer: str, case: str) -> Bar:
        parameters, reference = {"layer": layer}, bench_recurrent.REFERENCE
        value = partial(time_ratio, bench="bench_recurrent", parameters=parameters, case=case, reference=reference)
        return Bar(f"{layer} of 300 units, forward and backward: {case} against float", limit, value)

    cases = (("balanced mean W2", 1.1), ("balanced mean W2A2", 1.5))
    return [bar(limit, layer, case) for layer in bench_recurrent.LAYERS for case, limit in cases]


def deploy_bars() -> list[Bar]:
    """One image through a network in int8."""
    name, case, reference = bench_deploy.RESNET18, bench_deploy.INT8, bench_deploy.RUNTIME
    parameters = {"network": name, "threads": 2}
    value = partial(time_ratio, bench="bench_deploy", parameters=parameters, case=case, reference=reference)
    return [Bar(f"{name}, one image, 2 threads: {case} against {reference}", bench_deploy.BAR, value, digits=3)]


def export_bars() -> list[Bar]:
    """Layers in ONNX Runtime, one thread."""
    case, reference = bench_export.INTEGER, bench_export.REFERENCE

    def bar(times_as_fast: float, layer: str) -> Bar:
        parameters = {"layer": layer, "threads": 1}
        value = partial(time_ratio, bench="bench_export", parameters=parameters, case=case, reference=reference)
        return Bar(f"{layer}, ONNX Runtime: {case} against {reference}", round(1 / times_as_fast, 3), value, digits=3)

    return [
        bar(3, bench_export.LINEAR),
        bar(4, bench_export.SOFTMAX),
        bar(1.4, bench_export.LSTM),
        bar(1.4, bench_export.LSTM_BATCH),
    ]


def scaling_bars() -> list[Bar]:
    """Growth with the number of weights."""
    what = "time per weight against the next smaller size, largest of 10^5 to 4x10^7 weights"
    return [
        *(Bar(f"{what}, {bits} bits", LINEAR, partial(growth, bits=bits)) for bits in bench_scaling.WEIGHTS_BITS),
        Bar(f"{what}, {REFERENCE}, to compare with", None, partial(growth, bits=4, case=REFERENCE)),
        Bar("peak memory besides the result, in weight-sized buffers", 2, partial(extra_buffers, key="peak_bytes")),
        Bar(
            "same, as growth of the resident memory of the process, 4x10^7 weights",
            2,
            partial(extra_buffers, key="resident_bytes", least_weights=max(bench_scaling.WEIGHTS)),
        ),
        Bar("memory kept besides the result, in weight-sized buffers", FREED, partial(extra_buffers, key="kept_bytes")),
    ]


def bars_table(records: Sequence[Record]) -> str:
    """Every bar with what was measured in the last run of its benchmark."""
    latest = last_runs(records)
    lines = ["| what | at most | measured | n | |", "| --- | ---: | ---: | ---: | --- |"]
    for bar in bars():
        value = bar.value(latest)
        measured = (
            ("not measured", "", "") if value is None else (show(value, bar.digits), value.n, _verdict(bar, value))
        )
        limit = "" if bar.limit is None else f"{bar.limit:g}"
        lines.append(f"| {bar.what} | {limit} | {' | '.join(map(str, measured))} |")
    return "\n".join([*lines, "", where(latest)])


def where(latest: Sequence[Record]) -> str:
    """What a table says below about the records behind it."""
    if not latest:
        return NOT_MEASURED
    described: dict[str, list[str]] = {}
    for record in latest:
        benches = described.setdefault(_described(record), [])
        if record["bench"] not in benches:
            benches.append(record["bench"])
    texts = [f"{text} ({', '.join(benches)})" for text, benches in described.items()]
    return f"Median and quartiles of ratios in the same round. {'. '.join(texts)}."


def _described(record: Record) -> str:
    commit = (
        "unknown" if record["commit"] is None else record["commit"][:7] + (" and changes" if record["dirty"] else "")
    )
    cuda = f", CUDA {record['cuda']}" if "cuda" in record else ""
    return (
        f"Device: {record['device']}, threads: {record['threads']}; torch {record['torch']}{cuda}, lightning "
        f"{record['lightning']}; commit {commit}, sources {record['sources']}"
    )


def _verdict(bar: Bar, value: Quartiles) -> str:
    if bar.limit is None:
        return ""
    return "met" if value.median <= bar.limit else "**missed**"


def _by_weights(records: Sequence[Record], bits: int) -> list[Record]:
    found = select(records, "bench_scaling", sweep="weights", bits=bits)
    return sorted(found, key=lambda record: record["parameters"]["weights"])
