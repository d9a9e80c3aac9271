import math
import time
from dataclasses import replace

import pytest
import torch

from benchmarks import penn_treebank, penn_treebank_run
from benchmarks.penn_treebank import Study
from benchmarks.penn_treebank_cells import FLOAT, METHODS, SETTINGS, Cell, all_cells, select
from benchmarks.penn_treebank_run import RESUMES_IN_AN_EPOCH, Keeper, Run
from benchmarks.records import append, read
from lightning_balq import BalancedQuantization, UniformQuantization
from lightning_balq.nn import quantized_layers
from recipes.data import markov
from recipes.data.markov import MarkovText
from recipes.models.language import LanguageModel

TINY = replace(
    SETTINGS["beginning"], units=8, epochs=3, optimizer="sgd", learning_rate=5.0, milestones=None, gradient_clip=0.25
)
FLOAT_CELL, QUANTIZED = Cell("lstm", FLOAT, FLOAT, 0), Cell("lstm", "W2A2", "balanced_mean", 0)
CPU = torch.device("cpu")
TIMES = ("step_seconds", "measured_steps", "overhead")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    for split, size in {"train": 500, "validation": 200, "test": 200}.items():
        monkeypatch.setitem(markov.SIZES, split, size)


@pytest.fixture
def study(tmp_path):
    def study(setting=TINY, budget=None, place="work"):
        data = MarkovText(batch_size=4, steps=20, eval_batch_size=4)
        return Study(setting, data, tmp_path / f"{place}.jsonl", tmp_path / place, CPU, budget)

    return study


def without_times(record):
    return {key: value for key, value in record.items() if key not in TIMES}


@pytest.fixture
def whole(study):
    """Records of a float and a quantized run that nothing interrupted."""
    uninterrupted = study(place="whole")
    assert uninterrupted.run([FLOAT_CELL, QUANTIZED]) == 2
    return [without_times(record) for record in read(uninterrupted.output)]


def test_what_matters_most_comes_first():
    reduced = list(all_cells(SETTINGS["reduced"]))
    both = list(all_cells(replace(SETTINGS["reduced"], networks=("lstm", "gru"), seeds=(0, 1, 2))))
    assert len(reduced) == 2 * (1 + 2 * 4) and len(both) == 3 * 2 * (1 + 2 * 4)
    assert len({cell.name for cell in both}) == len(both)
    assert reduced[0] == FLOAT_CELL and {cell.width for cell in reduced[1:5]} == {"W2A2"}
    for cells in (reduced, both):
        assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
        assert all(cells.index(cell.reference) <= cells.index(cell) for cell in cells)


def test_cells_are_chosen_by_name():
    kept = select(all_cells(SETTINGS["reduced"]), ["lstm-W2-*-1", "lstm-float-*"])
    assert [cell.name for cell in kept] == [
        "lstm-float-float-0", "lstm-float-float-1", *[f"lstm-W2-{method}-1" for method in list(METHODS)[:4]],
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"must match the name of a cell, got \['rnn-\*'\], which match none of 18"):
        select(all_cells(SETTINGS["reduced"]), ["rnn-*"])


def test_a_record_says_what_was_run_and_what_came_out(study):
    made = study()
    made.run([QUANTIZED])
    (record,) = read(made.output)
    assert {key: record[key] for key in ("network", "width", "method", "seed", "weight_bits", "center", "scale")} == {
        "network": "lstm", "width": "W2A2", "method": "balanced_mean", "seed": 0, "weight_bits": 2, "center": "mean",
        "scale": "mean",
    }  # fmt: skip
    assert record["setting"] == "beginning" and record["numbers"]["learning_rate"] == 5.0
    perplexities = record["validation_perplexity"]
    assert len(perplexities) == 3 and perplexities[record["best_epoch"] - 1] == min(perplexities)
    assert 1 < record["test_perplexity"] < 30 and 1 < record["effective_bitwidth"] <= 2
    assert record["step_seconds"] > 0 and record["measured_steps"] == 3 * 6 and not record["diverged"]
    assert {"torch", "threads", "commit", "sources"} <= set(record)
    assert not made.started(QUANTIZED) and (made.folder(QUANTIZED) / "best.ckpt").exists()


