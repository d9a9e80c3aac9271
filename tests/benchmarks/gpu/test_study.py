"""The tables of a GPU, as far as a CPU can tell: every cell is what was meant, and runs."""

import argparse
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as everything
from benchmarks.gpu import ablations, cifar10, cost, imagenette, penn_treebank, study
from recipes.compare.cells import Options
from recipes.compare.records import Results
from recipes.compare.runs import SOME_LEFT
from recipes.compare.training import run
from tests.benchmarks.gpu.data import FOLDERS, write_all
from tests.helpers import ROOT

pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("own_datasets")

STUDIES = {module.STUDY.name: module.STUDY for module in (penn_treebank, cifar10, imagenette, ablations)}
each_study = pytest.mark.parametrize("name", STUDIES)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("data"))


def asked(results, *options, dry=True):
    parser = argparse.ArgumentParser()
    study.add_arguments(parser)
    return study.parsed(parser, ["--results", str(results), *(["--dry-run"] if dry else []), *options])


def cells(name, results=Path("results"), seeds=1, *options, dry=True):
    return list(STUDIES[name].cells(asked(results, *options, dry=dry), Path("/some/data"), range(seeds)))


@pytest.mark.parametrize(
    ("name", "rows"),
    [("penn_treebank", 2 * (1 + 4 * 4)), ("cifar10", 1 + 8 * 3), ("imagenette", 1 + 8 * 2), ("ablations", 11)],
)
def test_the_first_seed_of_all_rows_comes_before_the_second(name, rows):
    found = cells(name, seeds=2, dry=False)
    assert len({cell.name for cell in found}) == len(found) == 2 * rows
    assert [cell.seed for cell in found] == [0] * rows + [1] * rows
    assert found[0].method.name == "float" and str(found[1].width) == "W2A2"
    assert len(cells(name)) == len(STUDIES[name].recipes) * len(STUDIES[name].methods)


@each_study
def test_where_things_are_is_no_part_of_what_a_run_is(name):
    here, there = cells(name, Path("here")), cells(name, Path("there"))
    assert [cell.name for cell in here] == [cell.name for cell in there]
    for cell in here:
        assert "/" not in json.dumps(cell.described()).replace("\\/", "") and "data.path=/some/data" in cell.where


def test_options_change_what_a_run_is():
    plain, long, compiled, double = (
        cells("cifar10", Path("results"), 1, *options, dry=False)[0]
        for options in ((), ("--epochs", "200"), ("--compile",), ("--precision", "64-true"))
    )
    assert plain.changes["trainer.max_epochs"] == "100" and plain.changes["model.milestones"] == "[50.0, 75.0]"
    assert long.changes["trainer.max_epochs"] == "200" and long.changes["model.milestones"] == "[100.0, 150.0]"
    assert "model.compiled" not in plain.changes and compiled.changes["model.compiled"] == "true"
    assert double.changes["trainer.precision"] == "64-true"
    assert len({cell.name for cell in (plain, long, compiled, double)}) == 4


def test_ablations_share_the_float_network_of_cifar10():
    (shared,) = {cell.name for cell in cells("cifar10")} & {cell.name for cell in cells("ablations")}
    assert "--float--" in shared


CHOSEN = {
    "penn_treebank": ("float", "balanced_median", "uniform_max"), "cifar10": ("float", "pact"),
    "imagenette": ("float", "balanced_learned"),
    "ablations": ("float", "ends_8_bits", "gradient_equalized", "from_float"),
}  # fmt: skip


@each_study
def test_cells_train_and_are_recorded(tmp_path, data, name):
    chosen = replace(STUDIES[name], methods=CHOSEN[name], recipes=STUDIES[name].recipes[-1:])
    results = Results(tmp_path / "results")
    for cell in chosen.cells(asked(results.folder), data / FOLDERS[name], range(1)):
        record = run(cell, results, Options())
        assert record["status"] == "finished" and not record["diverged"], record
        assert record["epochs"] == 1 and record["metric"] == (
            "test_perplexity" if name == "penn_treebank" else "test_accuracy"
        )
        given = record["configuration"]
        assert given["trainer"]["limit_train_batches"] == 2
        if name != "penn_treebank":
            assert given["data"]["init_args"]["device"] == str(study.device())
            assert given["trainer"]["precision"] == "bf16-mixed" and given["model"]["init_args"]["channels_last"]
        if cell.method.from_float:
            assert given["init_from"] == "last.ckpt"
        if cell.method.name == "ends_8_bits":
            assert record["float_layers"] == {}
    assert len(chosen.of(results.read())) == len(CHOSEN[name])


