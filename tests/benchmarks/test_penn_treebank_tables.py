from benchmarks.penn_treebank_cells import SETTINGS, Cell
from benchmarks.penn_treebank_tables import (
    NOT_MEASURED,
    penn_treebank_table,
)
from tests.benchmarks.study import WHERE


def record(width, method, seed, perplexity, *, network="lstm", setting="reduced", **changes):
    cell = Cell(network, width, method, seed)
    bitwidth = None if method == "float" else 1.75
    validation = [] if perplexity is None else [perplexity + 30, perplexity + 10]
    outcome = {
        "test_perplexity": perplexity, "validation_perplexity": validation, "effective_bitwidth": bitwidth,
        "step_seconds": 0.25, "diverged": False,
    }  # fmt: skip
    described = {"setting": setting, "numbers": SETTINGS[setting].numbers()}
    return {**cell.options(), **described, **outcome, **WHERE, **changes}


def lines(table):
    """Rows of a table by network, width and method."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {tuple(row[:3]): row[3:] for row in rows}


def example(seeds):
    """Float 100, 101, ..; balanced mean 8, 10, 12 .. above it; uniform mean 20 above it."""
    made = [record("float", "float", seed, 100.0 + seed) for seed in range(seeds)]
    made += [record("W2A2", "balanced_mean", seed, 108.0 + 3 * seed) for seed in range(seeds)]
    return made + [record("W2A2", "uniform_mean", seed, 120.0 + seed) for seed in range(seeds)]


def test_two_seeds_give_means_and_spreads_without_a_test():
    rows = lines(penn_treebank_table(example(2)))
    assert rows["LSTM", "float", "float"] == ["100.5 ± 0.7 (2)", "110.5 ± 0.7 (2)", "", "", ""]
    assert rows["LSTM", "W2A2", "balanced, mean center"] == [
        "109.5 ± 2.1 (2)", "119.5 ± 2.1 (2)", "1.75", "+9.0 (+8.0, +10.0)", "-11.0 (-12.0, -10.0)",
    ]  # fmt: skip
    assert rows["LSTM", "W2A2", "uniform, mean scale"][3:] == ["+20.0 (+20.0, +20.0)", ""]
    assert list(rows)[2:] == [
        ("LSTM", "float", "float"), ("LSTM", "W2A2", "balanced, mean center"), ("LSTM", "W2A2", "uniform, mean scale"),
    ]  # fmt: skip


def test_three_seeds_give_a_paired_test():
    # differences 8, 10, 12: mean 10, deviation 2, t = 10 / (2 / sqrt(3)) = 8.660, p = 1 - t / sqrt(t^2 + 2) = 0.0131
    rows = lines(penn_treebank_table(example(3)))
    assert rows["LSTM", "W2A2", "balanced, mean center"][3] == "+10.0 ± 2.0 (p = 0.013, n = 3)"


def test_only_seeds_that_both_have_are_compared():
    made = example(2)
    del made[0]
    rows = lines(penn_treebank_table(made))
    assert rows["LSTM", "float", "float"][0] == "101.0 (1)"
    assert rows["LSTM", "W2A2", "balanced, mean center"][3] == "+10.0"


def test_failed_runs_are_counted_and_their_numbers_not_invented():
    made = example(2)
    made.append(record("W2A2", "uniform_max", 0, None, diverged=True, effective_bitwidth=None))
    assert lines(penn_treebank_table(made))["LSTM", "W2A2", "uniform, max scale"] == [
        "none (1, 1 diverged)", "none (1, 1 diverged)", "", "", "",
    ]  # fmt: skip
    made.append(record("W2A2", "uniform_max", 1, 150.0, diverged=True))
    assert lines(penn_treebank_table(made))["LSTM", "W2A2", "uniform, max scale"] == [
        "150.0 (1, 2 diverged)", "160.0 (1, 2 diverged)", "1.75", "+49.0", "+29.0",
    ]  # fmt: skip


def test_the_note_says_what_was_run_where():
    table = penn_treebank_table(example(2))
    numbers = SETTINGS["reduced"]
    for text in (
        f"Setting `reduced`: Penn Treebank, {100 * numbers.train_share:g} % of the training text, whole validation",
        "and test text read in 50 columns; ",
        f"{numbers.epochs} epochs, batch 20, 20 steps, dropout {numbers.dropout:g}, Adam from 0.0005, divided by 10",
        "start from the float network of their seed and train as long again",
        "biases and cell states stay float", "A float step takes 0.250 s.",
        "Device: cpu, threads: 1; torch 2, lightning 3, lightning_balq 4 (commit 0123456, sources abc)",
        "`python -m benchmarks.penn_treebank --path FOLDER --setting reduced`",
    ):  # fmt: skip
        assert text in table


def test_every_setting_and_device_has_its_own_table_the_longer_one_first():
    made = [*example(1), record("float", "float", 0, 90.0, setting="beginning")]
    made.append(record("float", "float", 0, 80.0, device="some gpu"))
    notes = [line for line in penn_treebank_table(made).splitlines() if line.startswith("Setting")]
    assert [line.split("`")[1] for line in notes] == ["reduced", "reduced", "beginning"]
    assert "start from the float network of their seed" in notes[0]
    scratch = penn_treebank_table([record("float", "float", 0, 90.0, setting="beginning")])
    assert "are trained from scratch" in scratch
    assert sorted("some gpu" in line for line in notes) == [False, False, True]


def test_without_records_nothing_is_invented():
    assert penn_treebank_table([]) == NOT_MEASURED
