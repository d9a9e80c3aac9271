"""Metrics, losses, checks and checkpoints of image classifiers, on images without meaning."""

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from packaging.version import Version
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

from lightning_balq import BalancedQuantization
from lightning_balq.nn import quantized_layers
from recipes.models.classifier import ImageClassifier
from recipes.models.networks import NETWORKS
from tests.recipes.tiny import Losses, RandomImages, quiet_trainer, tiny_classifier

BATCHES = 6  # of an epoch, the last one smaller than the others
in_an_epoch = pytest.mark.skipif(Version(lightning.__version__) < Version("2.5"), reason="loses the place in an epoch")


def log_softmax(logits):
    logits = logits.double().numpy()
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def nll(logits, labels, smoothing=0.0):
    """Loss of each image."""
    logs = log_softmax(logits)
    target = (1 - smoothing) * np.eye(logs.shape[1])[labels.numpy()] + smoothing / logs.shape[1]
    return -(target * logs).sum(1)


def hits(logits, labels, top):
    """Whether the label of each image is among the largest logits."""
    return (np.argsort(-logits.numpy(), 1)[:, :top] == labels.numpy()[:, None]).any(1)


@torch.no_grad()
@pytest.mark.parametrize("classes", [10, 5])
def test_metrics_are_those_of_all_images(tmp_path, classes):
    model, data = tiny_classifier(classes=classes, label_smoothing=0.1), RandomImages(classes=classes)
    trainer = quiet_trainer(tmp_path)
    found = trainer.validate(model, datamodule=data, verbose=False)[0]
    found |= trainer.test(model, datamodule=data, verbose=False)[0]
    expected = {}
    for stage, part in (("val", 1), ("test", 2)):
        images, labels = data.images(part)
        logits = model.eval()(images)
        expected[f"{stage}_loss"] = nll(logits, labels).mean()
        expected[f"{stage}_accuracy"] = hits(logits, labels, 1).mean()
        if classes > 5:
            expected[f"{stage}_accuracy_top5"] = hits(logits, labels, 5).mean()
    assert found == pytest.approx(expected, rel=1e-5)
    assert 0 < found["val_accuracy"] < found.get("val_accuracy_top5", 1) < 1.01


def test_training_metrics_are_those_of_all_images(tmp_path):
    model, data = tiny_classifier(label_smoothing=0.2, learning_rate=0.0), RandomImages()
    trainer, losses = quiet_trainer(tmp_path, callbacks=[kept := Losses()]), []
    trainer.fit(model, datamodule=data)
    network = tiny_classifier().network.train()  # weights did not change
    rows = [
        (network(images).detach(), labels)
        for images, labels in zip(*[values.split(data.batch_size) for values in data.images(0)], strict=True)
    ]
    losses = [nll(logits, labels, smoothing=0.2) for logits, labels in rows]
    correct = [hits(logits, labels, 1) for logits, labels in rows]
    metrics = trainer.callback_metrics
    assert float(metrics["train_loss"]) == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)
    assert float(metrics["train_accuracy"]) == pytest.approx(np.concatenate(correct).mean())
    assert kept.values == pytest.approx([batch.mean() for batch in losses], rel=1e-5)
    assert float(metrics["train_loss_step"]) == kept.values[-1]


def test_a_loss_that_is_nan_is_not_hidden(tmp_path):
    model = tiny_classifier()
    nn.init.constant_(model.network[-1].bias, torch.nan)
    assert np.isnan(quiet_trainer(tmp_path).validate(model, datamodule=RandomImages(), verbose=False)[0]["val_loss"])


def test_two_processes_report_the_metrics_of_one(tmp_path):
    data = RandomImages(size=40)  # an even number: Lightning's sampler gives both as many
    expected = quiet_trainer(tmp_path).validate(tiny_classifier(), datamodule=data, verbose=False)
    found = quiet_trainer(tmp_path, strategy="ddp_spawn", devices=2).validate(
        tiny_classifier(), datamodule=data, verbose=False
    )
    assert found[0] == pytest.approx(expected[0], rel=1e-6)  # summed in another order


