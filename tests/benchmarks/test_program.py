from collections.abc import Iterator

import pytest
import torch

from benchmarks import program
from benchmarks.harness import Measurement
from benchmarks.program import Benchmark, Options, records
from benchmarks.records import Record, read


def run(options: Options) -> Iterator[list[Record]]:
    measured = {"float": [1.0] * options.repeats, "W4": [1.5] * options.repeats}
    cases = [(case, Measurement(times, 1, 2.0)) for case, times in measured.items()]
    yield records(cases, {"quick": options.quick}, "float")


BENCHMARK = Benchmark("bench_made_up", "Question: none.", run, repeats=4, quick_repeats=2)


@pytest.fixture
def default(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "results_path", lambda name, device: tmp_path / f"{name}.jsonl")
    return tmp_path / "bench_made_up.jsonl"


def test_a_run_appends_records_with_where_they_were_made_and_prints_ratios(default, capsys):
    BENCHMARK.main([])
    reference, quantized = read(default)
    assert list(quantized) == [
        "parameters", "case", "reference", "n", "seconds", "times", "calls", "first_seconds", "bench", "run",
        "torch", "lightning", "lightning_balq", "sources", "device", "threads", "commit", "dirty",
    ]  # fmt: skip
    assert (quantized["bench"], quantized["case"], quantized["n"]) == ("bench_made_up", "W4", 4)
    assert reference["run"] == quantized["run"]
    assert "1.50 (1.50-1.50)" in capsys.readouterr().out


def test_a_quick_run_is_not_recorded_unless_a_file_is_named(default, tmp_path):
    BENCHMARK.main(["--quick"])
    assert not default.exists()
    BENCHMARK.main(["--quick", "--output", str(tmp_path / "quick.jsonl")])
    assert [record["n"] for record in read(tmp_path / "quick.jsonl")] == [2, 2]


def test_repeats_and_threads_are_followed(default, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    BENCHMARK.main(["--repeats", "3", "--threads", "1"])
    assert [record["n"] for record in read(default)] == [3, 3]
    assert threads == [1]