def test_a_table_is_filled_by_several_calls(tmp_path, data, monkeypatch, capsys):
    few = replace(STUDIES["cifar10"], methods=("float", "lsq"))
    words = ["--data", str(data / "cifar10"), "--results", str(tmp_path), "--dry-run"]
    assert study.main(few, "", [*words, "--budget", "0"]) == SOME_LEFT
    assert "2 of 2 runs are left; the same command goes on" in capsys.readouterr().err
    assert study.main(few, "", [*words, "--jobs", "2"]) == 0
    assert study.main(few, "", [*words, "--budget", "0"]) == 0
    assert {record["method"] for record in Results(tmp_path / "dry_run").read()} == {"float", "lsq"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_dry_run_is_offered(tmp_path, capsys):
    words = ["--results", str(tmp_path)]
    assert study.main(STUDIES["cifar10"], "", ["--data", str(tmp_path), *words]) == 2
    assert everything.main(["--data-root", str(tmp_path), *words]) == 2
    assert cost.main(words) == 2
    assert capsys.readouterr().err.count("needs a CUDA device; `--dry-run` goes through everything on a CPU") == 3
    assert not list(tmp_path.iterdir())


# ---- everything ------------------------------------------------------------------------------------------------------


def test_tables_take_turns_and_first_seeds_and_widths_come_first(tmp_path, data, capsys):
    words = ["--data-root", str(data), "--results", str(tmp_path), "--imagenette", "nothing"]
    found = everything.cells(everything.parse(words))
    assert "imagenette is left out: there is no folder" in capsys.readouterr().out
    seeds = [cell.seed for cell in found]
    assert seeds == sorted(seeds) and seeds.count(0) == 34 + 25 + 10 == seeds.count(2)
    assert [f"{cell.recipe.stem} {cell.method.name}" for cell in found[:5]] == [
        "ptb_lstm_float float", "cifar10_resnet20_float float", "ptb_lstm_float balanced_mean",
        "cifar10_resnet20_float balanced_learned", "cifar10_resnet20_float defaults",
    ]  # fmt: skip
    first = [str(cell.width) for cell in found if cell.seed == 0]
    assert set(first[: 10 + 9 + 10]) == {"float", "W2A2"} and "W2A2" not in first[29:]


def test_tests_run_once_for_all_calls_and_again_if_asked_after_a_failure(tmp_path, monkeypatch):
    statuses, commands = [1, 0], []

    def start(command, **options):
        commands.append(command)
        options["stdout"].write("what pytest says")
        return subprocess.CompletedProcess(command, statuses.pop(0))

    monkeypatch.setattr(everything.subprocess, "run", start)
    assert [everything.run_tests(tmp_path, None) for _ in range(2)] == [1, 1] and len(commands) == 1
    assert [everything.run_tests(tmp_path, None, again=True) for _ in range(3)] == [0, 0, 0] and len(commands) == 2
    assert commands[0][1:5] == ["-m", "pytest", "-m", "gpu"]
    assert (tmp_path / "tests.txt").read_text() == "what pytest says"
    monkeypatch.setattr(everything, "source_digest", lambda: "others")
    statuses.append(1)
    assert everything.run_tests(tmp_path, None) == 1


def test_all_tests_that_need_a_gpu_are_among_those_that_run():
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()]
    assert len(marked) > 8
    for path in marked:
        assert any(path.is_relative_to(ROOT / folder) for folder in everything.TESTS), path


def test_tests_that_take_too_long_are_left_for_the_next_call(tmp_path, monkeypatch):
    def start(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(everything.subprocess, "run", start)
    assert everything.run_tests(tmp_path, 1.0) == SOME_LEFT


@pytest.mark.parametrize(
    ("statuses", "status"),
    [((0, 0, 0), 0), ((0, SOME_LEFT, 0), SOME_LEFT), ((1, SOME_LEFT, 0), 1), ((0, SOME_LEFT, 1), 1)],
)
def test_the_exit_status_tells_failures_from_what_is_left(tmp_path, data, monkeypatch, statuses, status):
    monkeypatch.setattr(everything, "run_tests", lambda *_, **__: statuses[0])
    monkeypatch.setattr(everything.cost, "run", lambda *_, **__: statuses[1])
    monkeypatch.setattr(everything, "run", lambda *_: statuses[2])
    assert everything.main(["--data-root", str(data), "--results", str(tmp_path), "--dry-run"]) == status


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_dry_run_goes_through_everything(tmp_path, data):
    words = ["--data-root", str(data), "--results", str(tmp_path), "--dry-run", "--jobs", "2"]
    assert everything.main(words) == 0
    records = Results(tmp_path / "dry_run").read()
    assert {record["status"] for record in records} == {"finished"} and len(records) == 10 + 9 + 9 + 10
    assert {record["bench"] for record in cost.read(tmp_path / "dry_run" / cost.FILE)} == {
        "gpu_steps", "gpu_kernels", "gpu_quantizers", "bench_recurrent",
    }  # fmt: skip
