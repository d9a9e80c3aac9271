"""Tables and figures from made-up records, against numpy and scipy."""

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from recipes.compare.__main__ import main
from recipes.compare.records import Results
from recipes.compare.summary import against_baseline, against_float, rows_of
from recipes.compare.tables import FIELDS, csv_table, markdown_table, markdown_tables

SEEDS = 5
WIDTHS = {"float": (None, None), "W2A2": (2, 2), "W2": (2, None)}
MEANS = {("float", "float"): 0.97, ("uniform_mean", "W2A2"): 0.90, ("lsq", "W2A2"): 0.95,
         ("lsq", "W2"): 0.95, ("dorefa", "W2A2"): 0.901}  # fmt: skip


def record(method, width, seed, accuracy, **changes):
    weight_bits, activation_bits = WIDTHS[width]
    curve = [{"epoch": e, "val_loss": 1.0 / (e + 1), "val_accuracy": accuracy - 0.1 + 0.05 * e} for e in range(3)]
    quantized = method != "float"
    return {
        "cell": f"some--{method}--{width}--seed{seed}--0", "recipe": "some", "setting": "01234567",
        "overrides": {"trainer.max_epochs": "3"}, "method": method, "weight_bits": weight_bits,
        "activation_bits": activation_bits, "seed": seed, "status": "finished", "diverged": False,
        "metric": "test_accuracy", "test": {"test_accuracy": accuracy, "test_loss": 0.5},
        "best": {"metric": "val_accuracy", "value": accuracy + 0.01, "epoch": 2}, "curve": curve, "epochs": 3,
        "effective_bitwidth": 1.5 + 0.01 * seed if quantized else None,
        "overhead": 0.1 * seed**2 if quantized else None,
        "bytes": 9840 if quantized else 61672, "float_bytes": 61672,
        "float_layers": {"conv1": "first layer", "fc": "last layer"} if quantized else {}, "seconds": 2.0,
        "resumed": False,
        "configuration": {
            "data": {"class_path": "a.Digits", "init_args": {"batch_size": 64, "path": None}},
            "model": {"class_path": "b.ImageClassifier", "init_args": {"network": "digits_cnn"}},
            "trainer": {"max_epochs": 3},
        },
        "torch": "2", "lightning": "3", "lightning_balq": "4", "sources": "abc", "device": "cpu", "threads": 1,
        "commit": "0123456789", "dirty": False,
    } | changes  # fmt: skip


@pytest.fixture
def accuracies():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.02, SEEDS)  # what a seed does to all methods: only paired tests see through it
    return {row: mean + shared + rng.normal(0, 0.004, SEEDS) for row, mean in MEANS.items()}


@pytest.fixture
def records(accuracies):
    return [record(*row, seed, float(values[seed])) for row, values in accuracies.items() for seed in range(SEEDS)]


def written_by_hand_holm(values):
    order = np.argsort(values)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.array(values)[order] * np.arange(len(values), 0, -1)))
    return adjusted


def cells(table, label):
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_stand_float_first_then_by_width_then_by_name(records):
    assert [row.label for row in rows_of(records[::-1])] == ["float", "dorefa W2A2", "lsq W2A2", "uniform_mean W2A2",
                                                             "lsq W2"]  # fmt: skip


def test_differences_are_paired_by_seed_and_adjusted_for_their_rows(records, accuracies):
    for shuffled in (records, records[::-1]):
        found = against_float(rows_of(shuffled))
        pairs = {f"{method} {width}": 100 * (values - accuracies["float", "float"])
                 for (method, width), values in accuracies.items() if method != "float"}  # fmt: skip
        raw = {label: stats.ttest_1samp(values, 0) for label, values in pairs.items()}
        expected = dict(zip(raw, written_by_hand_holm([test.pvalue for test in raw.values()]), strict=True))
        assert found.keys() == pairs.keys()
        for label, difference in found.items():
            assert difference.test.mean == pytest.approx(pairs[label].mean())
            assert difference.test.interval() == pytest.approx(tuple(raw[label].confidence_interval(0.95)))
            assert difference.test.p == pytest.approx(raw[label].pvalue)
            assert difference.p == pytest.approx(expected[label])