class ThreeHeads(nn.Module):
    """A network with two auxiliary heads."""

    def __init__(self, classes):
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(64, classes) for _ in range(3)])

    def forward(self, images):
        logits = tuple(head(images.flatten(1)) for head in self.heads)
        return logits if self.training else logits[0]


def test_auxiliary_heads_add_three_tenths_of_their_losses_in_training(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "three", ThreeHeads)
    model, data = tiny_classifier(network="three", learning_rate=0.0, label_smoothing=0.1), RandomImages(batch_size=42)
    trainer = quiet_trainer(tmp_path)
    trainer.fit(model, datamodule=data)
    images, labels = data.images(0)
    main, *auxiliary = (head(images.flatten(1)).detach() for head in model.network.heads)
    expected = nll(main, labels, 0.1).mean() + 0.3 * sum(nll(head, labels, 0.1).mean() for head in auxiliary)
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(trainer.callback_metrics["train_accuracy"]) == pytest.approx(hits(main, labels, 1).mean())
    main = model.network.heads[0](data.images(1)[0].flatten(1)).detach()
    expected = nll(main, data.images(1)[1]).mean()
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(expected, rel=1e-5)


# ---- checkpoints -----------------------------------------------------------------------------------------------------

MODERN = {"schedule": "cosine", "warm_up": 0.5, "label_smoothing": 0.1, "nesterov": True, "learning_rate": 0.1}
STEPWISE = {"schedule": "multistep", "milestones": [1], "optimizer": "adamw", "learning_rate": 1e-3}


class Repeated(RandomImages):
    """The same batch again and again: where an epoch goes on after resuming is a matter of the data."""

    def images(self, part):
        images, labels = super().images(part)
        return images[: self.batch_size].repeat(BATCHES, 1, 1, 1), labels[: self.batch_size].repeat(BATCHES)


def fit(root, model, losses, *callbacks, ckpt_path=None, quantized=False):
    added = [BalancedQuantization(2, 2, verbose=0)] if quantized else []
    trainer = quiet_trainer(root, max_epochs=3, enable_checkpointing=True, callbacks=[losses, *callbacks, *added])
    trainer.fit(model, datamodule=Repeated(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("step", [pytest.param(4, marks=in_an_epoch), BATCHES])
@pytest.mark.parametrize("options", [MODERN, STEPWISE], ids=["modern", "stepwise"])
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "W2A2"])
def test_resumed_run_equals_uninterrupted_run(tmp_path, step, options, quantized):
    whole, second = Losses(), Losses()
    expected = tiny_classifier(**options)
    often = {"every_n_epochs": 1, "save_on_train_epoch_end": True} if step == BATCHES else {"every_n_train_steps": step}
    keeper = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **often)
    ended = fit(tmp_path, expected, whole, keeper, quantized=quantized)
    resumed = tiny_classifier(seed=1, **options)  # ignoring the checkpoint would show
    again = fit(tmp_path, resumed, second, ckpt_path=tmp_path / f"step={step}.ckpt", quantized=quantized)
    assert whole.values[step:] == second.values
    assert len(whole.values) == 3 * BATCHES
    assert_close(resumed.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert again.optimizers[0].param_groups[0]["lr"] == ended.optimizers[0].param_groups[0]["lr"]


def test_a_checkpoint_of_a_quantized_model_is_one_of_the_float_model(tmp_path):
    model = tiny_classifier()
    trainer = fit(tmp_path, model, Losses(), quantized=True)
    assert [name for name, _, _ in quantized_layers(model)] == ["network.3", "network.7"]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "last.ckpt")
    assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert loaded.hparams == model.hparams
    assert set(loaded.state_dict()) == {f"network.{key}" for key in loaded.network.state_dict()}


# ---- checks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["fit", "validate", "test"])
def test_data_with_another_number_of_classes_are_refused_before_the_first_step(tmp_path, monkeypatch, action):
    monkeypatch.setattr(ImageClassifier, "forward", None)
    with pytest.raises(ValueError, match=r"must be that of the data, 12, got 10: set `--model\.classes 12`"):
        getattr(quiet_trainer(tmp_path), action)(tiny_classifier(), datamodule=RandomImages(classes=12))


