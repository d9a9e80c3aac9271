"""The quickstart: what it writes, that it writes it again, and that it leaves nothing else behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from recipes.quickstart import __main__ as command_line
from recipes.quickstart.figures import spread
from recipes.quickstart.methods import CASES, FLOAT, METHODS
from recipes.quickstart.output import claimed_folder, write_output
from recipes.quickstart.page import report_page
from recipes.quickstart.results import Layer, Results, Run, Setup, Weights
from recipes.quickstart.study import Study, run_study
from recipes.quickstart.summary import comparisons, table_rows
from recipes.quickstart.training import Training, build_callback

ROOT = Path(__file__).parents[1]
QUANTIZED = [name for name, case in CASES.items() if case.method is not FLOAT]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "recipes.quickstart", "--seeds", "1", "--epochs", "1", *arguments]


def environment(home: Path) -> dict[str, str]:
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(home))
    kept = {key: value for key, value in os.environ.items() if key != "MPLCONFIGDIR"}
    cache = {"LIGHTNING_BALQ_CACHE": str(home.parent / "compiled")}
    return kept | places | cache | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program as a user runs it, with two workers, in a folder that is also its home and temporary folder."""
    home = tmp_path_factory.mktemp("home")
    ran = subprocess.run(command("--workers", "2"), cwd=home, env=environment(home), capture_output=True, text=True)
    return SimpleNamespace(home=home, ran=ran, folder=home / "quickstart_report")


@pytest.fixture(scope="module")
def results(program) -> Results:
    """The results, read back from the file that holds all of them."""
    written = json.loads((program.folder / "results.json").read_text())
    setup = Setup(**written["setup"] | {"layers": [Layer(**layer) for layer in written["setup"]["layers"]]})
    runs = [Run(**run | {"weights": Weights(**run["weights"])}) for run in written["runs"]]
    return Results(setup, runs, written["step_time"])


@pytest.fixture
def three_seeds(results) -> Results:
    """Results as if from three seeds, with accuracies that differ."""
    rng = np.random.default_rng(0)
    shifts = [(seed, rng.normal(scale=2)) for _ in results.runs for seed in range(3)]
    runs = [run for run in results.runs for _ in range(3)]
    runs = [replace(run, seed=s, accuracy=run.accuracy + d) for run, (s, d) in zip(runs, shifts, strict=True)]
    return replace(results, runs=runs)


# ---- the program -----------------------------------------------------------------------------------------------------


def test_program_writes_two_files_and_nothing_else(program):
    assert program.ran.returncode == 0, program.ran.stderr
    files = {str(path.relative_to(program.home)) for path in program.home.rglob("*") if path.is_file()}
    assert files == {"quickstart_report/report.html", "quickstart_report/results.json"}
    assert [path.name for path in program.home.iterdir()] == ["quickstart_report"]


def test_program_shows_the_table_and_nothing_else(program):
    assert program.ran.stderr.strip() == ""  # Lightning 2.4 ends lines of its own
    lines = program.ran.stdout.splitlines()
    assert lines[0].startswith("Handwritten digits, test accuracy over 1 seed")
    assert lines[-1] == "Report: quickstart_report/report.html"
    assert all(len(line) <= 80 for line in lines)
    for case in CASES.values():
        assert any(line.startswith(case.width) and case.method.label in line for line in lines)


def test_numbers_are_the_same_again_and_for_one_worker(program):
    first = json.loads((program.folder / "results.json").read_text())
    again = run_study(Study([0], epochs=1, workers=1, timing_rounds=1), lambda activity, trained: None)
    assert first["runs"] == json.loads(json.dumps([asdict(run) for run in again.runs]))
    assert first["setup"]["workers"] == 2