def test_the_baseline_is_that_of_the_same_width(records):
    found = against_baseline(rows_of(records), "uniform_mean")
    assert found.keys() == {"lsq W2A2", "dorefa W2A2"}  # W2 has no row of the baseline
    assert against_baseline(rows_of(records), "lsq").keys() == {"uniform_mean W2A2", "dorefa W2A2"}


def test_the_table_equals_numpy(records, accuracies):
    table = markdown_table(records)
    values = 100 * accuracies["lsq", "W2A2"]
    row = cells(table, "W2A2 | lsq")
    assert row[:7] == [
        "W2A2", "lsq", f"{values.mean():.2f} ± {values.std(ddof=1):.2f} (5)",
        f"{values.mean() + 1:.2f} ± {values.std(ddof=1):.2f}", "1.52", "9,840", "40 %",
    ]  # fmt: skip
    test = stats.ttest_rel(values, 100 * accuracies["float", "float"])
    low, high = test.confidence_interval(0.95)
    assert row[7].startswith(
        f"{(values - 100 * accuracies['float', 'float']).mean():+.2f} ({low:+.2f} to {high:+.2f}), p"
    )
    assert "not distinguishable" not in row[7]
    assert cells(table, "float | float")[4:] == ["", "61,672", "", "", ""]


def test_a_difference_that_chance_explains_is_called_so(records):
    row = cells(markdown_table(records), "W2A2 | dorefa")
    assert row[8].endswith(", not distinguishable") and "p = " in row[8]
    assert cells(markdown_table(records), "W2A2 | uniform_mean")[8] == ""


def test_one_seed_gives_no_claim(records):
    table = markdown_table([record for record in records if record["seed"] == 0])
    row = cells(table, "W2A2 | lsq")
    assert row[2].endswith(" (1)") and "±" not in row[2]
    assert row[7].endswith(", not tested (n = 1)")
    assert "distinguishable" not in table and "p =" not in table


def test_diverged_and_failed_runs_are_counted_and_never_averaged(records, accuracies):
    changed = []
    for each in records:
        if (each["method"], each["seed"]) == ("dorefa", 0):
            each = each | {"status": "failed", "error": "ValueError: too bad", "log": "runs/x/log.txt"}
        if (each["method"], each["seed"]) == ("dorefa", 1):
            each = each | {"diverged": True, "metric": None, "test": {}, "best": {}, "effective_bitwidth": None}
        changed.append(each)
    table = markdown_table(changed)
    values = 100 * accuracies["dorefa", "W2A2"][2:]
    expected = f"{values.mean():.2f} ± {values.std(ddof=1):.2f} (3, 1 diverged, 1 failed)"
    assert cells(table, "W2A2 | dorefa")[2] == expected
    assert "Failed: dorefa W2A2 seed 0 (ValueError: too bad)." in table
    rows = {(row["method"], row["weight_bits"], row["activation_bits"]): row
            for row in csv.DictReader(io.StringIO(csv_table(changed)))}  # fmt: skip
    row = rows["dorefa", "2", "2"]
    assert (row["n"], row["diverged"], row["failed"], row["float_n"]) == ("3", "1", "1", "3")


def test_the_policy_stands_below_every_table(records):
    note = markdown_table(records)
    for text in (
        "Recipe `some` with trainer.max_epochs=3: data `Digits(batch_size=64)`",
        "model `ImageClassifier(network=digits_cnn)`; 3 epochs.",
        "Layers that stay float: `conv1` (first layer), `fc` (last layer).",
        "of the network of the last epoch, as fixed before", "the best validation of all epochs",
        "Device: cpu, threads: 1; torch 2, lightning 3, lightning_balq 4 (commit 0123456, sources abc).",
    ):  # fmt: skip
        assert text in note
    dirty = [each | {"dirty": True, "float_layers": {}} for each in records]
    assert "(commit 0123456 with changes, " in markdown_table(dirty)
    assert "Layers that stay float: none." in markdown_table(dirty)


