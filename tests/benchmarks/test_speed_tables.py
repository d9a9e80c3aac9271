import pytest

from benchmarks.bars import NOT_MEASURED
from benchmarks.speed_tables import activations_table, steps_table, weights_table
from tests.benchmarks.speed import record
from tests.benchmarks.study import cells


def test_weights_table_holds_ratios_by_case_and_the_time_of_the_reference():
    reference = "uniform, compiled"
    common = {"reference": reference, "granularity": "per_tensor"}
    rows = cells(
        weights_table(
            [
                record("bench_weights", reference, [0.001, 0.002], bits=2, **common),
                record("bench_weights", "balanced mean", [0.002, 0.004], bits=2, **common),
                record("bench_weights", reference, [0.003], bits=8, **common),
            ]
        )
    )
    assert rows["case"] == ["2 bits, per_tensor", "8 bits, per_tensor"]
    assert rows[reference] == ["1.50 ms", "3.00 ms"]
    assert rows["balanced mean"] == ["2.00 (2.00-2.00)", ""]


def test_steps_table_holds_times_and_ratios_to_float():
    records = [
        record("bench_steps", "float", [1.0, 2.0], network="a"),
        record("bench_steps", "W4", [1.1, 2.2], network="a"),
    ]
    lines = steps_table(records).splitlines()
    assert lines[2:4] == [
        "| a | float | 1500.0 | 1.000 (1.000-1.000) | 2 |",
        "| a | W4 | 1650.0 | 1.100 (1.100-1.100) | 2 |",
    ]


def test_activations_table_holds_time_and_memory():
    made = record("bench_activations", "torch", [0.001], reference="torch", layer="stage 1", values=2_000_000, bits=2)
    table = activations_table([made | {"peak_bytes": 3 * 2**20, "kept_bytes": 2**20}])
    assert table.splitlines()[2] == "| stage 1, 2.0 million | 2 | torch | 1.00 | 1.00 (1.00-1.00) | 3.0 | 1.0 |"


@pytest.mark.parametrize("make", [weights_table, steps_table, activations_table])
def test_without_records_a_table_says_so(make):
    assert make([]) == NOT_MEASURED