@pytest.mark.skipif(os.name != "posix", reason="signals and process groups")
@pytest.mark.parametrize("number", ["SIGINT", "SIGKILL"])
def test_stopped_program_leaves_no_process(tmp_path, number):
    running = subprocess.Popen(
        command("--epochs", "10000"), cwd=tmp_path, env=environment(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # Tests that a shell runs in the background ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        wait_until(lambda: (tmp_path / "quickstart_report").exists())
        time.sleep(1)  # workers are importing: the moment at which they would answer Ctrl-C with a traceback
        if number == "SIGKILL":
            running.kill()
        else:
            os.killpg(running.pid, signal.SIGINT)  # as a terminal does
        _, shown = running.communicate(timeout=30)
        wait_until(lambda: not group_exists(running.pid))
    finally:
        if group_exists(running.pid):
            os.killpg(running.pid, signal.SIGKILL)
    if number == "SIGINT":
        assert running.returncode == command_line.INTERRUPTED
        assert shown.strip() == "stopped; no report was written"
        assert list(tmp_path.iterdir()) == []


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def group_exists(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(command_line, "run_study", lambda *_: pytest.fail("training started"))


def test_existing_folder_is_refused_before_training_and_left_alone(tmp_path, no_training, capsys):
    (tmp_path / "report.html").write_text("mine")
    assert command_line.main(["--output", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path) in message
    assert "--overwrite" in message
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
def test_file_in_place_of_the_folder_is_refused(tmp_path, no_training, capsys, overwrite):
    (tmp_path / "taken").write_text("mine")
    assert command_line.main(["--output", str(tmp_path / "taken"), *overwrite]) == 2
    assert str(tmp_path / "taken") in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds: expected a whole number of 1 or more, got '0'"),
        (["--seeds", "2.5"], "--seeds: expected a whole number of 1 or more, got '2.5'"),
        (["--seed", "-1"], "--seed: expected a whole number of 0 or more, got '-1'"),
        (["--epochs", "none"], "--epochs: expected a whole number of 1 or more, got 'none'"),
        (["--workers", "0"], "--workers: expected a whole number of 1 or more, got '0'"),
        (["--bits", "2"], "unrecognized arguments: --bits 2"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, no_training, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.main(arguments)
    assert message in capsys.readouterr().err


def test_overwrite_replaces_only_what_is_written(tmp_path, results):
    for name in ("report.html", "results.json", "mine.txt"):
        (tmp_path / name).write_text("before")
    with claimed_folder(tmp_path, overwrite=True):
        write_output(tmp_path, results)
    assert (tmp_path / "mine.txt").read_text() == "before"
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "results.json").read_text())["setup"]["seeds"] == [0]


@pytest.mark.parametrize("existed", [False, True])
def test_folder_is_removed_after_an_error_if_it_was_made(tmp_path, existed):
    folder = tmp_path / "report"
    if existed:
        folder.mkdir()
    with pytest.raises(RuntimeError, match="no report"), claimed_folder(folder, overwrite=existed):
        raise RuntimeError("no report")
    assert folder.exists() == existed


# ---- what is trained -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUANTIZED)
def test_row_uses_the_callback_and_the_arguments_of_the_table(name):
    case, callback = CASES[name], build_callback(CASES[name])
    assert type(callback).__name__ == case.method.callback
    assert (callback.weight_bits, callback.activation_bits) == (case.bits, case.bits)
    assert {key: getattr(callback, key) for key in case.method.arguments} == case.method.arguments


def test_rows_of_a_seed_start_from_the_same_weights_and_other_seeds_from_others():
    first, *others = (Training(case, seed=3).model.state_dict() for case in CASES.values())
    for other in others:
        assert all(torch.equal(first[key], other[key]) for key in first)
    assert not torch.equal(first["net.6.weight"], Training(CASES["float"], seed=4).model.state_dict()["net.6.weight"])


def test_levels_are_those_of_the_quantized_weights(results):
    for run in results.runs:
        weights, bits = run.weights, CASES[run.case].bits
        assert sum(map(sum, weights.counts)) == 9216  # no weight is outside the histogram
        assert len(weights.levels) == (0 if bits is None else 2**bits)
        if CASES[run.case].method.arguments.get("scale") == "max":
            largest = weights.edges[-1]
            assert weights.levels == pytest.approx(np.linspace(-largest, largest, 2**bits).tolist(), rel=1e-5)


def test_effective_bitwidth_is_that_of_the_method(results):
    rows = {row.case: row.effective_bitwidth for row in table_rows(results)}
    assert rows["float"] is None
    assert rows["W2A2 balanced, median center"] == pytest.approx(2, abs=1e-4)
    assert rows["W4A4 balanced, median center"] == pytest.approx(4, abs=1e-3)
    assert rows["W2A2 uniform, max scale"] < rows["W2A2 balanced, mean center"] < 2


def test_bytes_are_those_of_packed_codes(results):
    rows = {row.case: row for row in table_rows(results)}
    quantized = 4608 + 9216  # weights of the two layers in the middle; each has a float32 scale
    assert rows["float"].quantized_bytes == rows["float"].float_bytes
    for row in list(rows.values())[1:]:
        bits = CASES[row.case].bits
        assert row.float_bytes == rows["float"].float_bytes
        assert row.float_bytes - row.quantized_bytes == quantized * 4 - quantized * bits // 8 - 2 * 4


# ---- the report ------------------------------------------------------------------------------------------------------


class Cells(HTMLParser):
    """Text of the cells of every table, row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag == "td":
            self.tables[-1][-1].append("")
        self.inside = tag == "td" or (self.inside and tag == "span")

    def handle_data(self, data):
        if self.inside and self.tables:
            self.tables[-1][-1][-1] += data.strip()

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "td"


def test_table_of_the_report_holds_the_numbers_of_the_json(tmp_path, three_seeds):
    write_output(tmp_path, three_seeds)
    written = json.loads((tmp_path / "results.json").read_text())
    page = (tmp_path / "report.html").read_text()
    assert page == report_page(three_seeds)  # the same results give the same report
    shown, *_ = Cells(page).tables
    shown = [row for row in shown if row]
    assert len(shown) == len(written["summary"]) == len(CASES)
    for cells, row in zip(shown, written["summary"], strict=True):
        accuracies = [run["accuracy"] for run in written["runs"] if run["case"] == row["case"]]
        assert cells[:2] == [row["width"], row["label"]]
        assert cells[2] == f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}"
        assert cells[4] == f"{row['quantized_bytes']:,}"
        if row["case"] != "float":
            low, middle, high = np.quantile(written["step_time"][row["case"]], [0.25, 0.5, 0.75])
            assert cells[3] == f"{row['effective_bitwidth']:.2f}"
            assert cells[5] == f"{100 * (middle - 1):.0f} [{100 * (low - 1):.0f}, {100 * (high - 1):.0f}]"


def test_report_asks_for_nothing(program):
    page = (program.folder / "report.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert not re.search(r"\b(src|srcset|data|action)=|@import|@font-face|<link|<iframe|<img", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert page.count("<svg") == page.count("</svg>") == len(METHODS) + 2 * 2


def test_report_of_one_seed_claims_nothing(program):
    page = (program.folder / "report.html").read_text()
    assert "One seed: no difference can be tested." in page
    assert "(not tested)" in page


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_comparisons_are_paired_by_seed(three_seeds):
    shuffled = replace(three_seeds, runs=three_seeds.runs[::-1])
    for results in (three_seeds, shuffled):
        family = comparisons(results)[0]
        raw = []
        for item in family:
            ours, theirs = (
                [run.accuracy for run in sorted(results.runs, key=lambda run: run.seed) if run.case == name]
                for name in (item.case, item.baseline)
            )
            assert item.difference == pytest.approx(np.mean(ours) - np.mean(theirs))
            assert item.difference_deviation == pytest.approx(np.std(np.subtract(ours, theirs), ddof=1))
            raw.append(stats.ttest_rel(ours, theirs).pvalue)
        smallest = int(np.argmin(raw))
        assert family[smallest].p == pytest.approx(min(1, len(raw) * raw[smallest]))


def test_every_balanced_row_is_compared_with_every_uniform_row_of_its_width(three_seeds):
    against_float, *against_uniform = comparisons(three_seeds)
    assert [item.case for item in against_float] == QUANTIZED
    assert {item.baseline for item in against_float} == {"float"}
    pairs = {(item.case, item.baseline) for family in against_uniform for item in family}
    assert pairs == {
        (ours, theirs)
        for ours in QUANTIZED
        for theirs in QUANTIZED
        if " balanced" in ours and " uniform" in theirs and ours[:4] == theirs[:4]
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 3.0, 8.0], [1.0, 3.0, 8.0]),  # nothing to do
        ([4.0, 4.0], [3.5, 4.5]),  # apart by equal parts
        ([0.0, 0.1, 5.0], [0.0, 1.0, 5.0]),  # not below the lower limit
        ([9.9, 9.9, 9.9], [8.0, 9.0, 10.0]),  # nor above the upper
    ],
)
def test_spread_moves_labels_as_little_as_possible(values, expected):
    assert spread(values, gap=1, low=0, high=10) == pytest.approx(expected)
