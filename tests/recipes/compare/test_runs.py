"""Runs: what they record, that they are not repeated, and that nothing is lost or half-written whatever happens."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

import lightning_balq
from recipes.compare import scheduler
from recipes.compare.__main__ import main
from recipes.compare.cells import Cell, Options, Width, all_cells, choose, methods
from recipes.compare.records import Results
from recipes.compare.runs import SOME_LEFT
from recipes.compare.scheduler import BUSY
from recipes.compare.training import attempt, portable, run
from recipes.train import main as train
from tests.recipes.tiny import RandomImages

ROOT = Path(__file__).parents[3]
RECIPE = {
    "data": {"class_path": "tests.recipes.tiny.RandomImages"},
    "model": {"class_path": "ImageClassifier", "init_args": {"network": "digits_cnn", "classes": 10}},
    "trainer": {
        "max_epochs": 2, "accelerator": "cpu", "callbacks": [{"class_path": "tests.recipes.compare.faulty.Fault"}],
    },
}  # fmt: skip
LSQ = ["--method", "lsq", "--bits", "2/2"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("some.yaml").write_text(yaml.safe_dump(RECIPE))


def one(*options, method=LSQ):
    return main(["run", "some.yaml", *method, "--results", "results", *options])


def command(*options):
    return [sys.executable, "-m", "recipes.compare", "all", "some.yaml", "--results", "results", *options]


def start(*options):
    """The program as a user starts it, with its processes as a group."""
    return subprocess.Popen(
        command(*options), env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def records(folder="results"):
    return {record["cell"].partition("--seed")[0]: record for record in Results(Path(folder)).read()}


def metrics(record):
    """What must not depend on how often a run was interrupted."""
    return {key: record[key] for key in ("test", "best", "curve", "effective_bitwidth", "bytes", "diverged")}


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def group_exists(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_leaves_a_record_of_everything_and_is_not_repeated(capsys):
    assert one("--seed", "3", "--set", "model.learning_rate=0.05") == 0
    (path,) = Path("results/records").iterdir()
    (line,) = path.read_text().splitlines()
    record = json.loads(line)
    assert path.stem == record["cell"] and path.stem.startswith("some--lsq--W2A2--seed3--")
    expected = {
        "recipe": "some", "method": "lsq", "weight_bits": 2, "activation_bits": 2, "seed": 3, "status": "finished",
        "overrides": {"model.learning_rate": "0.05"}, "diverged": False, "metric": "test_accuracy", "epochs": 2,
        # 4,608 and 9,216 weights at 2 bits and a scale each, instead of 4 bytes
        "bytes": 61672 - (4608 + 9216) * 4 + (4608 + 9216) // 4 + 2 * 4, "float_bytes": 61672,
        "float_layers": {"network.0": "first layer", "network.12": "last layer"}, "resumed": False,
        "torch": torch.__version__, "lightning_balq": lightning_balq.__version__, "device": "cpu", "threads": 1,
    }  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert record["configuration"]["seed_everything"] == 3
    assert record["configuration"]["model"]["init_args"]["learning_rate"] == 0.05
    assert record["configuration"]["quantization"]["init_args"]["activation_range"] == "lsq"
    assert str(Path.cwd()) not in line
    losses = [epoch["val_loss"] for epoch in record["curve"]]
    assert len(losses) == 2 and all({"train_loss", "val_accuracy"} <= set(epoch) for epoch in record["curve"])
    best = max(epoch["val_accuracy"] for epoch in record["curve"])
    assert record["best"]["metric"] == "val_accuracy" and record["best"]["value"] == best
    assert 1 < record["effective_bitwidth"] <= 2 and record["seconds"] > 0
    assert "test_accuracy" in capsys.readouterr().out.splitlines()[-1]
    assert not list(Path("results").rglob("*.ckpt")) and not list(Path("results").rglob("*.unfinished"))
    # again: nothing is trained and nothing written
    before = path.stat()
    assert one("--seed", "3", "--set", "model.learning_rate=0.05") == 0
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_record_does_not_tell_where_files_are():
    settings = {"path": "/home/me/data", "files": ["/a/b.pt", "c/d.pt"], "epochs": 3, "name": None}
    assert portable(settings) == {"path": "data", "files": ["b.pt", "c/d.pt"], "epochs": 3, "name": None}


def test_a_run_is_what_the_training_program_does_by_hand():
    assert one() == 0
    (record,) = records().values()
    method = str(ROOT / "recipes/methods/lsq.yaml")
    options = ["--quantization.weight_bits=2", "--quantization.activation_bits=2", "--quantization.verbose=0",
               "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]  # fmt: skip
    program = train(["fit", "--config", "some.yaml", "--config", method, "--seed_everything=0", *options])
    (tested,) = program.trainer.test(program.model, RandomImages(), verbose=False)
    assert tested == record["test"]


def test_a_loss_that_is_not_finite_is_a_result_and_ends_the_run():
    assert one("--set", "model.learning_rate=1e38", "trainer.max_epochs=4") == 0
    (record,) = records().values()
    assert (record["status"], record["diverged"], record["epochs"]) == ("finished", True, 1)
    assert record["curve"][0]["train_loss"] is None and record["test"] == {} and record["metric"] is None


def test_a_run_that_diverges_in_the_quantizer_has_diverged_too():
    # weights of NaN are what recording their codes fails over
    assert one("--set", "model.learning_rate=1e38", "quantization.record_every_n_steps=3") == 0
    (record,) = records().values()
    assert (record["status"], record["diverged"], record["epochs"]) == ("finished", True, 0)


def test_a_failed_run_is_recorded_and_tried_again_only_if_asked(capsys):
    Path("fault.txt").write_text("2: raise")
    assert one() == 1
    (record,) = records().values()
    assert (record["status"], record["error"]) == ("failed", "RuntimeError: this is what was asked for")
    assert record["log"].endswith(f"{record['cell']}/log.txt")
    assert "Traceback" in capsys.readouterr().err
    Path("fault.txt").unlink()
    assert one() == 1 and records()[record["cell"].partition("--seed")[0]] == record
    assert one("--retry") == 0
    (retried,) = records().values()
    assert retried["status"] == "finished" and retried["resumed"] and len(retried["curve"]) == 2
    whole = Path("whole")
    assert main(["run", "some.yaml", *LSQ, "--results", str(whole)]) == 0
    (expected,) = records(whole).values()
    assert metrics(retried) == metrics(expected) and not expected["resumed"]


def test_an_interrupted_run_can_start_over():
    Path("fault.txt").write_text("2: raise")
    assert one() == 1
    assert list(Path("results").rglob("last.ckpt"))
    Path("fault.txt").unlink()
    assert one("--retry", "--start-over") == 0
    (record,) = records().values()
    assert record["status"] == "finished" and not record["resumed"]


def test_a_wrong_setting_is_a_failed_run_whose_log_names_it(capsys):
    assert one("--set", "model.width=3") == 1
    (record,) = records().values()
    assert record["status"] == "failed" and record["error"] == "a setting was refused, the log says which"
    assert "width" in capsys.readouterr().err


def test_a_cell_in_the_hands_of_another_program_is_left_alone(capsys):
    Path("fault.txt").write_text("2: raise")
    assert one() == 1
    (cell,) = (record["cell"] for record in records().values())
    Path("fault.txt").unlink()
    with FileLock(Path("results/runs") / cell / "lock"):
        assert one("--retry") == BUSY
    assert records()[cell.partition("--seed")[0]]["status"] == "failed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "lsq", "--bits", "1/1"], "must be of weights of 2 to 8 and activations of 1 to 8 or 32 bits"),
        (["--method", "lsq"], "got none"),
        (["--method", "float", "--bits", "2/2"], "must be left out for the method float, got W2A2"),
        (["--method", "lqs", "--bits", "2/2"], "got lqs"),
    ],
)
def test_a_wrong_cell_is_explained_before_anything_is_run(capsys, options, message):
    assert one(method=options) == 2
    assert message in capsys.readouterr().err
    assert not Path("results").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_failing_run_and_a_dying_process_do_not_stop_the_others():
    Path("fault.txt").write_text("2: raise, 3: kill")
    program = start("--methods", "lsq", "xnor", "float", "--bits", "2/2", "3/3", "--seeds", "1", "--jobs", "2")
    _, shown = program.communicate(timeout=200)
    assert program.returncode == 1
    assert "xnor is made for" in shown and "2 runs have failed" in shown
    found = records()
    errors = {name: record.get("error") for name, record in found.items()}
    assert errors == {
        "some--float--float": None, "some--lsq--W2A2": "RuntimeError: this is what was asked for",
        "some--lsq--W3A3": "the process ended by signal 9",
    }  # fmt: skip
    assert found["some--float--float"]["status"] == "finished"
    log = Path("results") / found["some--lsq--W2A2"]["log"]
    assert "Traceback" in log.read_text() and "this is what was asked for" in log.read_text()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_runs_are_spread_over_the_gpus_that_are_named():
    Path("fault.txt").write_text("2: gpu, 3: gpu")
    options = ("--methods", "lsq", "--bits", "2/2", "3/3", "--seeds", "1", "--jobs", "2", "--gpus", "5", "3")
    start(*options).communicate(timeout=200)
    assert {record["error"] for record in records().values()} == {"RuntimeError: on GPU 5", "RuntimeError: on GPU 3"}


@pytest.mark.skipif(os.name != "posix", reason="signals and process groups")
def test_killed_at_any_moment_and_called_again_it_ends_as_if_never_killed():
    size = ["--set", "data.size=300", "data.batch_size=4", "trainer.max_epochs=6"]
    for running in ("some--float", "some--lsq"):
        program = start("--methods", "float", "lsq", "--seeds", "1", *size)
        try:
            wait_until(lambda name=running: list(Path("results/runs").glob(f"{name}*/last.ckpt")))
            time.sleep(0.1)  # in the middle of the next epoch
            program.kill()
            program.communicate(timeout=30)
            wait_until(lambda group=program.pid: not group_exists(group))  # no process outlives the program
        finally:
            if group_exists(program.pid):
                os.killpg(program.pid, signal.SIGKILL)
    assert set(records()) == {"some--float--float"}
    for method in (["--method", "float"], LSQ):  # cell by cell, as another scheduler would
        for folder in ("results", "whole"):
            assert main(["run", "some.yaml", *method, *size, "--results", folder]) == 0
    killed, whole = records(), records("whole")
    assert killed.keys() == whole.keys() and len(killed) == 2
    for name, record in killed.items():
        assert record["resumed"] and not whole[name]["resumed"]
        assert metrics(record) == metrics(whole[name])
        assert len(record["curve"]) == 6 and all(math.isfinite(epoch["train_loss"]) for epoch in record["curve"])


@pytest.mark.skipif(os.name != "posix", reason="signals and process groups")
@pytest.mark.parametrize("budget", ["0", "1.5"])
def test_a_budget_ends_the_program_and_says_what_is_left(budget):
    program = start(
        "--methods", "float", "lsq", "--seeds", "1", "--set", "trainer.max_epochs=10000", "--budget", budget
    )
    _, shown = program.communicate(timeout=100)
    assert program.returncode == SOME_LEFT and "2 of 2 runs are left; the same command goes on" in shown
    assert "another program" not in shown and records() == {}
    wait_until(lambda: not group_exists(program.pid))
    assert Path("results/runs").exists() == (budget != "0")


def test_runs_that_the_deadline_stops_end_later_as_if_never_stopped(monkeypatch):
    size = ["data.size=300", "data.batch_size=4", "trainer.max_epochs=6"]
    cells = list(all_cells(Path("some.yaml"), choose(methods(), ["float", "lsq"]), [Width(2, 2)], [0], size))
    results, announced = Results(Path("results")), []

    def passed(running, timeout, when):
        """As if the deadline passed right after the first epoch."""
        if timeout is None:
            return wait(running, timeout, when)
        wait_until(lambda: list(Path("results/runs").glob("*/last.ckpt")))
        return set(), running

    deadline = time.monotonic() + 1000
    first = scheduler.Scheduler(results, Options(), jobs=1, deadline=deadline)
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "wait", passed)
        assert first.run(cells, lambda *said: announced.append(said)) == cells
    assert announced == [] and results.read() == []
    assert scheduler.Scheduler(results, Options(), jobs=2, deadline=deadline).run(cells, lambda *_: None) == []
    stopped = records()["some--float--float"]
    assert stopped["resumed"] and not records()["some--lsq--W2A2"]["resumed"]
    assert main(["run", "some.yaml", "--method", "float", "--set", *size, "--results", "whole"]) == 0
    assert metrics(records("whole")["some--float--float"]) == metrics(stopped)


@pytest.mark.parametrize("budget", ["-1", "soon", "inf"])
def test_a_budget_that_is_none_is_refused(capsys, budget):
    with pytest.raises(SystemExit, match="2"):
        main(["all", "some.yaml", "--results", "results", "--budget", budget])
    assert f"expected a number of seconds, 0 or more, got '{budget}'" in capsys.readouterr().err


def from_float(tmp_path, **settings):
    """Two methods that begin with the float network, at a learning rate that changes nothing."""
    still = {"model": {"init_args": {"learning_rate": 1e-30, "warm_up": 0.0}}, "trainer": {"max_epochs": 1}}
    lsq = yaml.safe_load((ROOT / "recipes/methods/lsq.yaml").read_text())
    folder = tmp_path / "methods"
    folder.mkdir()
    for name in ("one", "other"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"from_float": True, **lsq, **still, **settings}))
    return methods(folder)


def test_a_method_may_begin_with_the_float_network_of_its_seed(tmp_path):
    found = from_float(tmp_path)
    cells = list(all_cells(Path("some.yaml"), list(found.values()), [Width(2, 2)], range(2), []))
    quantized = [cell for cell in cells if cell.method.name != "float"]
    order = []
    runs = scheduler.Scheduler(Results(Path("results")), Options(), jobs=3)
    # The float networks come last, and are run first all the same.
    mixed = [*quantized, *[cell for cell in cells if cell not in quantized]]
    left = runs.run(mixed, lambda cell, _: order.append(cell))
    assert left == [] and {cell.label for cell in order[:2]} == {"float, seed 0", "float, seed 1"}
    written = {(record["method"], record["seed"]): record for record in Results(Path("results")).read()}
    for cell in quantized:
        (trained,) = Path("results/runs").glob(f"some--float--float--seed{cell.seed}--*/last.ckpt")
        program = train([*cell.arguments(), f"--init_from={trained}", "--trainer.enable_progress_bar=false"])
        weights = torch.load(trained, weights_only=True)["state_dict"]
        assert torch.equal(program.model.network[4].weight, weights["network.4.weight"])
        (tested,) = program.trainer.test(program.model, RandomImages(), verbose=False)
        assert tested == written[cell.method.name, cell.seed]["test"]
    assert not list(Path("results/runs").glob("some--one*/last.ckpt"))


def test_without_the_float_network_that_it_begins_with_a_run_is_left_or_fails(tmp_path):
    found = from_float(tmp_path)
    cell = Cell(Path("some.yaml"), found["one"], Width(2, 2), 0)
    results = Results(Path("results"))
    runs = scheduler.Scheduler(results, Options(), jobs=1)
    assert runs.run([cell], lambda *_: None) == [cell] and results.read() == []
    assert run(cell, results, Options())["error"].startswith("FileNotFoundError: one begins with the float network")
    results.write(cell.start.name, {"status": "failed"})
    error = attempt(cell, results, Options())["error"]
    assert "which failed or diverged: run the method float too, and `--retry`" in error
