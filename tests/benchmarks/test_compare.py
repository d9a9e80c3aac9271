import pytest

from benchmarks import compare
from benchmarks.compare import Change, baseline, changes, confirmed, main
from benchmarks.harness import Quartiles, quartiles
from benchmarks.records import append
from tests.benchmarks.speed import record

STABLE = (1.00, 1.01, 1.02)


def run(*w4: float, case: str = "W4", **changed: object):
    records = [record("bench_steps", "float", [1.0] * len(w4), network="a")]
    return [line | changed for line in (*records, record("bench_steps", case, w4, network="a"))]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (STABLE, (1.20, 1.21, 1.22), "slower"),
        (STABLE, (0.80, 0.81, 0.82), "faster"),
        (STABLE, (1.05, 1.06, 1.07), "same"),  # beyond the spread, but by less than a tenth
        (STABLE, (0.50, 1.40, 1.90), "same"),  # by more than a tenth, but within the spread
    ],
)
def test_slower_means_beyond_the_spread_and_by_more_than_a_tenth(before, after, verdict):
    assert Change(quartiles(before), quartiles(after)).verdict == verdict


def test_changes_are_ratios_of_the_cases_that_both_runs_have():
    before = run(1.5, 1.5) + run(9.0, case="W2")[1:]
    ((name, change),) = changes(before, run(3.0, 3.0)).items()
    assert name == ('{"network": "a"}', "W4")
    assert change == Change(Quartiles(1.5, 1.5, 1.5, 2), Quartiles(3.0, 3.0, 3.0, 2))


def test_slower_must_be_confirmed_and_only_slower_is_measured_again():
    slower, same = changes(run(*STABLE), run(2, 2, 2)), changes(run(*STABLE), run(*STABLE))
    assert confirmed(slower, lambda: slower) == set(slower)
    assert confirmed(slower, lambda: same) == set()
    assert confirmed(same, lambda: pytest.fail("measured again")) == set()


def test_the_baseline_is_the_last_run_with_as_many_threads():
    old, new = run(1.0, run="1"), run(2.0, run="2")
    other = run(3.0, run="3", threads=1)
    assert baseline(old + new + other, threads=2) == new
    assert baseline(old, threads=1) == []


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Compare with records of a ratio of about 1; the list holds what runs will measure next."""
    path = tmp_path / "bench_steps.jsonl"
    for line in run(*STABLE):
        append(path, line)
    left: list[float] = []
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(compare, "git", lambda *arguments: None)
    monkeypatch.setattr(compare, "results_path", lambda name, device: tmp_path / f"{name}.jsonl")
    monkeypatch.setattr(compare, "measure_again", lambda name, arguments: run(*[left.pop(0)] * 3))
    return left


@pytest.mark.parametrize(
    ("ratios", "status", "said"),
    [
        ([1.0], 0, "same\nnothing is slower"),
        ([2.0, 1.0], 0, "slower once, not again\nnothing is slower"),
        ([2.0, 2.0], 1, "1.01 (1.00-1.02) -> 2.00 (2.00-2.00)  slower\nslower: bench_steps"),
    ],
)
def test_the_exit_status_tells_whether_anything_is_slower(measured, capsys, ratios, status, said):
    measured += ratios
    assert main(["bench_steps", "--threads", "2"]) == status
    assert said in capsys.readouterr().out
    assert measured == []


def test_without_a_record_there_is_nothing_to_compare_with(measured, capsys):
    assert main(["bench_weights", "--threads", "2"]) == 0
    assert main(["bench_steps", "--threads", "5"]) == 0
    assert "bench_steps.jsonl holds no record with 5 threads to compare with" in capsys.readouterr().out


def test_only_committed_records_count(monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(compare, "git", lambda *arguments: '{"case": "float"}' if arguments[1] == "HEAD:a/b" else None)
    append(tmp_path / "c", {"case": "W4"})
    assert compare.committed(tmp_path / "a" / "b") == [{"case": "float"}]
    assert compare.committed(tmp_path / "c") == [{"case": "W4"}]


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench_nothing"])
    assert "got ['bench_nothing']" in capsys.readouterr().err
