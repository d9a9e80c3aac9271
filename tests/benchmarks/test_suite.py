from pathlib import Path

import pytest

import benchmarks
from benchmarks import __main__, test_micro
from benchmarks.suite import BENCHMARKS

FOLDER = Path(benchmarks.__file__).parent


def test_the_suite_holds_every_benchmark_of_speed():
    others = {"bench_imagenet", "bench_input", "bench_quickstart", "bench_recording", "bench_soak"}
    assert {path.stem for path in FOLDER.glob("bench_*.py")} - others == set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_docstring_asks_one_question_and_says_how_to_run_it(name):
    description = BENCHMARKS[name].description
    assert description.count("Question: ") == 1
    assert "\nNot measured: " in description
    assert f"\nRun: python -m benchmarks.{name}\n" in description


def test_all_are_run_with_the_arguments_given_and_a_failure_shows(monkeypatch):
    programs: list[list[str]] = []

    class Done:
        returncode = 0

    def run(program: list[str]) -> Done:
        programs.append(program[2:])
        return Done()

    monkeypatch.setattr(__main__.subprocess, "run", run)
    monkeypatch.setattr(__main__.sys, "argv", ["benchmarks", "--quick"])
    assert __main__.main() == 0
    assert [program[:2] for program in programs[1:]] == [[f"benchmarks.{name}", "--quick"] for name in BENCHMARKS]
    assert programs[0][0] == "pytest"
    Done.returncode = 1
    assert __main__.main() == 1


@pytest.mark.parametrize("name", test_micro.QUANTIZERS)
def test_a_micro_benchmark_checks_what_it_calls(name):
    weight = test_micro.torch.randn(4, 4)
    test_micro.test_weight_quantizer(lambda case: case(), weight, name, 2)
