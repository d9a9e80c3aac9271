import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import make_tables, study_defaults
from benchmarks.environment import environment, results_path
from benchmarks.records import RESULTS, Record, append, read
from benchmarks.statistics import compare, holm
from benchmarks.study_defaults import (
    BITS,
    FLOAT,
    NETWORKS,
    SEEDS,
    SETTINGS,
    Run,
    Setting,
    all_runs,
    collapsed,
    select,
    study,
    train,
)
from benchmarks.study_defaults_tables import factors_table, networks_table, settings_table
from recipes.digits import DigitsClassifier

WHERE = {
    "epochs": 1, "device": "cpu", "threads": 1, "torch": "2", "lightning": "3", "lightning_balq": "4",
    "commit": "0123456789", "dirty": False, "sources": "abc",
}  # fmt: skip
BALANCED = Setting("balanced", "max", "mean", "unit", "per_tensor")
MEDIAN = Setting("balanced", "max", "median", "unit", "per_tensor")
MLP = Run(BALANCED, 1, "mlp", 0)


def record(setting: Setting, bits: int | None, seed: int, accuracy: float, **changes: object) -> Record:
    run = Run(setting, bits, "mlp", seed)
    return {**run.identity(), "test_accuracy": accuracy, "non_finite": False, "collapsed": False, **WHERE, **changes}


@pytest.fixture
def records() -> list[Record]:
    """Two seeds, two widths: the mean beats the median by 0.1 and 0.3 for seed 0, and by 0.2 and 0.2 for seed 1."""
    return [
        record(FLOAT, None, 0, 0.95), record(FLOAT, None, 1, 0.97),
        record(BALANCED, 1, 0, 0.8), record(BALANCED, 2, 0, 0.9),
        record(BALANCED, 1, 1, 0.6), record(BALANCED, 2, 1, 0.9),
        record(MEDIAN, 1, 0, 0.7), record(MEDIAN, 2, 0, 0.6), record(MEDIAN, 1, 1, 0.4, collapsed=True),
        record(MEDIAN, 2, 1, 0.7, non_finite=True),
    ]  # fmt: skip


@pytest.fixture
def results(tmp_path: Path, records: list[Record]) -> Path:
    for line in records:
        append(tmp_path / make_tables.STUDY, line)
    return tmp_path


