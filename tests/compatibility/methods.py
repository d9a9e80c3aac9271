"""A model with fixed and with learned quantizers, and everything about it that training changes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_balq import BalancedQuantization
from lightning_balq.nn import activation_quantizers, learned_parameters, quantized_layers
from lightning_balq.nn.learned import beginning_parameters
from tests.callback.tiny import TinyModel


def fixed(**options: Any) -> BalancedQuantization:
    return BalancedQuantization(2, activation_bits=2, verbose=0, **options)


def learned(**options: Any) -> BalancedQuantization:
    return BalancedQuantization(2, 2, scale="learned", activation_range="lsq", verbose=0, **options)


METHODS = {"fixed": fixed, "learned": learned}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Decaying(TinyModel):
    """With momentum, weight decay, and a learning rate that changes at every step: nothing of it may be lost."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.95**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def decaying(seed: int = 0) -> Decaying:
    torch.manual_seed(seed)
    return Decaying()


def quantization(model: nn.Module) -> dict[str, Any]:
    """Everything that training changes beside weights: ranges, learned values, and how far the schedule has come."""
    ranges: list[dict[str, Tensor]] = [quantizer.state() for quantizer in activation_quantizers(model)]
    pending = [quantizer.pending.clone() for quantizer in activation_quantizers(model)]
    values = {name: parameter.detach().clone() for name, parameter, _ in learned_parameters(model)}
    blends = {name: state.schedule.blend for name, _, state in quantized_layers(model)}
    starting = dict.fromkeys(beginning_parameters(model), True)
    return {"ranges": ranges, "pending": pending, "learned": values, "blends": blends, "starting": starting}


def state(model: nn.Module) -> dict[str, Any]:
    """Copies of all weights, and of what else training changes."""
    return {key: value.clone() for key, value in model.state_dict().items()} | quantization(model)
