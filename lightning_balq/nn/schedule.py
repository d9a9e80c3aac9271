"""How far quantization has come: float, blending, quantized."""

from typing import Literal

import torch
from torch import Tensor

from lightning_balq.nn.float_reads import FloatReads
from lightning_balq.nn.timing import QuantizationTimer

Phase = Literal["float", "blend", "quantized"]


def blend_at(step: int, start_step: int, blend_steps: int) -> float:
    r"""Share of the quantized value at a training step, :math:`\mathrm{clamp}((t - t_0) / \Delta,\ 0,\ 1)`.

    Args:
        step: optimizer steps taken so far.
        start_step: last step at which the network is still float, if it blends; else first quantized one.
        blend_steps: number of steps from float to quantized; 0 switches at once.

    Example:
        >>> [blend_at(step, start_step=2, blend_steps=2) for step in range(6)]
        [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]
        >>> [blend_at(step, start_step=2, blend_steps=0) for step in range(4)]
        [0.0, 0.0, 1.0, 1.0]
    """
    if blend_steps == 0:
        return float(step >= start_step)
    return min(max((step - start_step) / blend_steps, 0.0), 1.0)


class Schedule:
    """State shared by all layers of a model that are quantized together.

    ``blend`` is the share of the quantized value: 0 is the float network, 1 the quantized one. The phase is a string so
    that a compiled forward is specialised on it (three graphs at most); the share that a forward reads is a tensor, so
    that it is not specialised on that.
    """

    def __init__(self) -> None:
        self.blend = 1.0
        self.phase: Phase = "quantized"
        self.timer: QuantizationTimer | None = None
        self.reads: FloatReads | None = None
        self.share = torch.tensor(1.0, dtype=torch.float32)

    def set_blend(self, blend: float) -> None:
        """Set the share of the quantized value, from 0 to 1."""
        if blend != self.blend:
            self.blend = blend
            self.phase = "float" if blend == 0 else "quantized" if blend == 1 else "blend"
            self.share = torch.tensor(blend, dtype=torch.float32)

    def mix(self, value: Tensor, quantized: Tensor) -> Tensor:
        """Return ``(1 - blend) * value + blend * quantized``."""
        share = self.share.to(value.dtype)
        return value * (1 - share) + quantized * share