def test_the_best_network_is_tested(study, whole, monkeypatch):
    loss = iter([1.0, 3.0, 2.0, 7.0])
    monkeypatch.setattr(penn_treebank_run.LanguageModel, "_log_perplexity", lambda self, stage: _log(self, stage, loss))
    made = study()
    made.run([FLOAT_CELL])
    (record,) = read(made.output)
    assert record["best_epoch"] == 1
    assert record["validation_perplexity"] == pytest.approx([math.exp(value) for value in (1.0, 3.0, 2.0)])
    saved = torch.load(made.folder(FLOAT_CELL) / "best.ckpt", weights_only=True)
    assert saved["epoch"] == 0 and "optimizer_states" not in saved


def _log(model, stage, losses):
    loss = torch.tensor(next(losses), dtype=torch.float64)
    model.nll.reset()
    model.log_dict({f"{stage}_loss": loss, f"{stage}_perplexity": loss.exp()})
    return loss


def test_interrupted_as_often_as_can_be_it_finishes_with_the_same_record(study, whole):
    calls = 0
    while len(study().recorded()) < 2:
        study(budget=0.0).run([FLOAT_CELL, QUANTIZED])
        calls += 1
    # 7 steps an epoch; the last call of each cell has only the test left
    assert calls == 2 * (3 * (7 if RESUMES_IN_AN_EPOCH else 1) + 1)
    assert [without_times(record) for record in read(study().output)] == whole
    assert study().run([FLOAT_CELL, QUANTIZED]) == 0


def test_killed_between_epochs_it_gives_the_same_record(study, whole, monkeypatch):
    saved = Keeper.on_train_epoch_end

    def save_and_die(self, trainer, pl_module):
        saved(self, trainer, pl_module)
        raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_train_epoch_end", save_and_die)
        for _ in range(2):
            with pytest.raises(MemoryError, match="killed"):
                study().run([QUANTIZED])
    assert study().started(QUANTIZED)
    assert study().run([QUANTIZED]) == 1
    assert [without_times(record) for record in read(study().output)] == whole[1:]


def test_the_budget_ends_the_study_between_cells_too(study, monkeypatch):
    made = study(budget=100.0)

    def finish_late(self, start):
        made.deadline = time.monotonic() - 1.0
        return {}

    monkeypatch.setattr(Run, "finish", finish_late)
    assert made.run([FLOAT_CELL, QUANTIZED]) == 1
    assert made.recorded() == {FLOAT_CELL}