def test_runs_with_other_settings_or_on_other_devices_have_tables_of_their_own(records):
    others = [each | {"setting": "89abcdef", "overrides": {}} for each in records]
    third = [each | {"device": "NVIDIA"} for each in records]
    assert markdown_tables([*records, *others, *third]).count("| W/A |") == 3
    rows = list(csv.DictReader(io.StringIO(csv_table([*records, *others, *third]))))
    assert len(rows) == 3 * len(MEANS)
    assert {row["n"] for row in rows} == {"5"}


def test_perplexities_are_no_percentages(records):
    best = {"metric": "val_perplexity", "value": 101.0, "epoch": 2}
    tests = [{"test_perplexity": 100 * each["test"]["test_accuracy"]} for each in records]
    changes = [{"metric": "test_perplexity", "test": test, "best": best} for test in tests]
    language = [each | change for each, change in zip(records, changes, strict=True)]
    table = markdown_table(language)
    assert "test perplexity" in table.splitlines()[0]
    assert cells(table, "W2A2 | lsq")[2] == cells(markdown_table(records), "W2A2 | lsq")[2]
    assert cells(table, "W2A2 | lsq")[3] == "101.00 ± 0.00"


def test_the_csv_has_what_the_table_has_unrounded(records, accuracies):
    rows = list(csv.DictReader(io.StringIO(csv_table(records))))
    assert tuple(rows[0]) == FIELDS
    (row,) = [row for row in rows if (row["method"], row["activation_bits"]) == ("lsq", "2")]
    values, floats = 100 * accuracies["lsq", "W2A2"], 100 * accuracies["float", "float"]
    assert float(row["mean"]) == pytest.approx(values.mean())
    assert float(row["deviation"]) == pytest.approx(values.std(ddof=1))
    test = stats.ttest_rel(values, floats)
    assert [float(row[f"float_{name}"]) for name in ("difference", "low", "high", "p")] == pytest.approx(
        [(values - floats).mean(), *test.confidence_interval(0.95), test.pvalue]
    )
    assert float(row["float_p_holm"]) >= float(row["float_p"])


def test_the_program_writes_tables_figures_and_one_file_of_records(records, tmp_path, capsys):
    results = Results(tmp_path / "results")
    for each in records:
        results.write(each["cell"], each)
    assert main(["table", "--results", str(results.folder)]) == 0
    report = results.folder / "report"
    names = ["bits.svg", "bytes.svg", "curves.svg", "records.jsonl", "table.csv", "table.md"]
    assert sorted(path.name for path in report.iterdir()) == names
    assert (report / "table.md").read_text() == markdown_table(records) + "\n"
    lines = (report / "records.jsonl").read_text().splitlines()
    assert sorted(map(json.loads, lines), key=lambda r: r["cell"]) == sorted(records, key=lambda r: r["cell"])
    texts = {name: (report / f"{name}.svg").read_text() for name in ("bits", "bytes", "curves")}
    for text in texts.values():
        assert all(f">{method}</text>" in text for method in ("float", "uniform_mean", "lsq", "dorefa"))
    assert ">activations as weights</text>" in texts["bits"] and ">activations float</text>" in texts["bits"]
    assert ">W2A2</text>" in texts["curves"] and ">val accuracy %</text>" in texts["curves"]
    # the file alone gives the same tables
    again = tmp_path / "again"
    assert main(["table", "--results", str(report / "records.jsonl"), "--output", str(again)]) == 0
    assert (again / "table.csv").read_text() == (report / "table.csv").read_text()


def test_an_unknown_baseline_is_refused(tmp_path, capsys):
    assert main(["table", "--results", str(tmp_path), "--baseline", "uniform"]) == 2
    assert "got uniform" in capsys.readouterr().err


def test_without_records_there_is_nothing_to_show(tmp_path, capsys):
    assert main(["table", "--results", str(tmp_path)]) == 2
    assert "has none: run `python -m recipes.compare all" in capsys.readouterr().err.replace("\n", " ")