def cells(table: str) -> dict[str, list[str]]:
    """Rows of a markdown table by their first cell."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


# ---- statistics


def test_compare_equals_the_paired_t_test_by_hand():
    # mean 2, deviation 1, so t = 2 / (1 / sqrt(3)) = 3.4641 with 2 degrees of freedom: p = 1 - t / sqrt(t^2 + 2)
    comparison = compare([1.0, 2.0, 3.0])
    assert (comparison.mean, comparison.n) == (2.0, 3)
    assert comparison.standard_error == pytest.approx(3**-0.5)
    assert comparison.p == pytest.approx(1 - (12 / 14) ** 0.5)


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (0.5, 0.0)])
def test_compare_of_equal_differences_is_certain(value, p):
    assert compare([value, value]).p == p


def test_holm_multiplies_by_the_comparisons_left_and_stays_in_order():
    assert holm({"a": 0.03, "b": 0.01, "c": 0.02, "d": 0.9}) == pytest.approx(
        {"b": 0.04, "c": 0.06, "a": 0.06, "d": 0.9}
    )


# ---- tables


def test_settings_table_holds_the_numbers_computed_by_hand(records):
    rows = cells(settings_table(records))
    best, worse = rows["max / mean / unit / per_tensor"], rows["max / median / unit / per_tensor"]
    assert best == ["70.0", "90.0", "80.0", "60.0", "0", "0", "best", "", "", "yes"]
    # differences -0.2 and -0.2: mean -0.2, no spread
    assert worse == ["55.0", "65.0", "60.0", "40.0", "1", "1", "-20.00 ± 0.00", "<0.001", "<0.001", "no"]
    assert rows["float"] == ["", "", "96.0", "95.0", "0", "0", "", "", "", ""]


def test_a_setting_qualifies_unless_it_fails_or_is_significantly_worse(records):
    for line in records:
        line |= {"collapsed": False, "non_finite": False}
    # differences -0.2 and -0.1: mean -0.15, standard error 0.05, t = 3 with one degree of freedom, so that
    # p = 1 - 2 atan(3) / pi
    records[-1]["test_accuracy"] = 0.9
    assert cells(settings_table(records))["max / median / unit / per_tensor"][-4:] == [
        "-15.00 ± 5.00", "0.205", "0.205", "yes",
    ]  # fmt: skip
    records[-1]["collapsed"] = True
    assert cells(settings_table(records))["max / median / unit / per_tensor"][-1] == "no"


def test_a_baseline_is_compared_but_neither_adjusted_for_nor_qualified(records):
    uniform = Setting("uniform", "max", None, "unit", "per_tensor")
    for seed, accuracies in enumerate([(0.8, 0.9), (0.6, 0.7)]):
        records += [record(uniform, bits, seed, accuracy) for bits, accuracy in enumerate(accuracies, start=1)]
    rows = cells(settings_table(records))
    assert rows["uniform max / unit / per_tensor"][-4:] == ["-5.00 ± 5.00", "0.500", "", ""]
    assert rows["max / median / unit / per_tensor"][-2] == "<0.001"


def test_factors_table_holds_the_numbers_computed_by_hand(records):
    # 1 bit: -0.1 and -0.2; 2 bits: -0.3 and -0.2; over both -0.2 and -0.2
    assert cells(factors_table(records))["center: median - mean"] == [
        "-15.00 ± 5.00", "-25.00 ± 5.00", "-20.00 ± 0.00", "<0.001", "<0.001",
    ]  # fmt: skip


def test_networks_table_holds_means_and_worst_runs(records):
    rows = cells(networks_table(records))
    assert rows["max / mean / unit / per_tensor"] == ["80.0", "60.0"]
    assert rows["float"] == ["96.0", "95.0"]


def test_a_table_of_an_unfinished_study_is_refused(records):
    with pytest.raises(ValueError, match="same 4 runs, 'max / median / unit / per_tensor' has 3"):
        settings_table(records[:-1])


# ---- documents


def test_update_writes_between_the_markers_and_only_there(results, tmp_path):
    document = tmp_path / "document.md"
    document.write_text("before\n<!-- table: study_defaults_networks -->\nold\n<!-- /table -->\nafter\n")
    assert make_tables.update([document], results) == [document]
    text = document.read_text()
    assert text.startswith("before\n<!-- table: study_defaults_networks -->\n\n| scale")
    assert text.endswith("|\n\n<!-- /table -->\nafter\n")
    assert "old" not in text
    assert make_tables.update([document], results) == []


def test_check_fails_on_a_stale_file_and_leaves_it(tmp_path, capsys):
    document = tmp_path / "document.md"
    stale = "<!-- table: study_defaults -->\n<!-- /table -->\n"
    document.write_text(stale)
    assert make_tables.main(["--check", str(document)]) == 1
    assert document.read_text() == stale
    assert "out of date: " in capsys.readouterr().out
    assert make_tables.main([str(document)]) == 0
    assert make_tables.main(["--check", str(document)]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: nothing -->\n<!-- /table -->", "one of .*'study_defaults'.*, got 'nothing'"),
        ("<!-- table: study_defaults -->\n", "needs a .*, got 1 and 0"),
    ],
)
def test_fill_refuses_a_document_it_cannot_fill(text, message):
    with pytest.raises(ValueError, match=message):
        make_tables.fill(text)


def test_a_table_without_records_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'study_defaults' needs the records 'study_defaults--cpu"):
        make_tables.table("study_defaults", tmp_path)


def test_committed_documents_are_up_to_date_with_the_committed_records():
    documents = make_tables.documents()
    assert {path.parent.name for path in documents} >= {"benchmarks"}
    assert make_tables.update(documents, check=True) == []


def test_committed_records_are_the_whole_study_under_one_code():
    records = read(RESULTS / make_tables.STUDY)
    names = [json.dumps(run.identity()) for run in all_runs()]
    assert len(names) == (len(SETTINGS) * len(BITS) + 1) * len(NETWORKS) * len(SEEDS)
    assert sorted(json.dumps({name: line[name] for name in MLP.identity()}) for line in records) == sorted(names)
    assert len({(line["sources"], line["commit"], line["torch"], line["epochs"]) for line in records}) == 1


# ---- the study


def test_a_run_gives_a_record_with_all_keys_after_its_float_reference(tmp_path):
    output = tmp_path / "records.jsonl"
    assert study(output, [Run(BALANCED, 2, "cnn_bn", 0)], epochs=1) == 2
    reference, record = read(output)
    assert (reference["method"], reference["network"], reference["seed"]) == ("float", "cnn_bn", 0)
    assert list(record) == list(reference) == [
        "method", "scale", "center", "activation_range", "granularity", "bits", "network", "seed", "epochs",
        "test_accuracy", "final_train_loss", "non_finite", "seconds", "collapsed",
        "torch", "lightning", "lightning_balq", "sources", "device", "threads", "commit", "dirty",
    ]  # fmt: skip
    assert 0 < record["test_accuracy"] < 1
    assert record["final_train_loss"] > 0
    assert not record["non_finite"]


def test_resuming_skips_what_is_recorded(tmp_path):
    output = tmp_path / "records.jsonl"
    study(output, [MLP], epochs=1)
    before = output.read_text()
    assert study(output, [MLP], epochs=1) == 0
    assert output.read_text() == before
    assert study(output, [MLP, Run(MEDIAN, 1, "mlp", 0)], epochs=1) == 1
    assert output.read_text().startswith(before)


def test_records_of_other_epochs_are_not_mixed(tmp_path):
    append(tmp_path / "records.jsonl", record(FLOAT, None, 0, 0.9))
    with pytest.raises(ValueError, match=r"must hold runs of 2 epochs only, got others in records\.jsonl"):
        study(tmp_path / "records.jsonl", [MLP], epochs=2)


def test_a_run_repeats_exactly_whatever_ran_before():
    first = train(MLP, epochs=1)
    torch.rand(3)
    again = train(MLP, epochs=1)
    assert first | {"seconds": 0} == again | {"seconds": 0}


def test_settings_are_paired_by_initial_weights_and_batches(monkeypatch):
    seen: list[tuple[Tensor, ...]] = []

    def training_step(self: DigitsClassifier, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if not seen or batch_idx == 0:
            seen.append((batch[0], batch[1], *[p.detach().clone() for p in self.parameters()]))
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    monkeypatch.setattr(DigitsClassifier, "training_step", training_step)
    for setting, bits in ((FLOAT, None), (BALANCED, 1), (MEDIAN, 8)):
        train(Run(setting, bits, "cnn_bn", 1), epochs=1)
    assert len(seen) == 3
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0], rtol=0, atol=0)


def test_a_loss_that_is_not_a_number_is_recorded_as_non_finite_and_collapsed(monkeypatch, tmp_path):
    study(tmp_path / "records.jsonl", [Run(FLOAT, None, "mlp", 0)], epochs=1)
    step = DigitsClassifier.training_step
    monkeypatch.setattr(DigitsClassifier, "training_step", lambda self, *args: step(self, *args) * torch.nan)
    study(tmp_path / "records.jsonl", [MLP], epochs=1)
    record = read(tmp_path / "records.jsonl")[1]
    assert (record["non_finite"], record["final_train_loss"], record["collapsed"]) == (True, None, True)


@pytest.mark.parametrize(("accuracy", "expected"), [(0.449, True), (0.45, False)])
def test_a_run_collapses_below_half_of_the_float_accuracy(accuracy, expected):
    assert collapsed(accuracy, float_accuracy=0.9) is expected


def test_only_keeps_the_runs_that_match_every_field():
    runs = list(select(all_runs(), ["network=mlp", "bits=1", "bits=2", "seed=0", "scale=max", "method=balanced"]))
    assert {(run.network, run.bits, run.seed, run.setting.scale) for run in runs} == {
        ("mlp", 1, 0, "max"), ("mlp", 2, 0, "max"),
    }  # fmt: skip
    assert len(runs) == 2 * 5
    with pytest.raises(ValueError, match=r"`only` must name fields of .*, got \['width'\]"):
        list(select(all_runs(), ["width=1"]))


def test_main_runs_a_part_of_the_study(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_defaults.torch, "set_num_threads", lambda count: None)
    output = tmp_path / "records.jsonl"
    study_defaults.main(["--output", str(output), "--epochs", "1", "--only", "network=mlp", "seed=2", "method=float"])
    assert [line["method"] for line in read(output)] == ["float"]
    assert "1 runs added to records.jsonl" in capsys.readouterr().out


# ---- environment


def test_environment_names_versions_and_no_host():
    where = environment(torch.device("cpu"))
    assert where["torch"] == torch.__version__
    assert where["device"] == "cpu"
    assert not any("/" in str(value) for value in where.values())


def test_environment_without_git_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.environment.ROOT", tmp_path)
    where = environment(torch.device("cpu"))
    assert (where["commit"], where["dirty"]) == (None, None)


def test_results_path_names_benchmark_device_and_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    assert results_path("study_defaults", torch.device("cpu")).name == "study_defaults--cpu--torch2.13.0.jsonl"
