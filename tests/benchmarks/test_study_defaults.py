import json

import pytest
import torch
from torch import Tensor

from benchmarks import make_tables, study_defaults
from benchmarks.records import RESULTS, append, read
from benchmarks.study_defaults import (
    BITS,
    FLOAT,
    NETWORKS,
    SEEDS,
    SETTINGS,
    Run,
    all_runs,
    collapsed,
    select,
    study,
    train,
)
from recipes.digits import DigitsClassifier
from tests.benchmarks.study import BALANCED, MEDIAN, MLP, record


def test_committed_records_are_the_whole_study_under_one_code():
    records = read(RESULTS / make_tables.STUDY)
    names = [json.dumps(run.identity()) for run in all_runs()]
    assert len(names) == (len(SETTINGS) * len(BITS) + 1) * len(NETWORKS) * len(SEEDS)
    assert sorted(json.dumps({name: line[name] for name in MLP.identity()}) for line in records) == sorted(names)
    assert len({(line["sources"], line["commit"], line["torch"], line["epochs"]) for line in records}) == 1


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
