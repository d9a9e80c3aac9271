"""The training program with an image classifier, and with classes from elsewhere."""

import csv
import math
from pathlib import Path

import pytest
import torch
import yaml
from torch.testing import assert_close

from lightning_balq.nn import quantized_layers
from recipes.models.classifier import ImageClassifier
from recipes.train import main
from tests.recipes.tiny import tiny_model

pytest.importorskip("jsonargparse")

BATCHES = 6  # of an epoch
FLOAT = {
    "seed_everything": 0,
    "data": {"class_path": "tests.recipes.tiny.RandomImages"},
    "model": {"class_path": "ImageClassifier", "init_args": {"network": "digits_cnn", "classes": 10, "warm_up": 0.5}},
    "checkpoint": {"monitor": "val_accuracy", "mode": "max"},
    "trainer": {
        "max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
        "log_every_n_steps": 1,
    },
}  # fmt: skip
QUANTIZED = {
    "base": "float.yaml",
    "model": {"init_args": {"learning_rate": 0.0}},
    "quantization": {"class_path": "BalancedQuantization", "init_args": {"weight_bits": 2, "activation_bits": 2}},
}


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("float.yaml").write_text(yaml.safe_dump(FLOAT))
    Path("w2a2.yaml").write_text(yaml.safe_dump(QUANTIZED))


@pytest.fixture
def float_run():
    """A float run of two epochs; its best checkpoint and its last one."""
    program = main(["fit", "--config", "float.yaml"])
    best, last = sorted((Path(program.trainer.log_dir) / "checkpoints").iterdir())
    assert last.name == "last.ckpt"
    return program, best, last


def metrics(program):
    """Rows of what a run has logged."""
    with (Path(program.trainer.log_dir) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_checkpoints_are_the_best_and_the_last(float_run):
    program, best, last = float_run
    assert type(program.model) is ImageClassifier
    rows = metrics(program)
    assert {"train_loss", "train_loss_step", "train_accuracy", "val_loss", "val_accuracy_top5"} <= set(rows[0])
    first, second = (float(row["val_accuracy"]) for row in rows if row["val_accuracy"])
    losses = [float(row["val_loss"]) for row in rows if row["val_loss"]]
    # the last epoch is not the best, and that one would not be the best by loss if `mode` were forgotten
    assert first > second > 0 and losses[0] < losses[1]
    assert best.name == f"epoch=0-step={BATCHES}.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2 * BATCHES
    tested = main(["validate", "--config", "float.yaml", f"--ckpt_path={best}"])
    assert float(tested.trainer.callback_metrics["val_accuracy"]) == pytest.approx(first)


def test_a_run_goes_on_from_its_last_checkpoint_with_the_schedule_of_its_own_length(float_run):
    options = ["--trainer.max_epochs=3", "--trainer.callbacks=LearningRateMonitor", f"--ckpt_path={float_run[2]}"]
    longer = main(["fit", "--config", "float.yaml", *options])
    assert longer.trainer.global_step == 3 * BATCHES
    rates = [float(row["lr-SGD/pg1"]) for row in metrics(longer) if row["lr-SGD/pg1"]]
    warm_up, steps = BATCHES // 2, 3 * BATCHES
    shares = [(step - warm_up) / (steps - warm_up) for step in range(2 * BATCHES + 1, steps)]
    # a checkpoint of the end of an epoch has the rate that the shorter run would have gone on with
    assert rates[1:] == pytest.approx([0.05 * (1 + math.cos(math.pi * share)) for share in shares])


def test_a_run_can_be_repeated_from_the_settings_it_leaves(float_run):
    program, *_ = float_run
    again = main(["fit", "--config", str(Path(program.trainer.log_dir) / "config.yaml")])
    assert again.model.hparams == program.model.hparams
    assert_close(again.model.state_dict(), program.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("option", ["--init_from", "--model.pretrained"])
def test_a_quantized_recipe_states_what_differs_and_begins_with_float_weights(float_run, option):
    before, _, last = float_run
    with pytest.warns(UserWarning, match="trained"):
        program = main(["fit", "--config", "w2a2.yaml", "--trainer.fast_dev_run=1", f"{option}={last}"])
    assert [name for name, _, _ in quantized_layers(program.model)] == ["network.3", "network.7"]
    assert (program.model.hparams.warm_up, program.model.hparams.learning_rate) == (0.5, 0.0)
    weights = [dict(model.named_parameters()) for model in (program.model, before.model)]
    assert_close(*weights, rtol=0, atol=0)


def test_initial_weights_of_another_model_are_named(tmp_path):
    torch.save({"state_dict": tiny_model().state_dict()}, tmp_path / "language.ckpt")
    with pytest.raises(ValueError, match=r"of the same model, .*language\.ckpt is of another: it lacks 'network\.0\."):
        main(["fit", "--config", "float.yaml", "--init_from=language.ckpt"])


def test_an_optimizer_or_schedule_is_one_option():
    options = ["--model.optimizer=adamw", "--model.schedule=multistep", "--model.milestones=[0.5, 1]"]
    program = main(["fit", "--config", "float.yaml", "--trainer.fast_dev_run=1", *options])
    assert type(program.trainer.optimizers[0]) is torch.optim.AdamW
    assert list(program.model.hparams.milestones) == [0.5, 1]


class Elsewhere(ImageClassifier):
    """A model of somebody else."""


def test_model_and_data_of_somebody_else_are_named_by_their_path():
    options = ["--model.network=digits_cnn", "--model.classes=10", "--data=tests.recipes.tiny.RandomImages"]
    program = main(["fit", f"--model={__name__}.Elsewhere", *options, "--trainer.fast_dev_run=1",
                    "--trainer.accelerator=cpu"])  # fmt: skip
    assert type(program.model).__name__ == "Elsewhere"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.depth=3"], "depth"),
        (["--model.optimizer=lamb"], "lamb"),
        (["--model.warm_up=soon"], "soon"),
        (["--model=ImageClassifiers"], "ImageClassifiers"),
    ],
)
def test_a_wrong_option_is_explained(capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", "float.yaml", *options])
    assert message in capsys.readouterr().err
