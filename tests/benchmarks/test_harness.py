import gc
import math

import pytest
import torch

from benchmarks.harness import (
    LEAST_ROUNDS,
    Measurement,
    Quartiles,
    interleave,
    measure,
    quartiles,
    ratio,
    ratios,
    timed,
)
from benchmarks.memory import Memory
from tests.benchmarks.speed import record

CPU = torch.device("cpu")


class Machine:
    """A clock, and work that advances it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, *seconds: float):
        """Return a case that takes the given seconds, the last of them from then on."""
        left = list(seconds)

        def case() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            self.done.append(name)

        return case


def test_measure_keeps_every_time_and_the_first_call():
    machine = Machine()
    cases = {"a": machine.work("a", 7.0, 2.0), "b": machine.work("b", 9.0, 4.0)}
    measured = measure(cases, CPU, 5, clock=machine.clock)
    assert measured["a"] == Measurement([2.0] * 5, calls=1, first_seconds=7.0)
    assert measured["b"] == Measurement([4.0] * 5, calls=1, first_seconds=9.0)


def test_a_slow_case_is_warm_after_two_calls_and_a_quick_one_after_four():
    machine = Machine()
    measure({"slow": machine.work("slow", 1.0), "quick": machine.work("quick", 0.1)}, CPU, 1, clock=machine.clock)
    assert (machine.done.count("slow"), machine.done.count("quick")) == (2 + 1, 4 + 1)


def test_a_quick_case_is_called_several_times_for_one_time():
    machine = Machine()
    measured = measure({"a": machine.work("a", 2.0**-10)}, CPU, 2, clock=machine.clock)["a"]
    assert measured.calls == math.ceil(0.005 * 2**10) == 6
    assert measured.times == [2.0**-10] * 2


def test_every_round_runs_each_case_once_in_changing_order():
    machine = Machine()
    names = "abcd"

    def sample(name: str):
        return lambda: float(machine.done.append(name) or 1)

    times = interleave({name: sample(name) for name in names}, 20)
    rounds = ["".join(machine.done[i : i + 4]) for i in range(0, 80, 4)]
    assert all(sorted(order) == list(names) for order in rounds)
    assert len(set(rounds)) > 5
    assert all(len(values) == 20 for values in times.values())


def test_a_case_beyond_its_budget_leaves_after_the_least_rounds():
    times = interleave({"slow": lambda: 2.0, "quick": lambda: 0.5}, 10, budget=3.0)
    assert (len(times["slow"]), len(times["quick"])) == (LEAST_ROUNDS, 6)


def test_garbage_is_not_collected_while_a_clock_runs_and_is_afterwards():
    seen = []
    measure({"a": lambda: seen.append(gc.isenabled())}, CPU, 1, clock=Machine().clock)
    assert not seen[-1]
    assert gc.isenabled()


def test_timed_is_the_mean_of_its_calls():
    machine = Machine()
    assert timed(machine.work("a", 1.0, 2.0, 6.0), 3, CPU, machine.clock) == 3.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], (3.0, 3.0, 3.0, 1)), ([1.0, 2.0], (1.25, 1.5, 1.75, 2)), ([5.0, 1.0, 3.0, 2.0, 4.0], (2.0, 3.0, 4.0, 5))],
)
def test_quartiles_by_hand(values, expected):
    assert quartiles(values) == Quartiles(*expected)


def test_ratios_pair_times_of_one_round_and_stop_where_one_case_left():
    assert ratios([2.0, 8.0, 9.0], [1.0, 2.0, 3.0, 100.0]) == quartiles([2.0, 4.0, 3.0])
    group = [record("bench", "float", [1.0, 2.0]), record("bench", "W4", [2.0, 8.0])]
    assert ratio(group, "W4", "float") == quartiles([2.0, 4.0])


def test_fields_round_times_to_four_digits_and_hold_memory_where_measured():
    fields = Measurement([1.23456, 2.0], 3, 0.000123456, Memory(20, 8, 24)).fields()
    assert fields == {
        "n": 2, "seconds": [1.426, 1.617, 1.809], "times": [1.235, 2.0], "calls": 3, "first_seconds": 0.0001235,
        "peak_bytes": 20, "kept_bytes": 8, "resident_bytes": 24,
    }  # fmt: skip
    assert "peak_bytes" not in Measurement([1.0], 1, 1.0).fields()
