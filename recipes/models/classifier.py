"""Image classification, with any of the networks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from recipes.models.learning_rate import Schedule, ScheduleName, training_steps
from recipes.models.likelihood import MeanNLL
from recipes.models.networks import build
from recipes.models.optimizers import OptimizerName, optimizer_factory, parameter_groups
from recipes.models.pretrained import load_pretrained_

AUXILIARY_WEIGHT = 0.3
"""Of the loss of each auxiliary head (Szegedy et al. 2014, section 5)."""

TOP = 5
"""How many guesses ``accuracy_top5`` allows."""


class ImageClassifier(LightningModule):
    """Tells what is on an image.

    Batches are normalised images, float, shape ``(N, channels, height, width)``, and labels, int64, shape ``(N,)``.

    It logs, exactly over an epoch and all processes, ``train_loss``, ``train_accuracy``, ``val_loss``,
    ``val_accuracy``, ``test_loss`` and ``test_accuracy``, with more than five classes also ``val_accuracy_top5`` and
    ``test_accuracy_top5``; and ``train_loss_step``, that of one batch. Accuracies are shares of images. ``train_loss``
    is what is minimised, without weight decay; the others are mean negative log-likelihoods, whatever
    ``label_smoothing`` is.

    Args:
        network: name of the network, one of :data:`recipes.models.networks.NETWORKS`.
        classes: number of classes.
        optimizer: which optimizer to train with.
        learning_rate: the largest one of the schedule.
        momentum: of SGD; of Adam and AdamW the first beta.
        nesterov: let SGD look ahead.
        weight_decay: of all weights but those that ``decay_norm_and_bias`` is about.
        decay_norm_and_bias: let the parameters of batch norm and biases decay too, as in the papers of the networks.
        schedule: what the learning rate does at each step: ``cosine`` and ``linear`` bring it to zero at the end of
            the training, ``multistep`` divides it after each of ``milestones``.
        milestones: epochs, for ``multistep``; parts of one too.
        decay: what the learning rate is divided by at every milestone.
        warm_up: epochs in which the learning rate grows from nearly zero; parts of one too.
        label_smoothing: share of the target that all classes have in common (Szegedy et al. 2015, arXiv:1512.00567).
        pretrained: file of weights to begin with: what torchvision has for the network, or a checkpoint of such a
            classifier. It is not read again when a checkpoint of this model is loaded.
        channels_last: keep images and weights with channels innermost, which is faster on some devices.
        compiled: compile the network by ``torch.compile`` when it is first called.

    Raises:
        FileNotFoundError: if there is no file ``pretrained``.
        ValueError: if an argument is out of range, or ``pretrained`` is of another network.

    Example:
        >>> model = ImageClassifier("resnet20", classes=10, schedule="multistep", milestones=[80, 120], warm_up=0.5)
        >>> model(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        network: str = "resnet18",
        classes: int = 1000,
        optimizer: OptimizerName = "sgd",
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 1e-4,
        decay_norm_and_bias: bool = False,
        schedule: ScheduleName = "cosine",
        milestones: Sequence[float] = (),
        decay: float = 10.0,
        warm_up: float = 0.0,
        label_smoothing: float = 0.0,
        pretrained: str | None = None,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be at least 0 and less than 1, got {label_smoothing}")
        if weight_decay < 0:
            raise ValueError(f"`weight_decay` must be 0 or more, got {weight_decay}")
        self.save_hyperparameters(ignore=["pretrained"])  # the file need not be there when a checkpoint is loaded
        self._schedule = Schedule(schedule, tuple(milestones), decay, warm_up)
        self._optimizer = optimizer_factory(optimizer, learning_rate, momentum, nesterov)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = build(network, classes).to(memory_format=self._memory_format)
        if pretrained is not None:
            load_pretrained_(self.network, Path(pretrained), classes)
        if compiled:
            self.network.compile()  # in place: names of parameters stay
        self.train_loss, self.train_accuracy = MeanNLL(), _accuracy(classes, 1)
        self.val_loss, self.val_accuracy = MeanNLL(), _accuracy(classes, 1)
        self.test_loss, self.test_accuracy = MeanNLL(), _accuracy(classes, 1)
        if classes > TOP:
            self.val_accuracy_top5, self.test_accuracy_top5 = _accuracy(classes, TOP), _accuracy(classes, TOP)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape ``(N, classes)``.

        Args:
            images: normalised, shape ``(N, channels, height, width)``.
        """
        return self._outputs(images)[0]

    def _outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits, and behind them those of auxiliary heads."""
        outputs = self.network(images.contiguous(memory_format=self._memory_format))
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        self._check_labels(labels, batch_idx)
        smoothing = self.hparams.label_smoothing
        logits, *auxiliary = self._outputs(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        for head in auxiliary:
            loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(head.float(), labels, label_smoothing=smoothing)
        self.train_loss.update(loss.detach() * len(labels), torch.tensor(len(labels)))
        self.train_accuracy.update(logits.detach(), labels)
        self.log("train_loss_step", loss)
        self._log_epoch("train_loss", "train_accuracy")
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the metrics."""
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the metrics."""
        self._evaluate("test", batch, batch_idx)

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self._check_labels(labels, batch_idx)
        logits = self(images)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        getattr(self, f"{stage}_loss").update(loss, torch.tensor(len(labels)))
        names = [f"{stage}_accuracy"] + [f"{stage}_accuracy_top5"] * (self.hparams.classes > TOP)
        for name in names:
            getattr(self, name).update(logits, labels)
        self._log_epoch(f"{stage}_loss", *names)

    def _log_epoch(self, *names: str) -> None:
        for name in names:
            self.log(name, getattr(self, name), on_step=False, on_epoch=True, prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer, and the schedule of its learning rate."""
        options = self.hparams
        optimizer = self._optimizer(parameter_groups(self, options.weight_decay, options.decay_norm_and_bias))
        steps, epoch_steps = training_steps(self.trainer)
        self._schedule.check(steps, epoch_steps)
        # A function, of which a checkpoint keeps nothing: who resumes with more epochs gets a schedule for them.
        schedule = LambdaLR(optimizer, lambda step: self._schedule.factor(step, steps, epoch_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- checks -----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Check the number of classes."""
        self._check_classes()

    def on_validation_start(self) -> None:
        """Check the number of classes."""
        self._check_classes()

    def on_test_start(self) -> None:
        """Check the number of classes."""
        self._check_classes()

    def _check_classes(self) -> None:
        data = getattr(self.trainer, "datamodule", None)  # which is not there if data loaders were given
        count = getattr(data, "classes", None)
        if count is not None and count != self.hparams.classes:
            raise ValueError(
                f"`classes` of the model must be that of the data, {count}, got {self.hparams.classes}: set "
                f"`--model.classes {count}`, or name other data"
            )

    def _check_labels(self, labels: Tensor, batch_idx: int) -> None:
        """Check labels where it is free, and of the first batch everywhere; elsewhere it would wait for the device."""
        if labels.device.type != "cpu" and batch_idx:
            return
        least, largest = int(labels.min()), int(labels.max())
        if least < 0 or largest >= self.hparams.classes:
            raise ValueError(
                f"labels must be 0 to {self.hparams.classes - 1}, as `classes` of the model is {self.hparams.classes}, "
                f"got a batch with labels {least} to {largest}: set `--model.classes`, or correct the data"
            )


def _accuracy(classes: int, top: int) -> Metric:
    # Its own check of labels would wait for the device in each step.
    return MulticlassAccuracy(classes, top_k=top, average="micro", validate_args=False)
