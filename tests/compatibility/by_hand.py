"""Float models whose weights are replaced by hand in every forward, in plain PyTorch, to compare with."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_balq import BalancedQuantization, LSQQuantization
from lightning_balq.functional import balanced_fake_quantize, lsq_fake_quantize, lsq_initial_scale, lsq_scale
from tests.callback.tiny import Batches, TinyModel, quiet_trainer, tiny_model
from tests.helpers import assert_equal

Module = TypeVar("Module", bound=nn.Module)

INNER = ("net.3", "net.7")
"""Layers of the tiny model that are quantized by default."""


def balanced(layer: Any) -> Tensor:
    """Two balanced bits."""
    return balanced_fake_quantize(layer.weight, 2)


def pruned(layer: Any) -> Tensor:
    """Two balanced bits, and zero where the weight is exactly zero."""
    return torch.where(layer.weight == 0, layer.weight, balanced_fake_quantize(layer.weight, 2))


def learned(layer: Any) -> Tensor:
    """Two bits at a scale that is a parameter of the layer."""
    return lsq_fake_quantize(layer.weight, lsq_scale(layer.log_scale), 2)


class HandLinear(nn.Linear):
    """Linear layer on a weight that is replaced by hand."""

    by_hand: Callable[[nn.Module], Tensor]

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.by_hand(self), self.bias)


class HandConv2d(nn.Conv2d):
    """Convolution, likewise."""

    by_hand: Callable[[nn.Module], Tensor]

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.by_hand(self), self.bias)


class HandEmbedding(nn.Embedding):
    """Embedding, likewise."""

    by_hand: Callable[[nn.Module], Tensor]

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.by_hand(self), self.padding_idx)


HAND = {nn.Linear: HandLinear, nn.Conv2d: HandConv2d, nn.Embedding: HandEmbedding}


def quantized_by_hand(
    model: Module, names: Iterable[str] = INNER, by_hand: Callable[[Any], Tensor] = balanced
) -> Module:
    """Let some layers of a float model run on weights replaced by hand; learned scales get parameters of their own."""
    for name in names:
        layer = model.get_submodule(name)
        if by_hand is learned and "log_scale" not in layer._parameters:
            layer.register_parameter("log_scale", nn.Parameter(lsq_initial_scale(layer.weight.detach(), 2).log()))
        layer.by_hand = by_hand
        layer.__class__ = HAND[type(layer)]
    return model


def by_callback(by_hand: Callable[[Any], Tensor] = balanced, **options: Any) -> Callback:
    """Callback that does the same."""
    kind = LSQQuantization if by_hand is learned else BalancedQuantization
    return kind(2, **{"verbose": 0, "record_every_n_steps": 0, **options})


def fit(root: Path, model: LightningModule, callbacks: Iterable[Callback], **options: Any) -> Trainer:
    """Fit and validate a tiny model, on a list of batches if there is one in ``data``."""
    ckpt_path, data = options.pop("ckpt_path", None), options.pop("data", None)
    trainer = quiet_trainer(root, callbacks=list(callbacks), **{"max_epochs": 2, **options})
    train, validate = (Batches() if data is None else DataLoader(data, batch_size=None) for _ in range(2))
    trainer.fit(model, train, validate, ckpt_path=ckpt_path)
    return trainer


def assert_same_training(model: TinyModel, trainer: Trainer, other: TinyModel, reference: Trainer) -> None:
    """Equal losses, weights and metrics, bit for bit; what a quantizer learns has another name on each side."""
    assert model.losses
    assert model.losses == other.losses
    assert_equal(_by_place(model), _by_place(other))
    metrics = {key: value for key, value in trainer.callback_metrics.items() if not key.startswith("balq/")}
    assert_equal(metrics, dict(reference.callback_metrics))


def _by_place(model: nn.Module) -> dict[str, Tensor]:
    return {key.replace("balq_log_scale_weight", "log_scale"): value for key, value in model.state_dict().items()}


def assert_equals_by_hand(
    root: Path,
    by_hand: Callable[[Any], Tensor] = balanced,
    *,
    make: Callable[[], TinyModel] = tiny_model,
    others: Callable[[], list[Callback]] = list,
    first: bool = True,
    names: Iterable[str] = INNER,
    quantization: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[TinyModel, Trainer, TinyModel, Trainer]:
    """Fit with our callback, and a float model by hand without it, beside the same other callbacks; compare."""
    torch.manual_seed(0)
    model = make()
    ours = by_callback(by_hand, **(quantization or {}))
    trainer = fit(root, model, [ours, *others()] if first else [*others(), ours], **options)
    torch.manual_seed(0)
    other = quantized_by_hand(make(), names, by_hand)
    reference = fit(root, other, others(), **options)
    assert_same_training(model, trainer, other, reference)
    return model, trainer, other, reference