@pytest.mark.skipif(not RESUMES_IN_AN_EPOCH, reason="only after whole epochs")
def test_a_checkpoint_is_written_every_few_minutes(study, monkeypatch):
    monkeypatch.setattr(penn_treebank_run, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    seen = []
    save = Keeper._save

    def watch(self, trainer, path, **options):
        seen.append((trainer.global_step, path.name))
        save(self, trainer, path, **options)

    monkeypatch.setattr(Keeper, "_save", watch)
    study(replace(TINY, epochs=1), budget=1000.0).run([FLOAT_CELL])
    # the last step of an epoch is followed by its validation
    assert seen == [*[(step, "last.ckpt") for step in range(1, 7)], (7, "best.ckpt"), (7, "last.ckpt")]


def test_a_loss_that_is_not_a_number_ends_the_run_and_is_recorded(study, monkeypatch):
    step = LanguageModel.training_step

    def fail_in_the_second_epoch(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        return loss * torch.nan if self.current_epoch == 1 else loss

    monkeypatch.setattr(LanguageModel, "training_step", fail_in_the_second_epoch)
    made = study()
    made.run([QUANTIZED])
    (record,) = read(made.output)
    assert record["diverged"] and record["effective_bitwidth"] is None
    assert len(record["validation_perplexity"]) == 1 and 1 < record["test_perplexity"] < 30
    monkeypatch.setattr(LanguageModel, "training_step", lambda self, *args: step(self, *args) * torch.nan)
    made.run([FLOAT_CELL])
    record = read(made.output)[1]
    assert record["diverged"] and record["test_perplexity"] is None and record["best_epoch"] is None


def test_quantized_networks_start_from_the_float_one_of_their_seed(study, monkeypatch):
    setting = replace(TINY, from_float=True, blend_epochs=0.5, epochs=1)
    with pytest.raises(
        FileNotFoundError, match=r"lstm-W2A2-balanced_mean-0 starts from .* run `--cells lstm-float-float-0`"
    ):
        study(setting).run([QUANTIZED])
    assert study(setting).run([FLOAT_CELL]) == 1
    started = {}
    fit = penn_treebank_run.Trainer.fit

    def watch(self, model, **options):
        started.update({name: value.clone() for name, value in model.state_dict().items()})
        fit(self, model, **options)

    monkeypatch.setattr(penn_treebank_run.Trainer, "fit", watch)
    made = study(setting)
    assert made.run([QUANTIZED]) == 1
    trained = torch.load(made.folder(FLOAT_CELL) / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(started[name], value) for name, value in trained.items())


def test_blending_ends_within_the_first_epoch(study):
    made = study(SETTINGS["reduced"])
    made.data.setup("fit")
    run = Run(QUANTIZED, SETTINGS["reduced"], made.data, made.work, CPU)
    assert 0 < run.quantization().blend_steps < len(made.data.train_dataloader()) - 1
    assert Run(QUANTIZED, TINY, made.data, made.work, CPU).quantization().blend_steps == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_its_callback(study, method):
    made = study()
    made.data.setup("fit")
    run = Run(Cell("gru", FLOAT if method == FLOAT else "W2A2", method, 0), TINY, made.data, made.work, CPU)
    callback = run.quantization()
    if method == FLOAT:
        assert callback is None
        return
    kind, option = method.split("_")
    assert type(callback) is {"balanced": BalancedQuantization, "uniform": UniformQuantization}[kind]
    assert (callback.weight_bits, callback.activation_bits) == (2, 2)
    assert callback.scale == ("mean" if kind == "balanced" else option)
    assert kind == "uniform" or callback.center == option
    model = run.model()
    callback.setup(run.trainer([], callback), model, "fit")
    assert [name for name, _, _ in quantized_layers(model)] == ["embedding", "rnn", "softmax"]


def test_runs_of_another_setting_are_not_mixed(study):
    study(replace(TINY, epochs=1)).run([FLOAT_CELL])
    with pytest.raises(ValueError, match=r"work\.jsonl must hold records of one setting 'beginning'"):
        study().run([FLOAT_CELL])


def test_an_unfinished_run_of_another_setting_is_refused(study):
    study(budget=0.0).run([FLOAT_CELL])
    with pytest.raises(ValueError, match=r"the unfinished run must be one of .*'dropout': 0\.1"):
        study(replace(TINY, dropout=0.1)).run([FLOAT_CELL])


def test_the_program_lists_runs_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(penn_treebank.SETTINGS, "reduced", replace(TINY, epochs=1))
    monkeypatch.setattr(penn_treebank, "PennTreebank", lambda *args: MarkovText(4, 20, 4))
    monkeypatch.setattr(penn_treebank.torch, "set_num_threads", lambda count: None)
    output = tmp_path / "records.jsonl"
    common = ["--output", str(output), "--work", str(tmp_path / "work"), "--cells", "lstm-float-*"]
    penn_treebank.main([*common, "--budget", "0"])
    assert "0 runs added to records.jsonl, 2 to do" in capsys.readouterr().out
    penn_treebank.main([*common, "--cells", "lstm-float-float-0"])
    assert "1 runs added to records.jsonl, 0 to do" in capsys.readouterr().out
    penn_treebank.main([*common, "--list"])
    assert capsys.readouterr().out.split("\n")[:2] == ["lstm-float-float-0 done", "lstm-float-float-1 open"]


def test_records_of_two_settings_share_a_file(study, tmp_path):
    append(tmp_path / "work.jsonl", {"setting": "other", "numbers": {}})
    assert study(replace(TINY, epochs=1)).run([FLOAT_CELL]) == 1
