import pytest

from benchmarks.bars import NOT_MEASURED, bars, bars_table, extra_buffers, growth, last_runs, time_ratio
from benchmarks.harness import Quartiles
from tests.benchmarks.speed import record, scaling
from tests.benchmarks.study import cells


def weight_records(mean: float, run: str = "1"):
    parameters = {"granularity": "per_tensor", "bits": 2, "run": run}
    return [
        record("bench_weights", "uniform, compiled", [1.0, 2.0, 1.0], **parameters),
        record("bench_weights", "balanced mean", [mean, 2 * mean, mean], **parameters),
    ]


def test_time_ratio_finds_the_group_and_is_none_without_it():
    arguments = {"bench": "bench_weights", "case": "balanced mean", "reference": "uniform, compiled"}
    found = time_ratio(weight_records(1.5), parameters={"bits": 2}, **arguments)
    assert found == Quartiles(1.5, 1.5, 1.5, 3)
    assert time_ratio(weight_records(1.5), parameters={"bits": 4}, **arguments) is None
    assert time_ratio(weight_records(1.5)[1:], parameters={"bits": 2}, **arguments) is None


def test_growth_is_the_largest_step_of_the_time_per_weight():
    points = [(1000, 1.0), (3000, 3.0), (9000, 13.5), (36000, 54.0)]  # per weight: 1, 1, 1.5, 1.5
    records = [scaling("balanced mean", weights, seconds) for weights, seconds in points]
    records += [scaling("balanced median", 1000, 1.0), scaling("balanced median", 3000, 99.0)]
    assert growth(records[::-1], bits=4) == Quartiles(1.5, 1.5, 1.5, 2)
    assert growth(records[:1], bits=4) is None


def test_extra_buffers_do_not_count_the_result():
    records = [scaling("balanced mean", 1000, 1.0, peak=2), scaling("balanced median", 1000, 1.0, peak=4)]
    records.append(scaling("uniform", 1000, 1.0, peak=9))
    assert extra_buffers(records, "peak_bytes") == Quartiles(3, 3, 3, 1)
    assert extra_buffers(records, "kept_bytes") == Quartiles(0, 0, 0, 1)
    assert extra_buffers([], "peak_bytes") is None
    assert extra_buffers(records, "peak_bytes", least_weights=1001) is None
    assert extra_buffers([records[0] | {"resident_bytes": None}], "resident_bytes") is None


def test_only_the_last_run_of_each_benchmark_counts():
    old, new, other = weight_records(9.0, "1"), weight_records(1.5, "2"), [record("bench_steps", "float", [1.0])]
    assert last_runs([*new, *old, *other]) == [*new, *other]


@pytest.mark.parametrize(("ratio", "verdict"), [(2.0, "met"), (2.01, "**missed**")])
def test_the_table_says_which_bars_are_met_missed_and_not_measured(ratio, verdict):
    table = bars_table(weight_records(ratio))
    rows = cells(table)
    assert rows["balanced mean against uniform, compiled; one weight, 2 bits"] == [
        "2", f"{ratio:.2f} ({ratio:.2f}-{ratio:.2f})", "3", verdict,
    ]  # fmt: skip
    assert rows["balanced mean against uniform, compiled; one weight, 4 bits"] == ["4", "not measured", "", ""]
    assert "Device: cpu, threads: 2; torch 2.13.0, lightning 3; commit 0123456, sources abc (bench_weights)." in table


def test_without_records_nothing_is_invented():
    rows = cells(bars_table([]))
    assert len(rows) == 2 + len(bars())
    assert {row[1] for row in list(rows.values())[2:]} == {"not measured"}
    assert bars_table([]).endswith(NOT_MEASURED)
