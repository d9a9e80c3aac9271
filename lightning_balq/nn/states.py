"""Hidden states of recurrent layers and cells: which there are, and how they are quantized."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_balq.functional.recurrent import StateGrid
from lightning_balq.nn.activation import ActivationQuantizer, ActivationRange
from lightning_balq.nn.layers import LayerQuantizer
from lightning_balq.nn.learned_activation import LEARNED_RANGES
from lightning_balq.nn.swap import original_class

_LAYERS = (nn.RNN, nn.LSTM, nn.GRU)
_CELLS = (nn.RNNCell, nn.LSTMCell, nn.GRUCell)


def state_names(layer: nn.Module) -> tuple[str, ...]:
    """Names of the hidden states of ``layer`` that can be quantized: one for each of its layers.

    None if a user's class has a forward of its own: nobody knows what it does with them.
    """
    cls = original_class(layer)
    if isinstance(layer, nn.RNNBase) and any(cls.forward is known.forward for known in _LAYERS):
        return tuple(f"state_l{index}" for index in range(layer.num_layers))
    if isinstance(layer, nn.RNNCellBase) and any(cls.forward is known.forward for known in _CELLS):
        return ("state",)
    return ()


def state_quantizer(layer: nn.Module, bits: int, range_mode: ActivationRange) -> ActivationQuantizer:
    """Quantizer of a hidden state: of [-1, 1] where tanh bounds it, as an input is where nothing does."""
    kind = getattr(layer, "mode", None) or getattr(layer, "nonlinearity", None)
    if range_mode in LEARNED_RANGES:
        range_mode = "observed"  # the loops over steps have no gradient for a range
    if kind in ("RNN_RELU", "relu"):
        return ActivationQuantizer(bits, range_mode, "unsigned")
    # Projected states are sums, without a bound.
    return ActivationQuantizer(bits, range_mode if getattr(layer, "proj_size", 0) else "unit", "signed")


def state_grid(
    quantizer: LayerQuantizer, state: ActivationQuantizer, sample: Callable[[], Tensor], device: torch.device
) -> StateGrid:
    """Levels of a hidden state now; ``sample`` computes float states, for a range that was not observed yet."""
    range_, signed = state.interval(sample, device)
    share = None if quantizer.schedule.phase == "quantized" else quantizer.schedule.share
    return StateGrid(state.bits, range_, signed, share)