@pytest.mark.parametrize(("label", "found"), [(10, "0 to 10"), (-1, "-1 to 9"), (-100, "-100 to 9")])
@pytest.mark.parametrize("action", ["fit", "validate", "test"])
def test_labels_out_of_range_are_refused(tmp_path, action, label, found):
    data = RandomImages(batch_size=42)
    images, labels = data.images(0)
    labels[:3] = torch.tensor([label, 0, 9])
    data.images = lambda part: (images, labels)
    with pytest.raises(ValueError, match=f"labels must be 0 to 9, .* got a batch with labels {found}: "):
        getattr(quiet_trainer(tmp_path), action)(tiny_classifier(), datamodule=data)


def test_data_loaders_will_do(tmp_path):
    data = RandomImages()
    trainer = quiet_trainer(tmp_path)
    trainer.fit(tiny_classifier(), data.train_dataloader(), data.val_dataloader())
    assert trainer.global_step == BATCHES and 0 < trainer.callback_metrics["val_accuracy"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "resnet19"}, "`network` must be one of .*, got 'resnet19'"),
        ({"classes": 0}, "`classes` must be at least 2, got 0"),
        ({"label_smoothing": 1.0}, "`label_smoothing` must be at least 0 and less than 1, got 1.0"),
        ({"weight_decay": -1e-4}, "`weight_decay` must be 0 or more, got -0.0001"),
        ({"optimizer": "lamb"}, "`optimizer` must be one of sgd, adam, adamw, got 'lamb'"),
        ({"schedule": "plateau"}, "`schedule` must be one of .*, got 'plateau'"),
        ({"schedule": "multistep"}, "`milestones` must name epochs"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_classifier(**options)


def test_the_optimizer_is_the_one_asked_for(tmp_path):
    options = {"optimizer": "sgd", "nesterov": True, "momentum": 0.8, "weight_decay": 0.01, "decay_norm_and_bias": True}
    trainer = quiet_trainer(tmp_path)
    trainer.fit(tiny_classifier(**options, schedule="constant"), datamodule=RandomImages())
    (group,) = trainer.optimizers[0].param_groups
    assert (group["nesterov"], group["momentum"], group["weight_decay"], group["lr"]) == (True, 0.8, 0.01, 0.05)


# ---- memory format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "W2"])
def test_channels_last_changes_the_layout_and_nothing_else(tmp_path, quantized):
    formats, models = [], []
    for channels_last in (False, True):
        model = tiny_classifier(channels_last=channels_last, learning_rate=0.01)
        model.network[3].register_forward_pre_hook(
            lambda layer, inputs: formats.append(
                (inputs[0].is_contiguous(memory_format=torch.channels_last),
                 layer.weight.is_contiguous(memory_format=torch.channels_last))
            )
        )  # fmt: skip
        # not of activations, whose rounding makes small differences large
        added = [BalancedQuantization(2, verbose=0)] if quantized else []
        quiet_trainer(tmp_path, callbacks=added).fit(model, datamodule=RandomImages())
        models.append(model)
        assert set(formats) == {(channels_last, channels_last)}
        formats.clear()
    assert_close(*[model.state_dict() for model in models], rtol=1e-3, atol=1e-4)  # summed in another order


def test_a_compiled_network_trains_as_it_does_uncompiled(tmp_path, monkeypatch):
    graphs = CompileCounterWithBackend("eager")
    compile_in_place = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_in_place(module, backend=graphs))
    models = []
    for compiled in (False, True):
        torch._dynamo.reset()
        models.append(tiny_classifier(compiled=compiled))
        callback = BalancedQuantization(2, 2, verbose=0)
        quiet_trainer(tmp_path, callbacks=[callback]).fit(models[-1], datamodule=RandomImages())
        assert bool(graphs.frame_count) == compiled
    assert_close(*[model.state_dict() for model in models], rtol=0, atol=0)
