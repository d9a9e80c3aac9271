"""Activation quantizer whose scale or range is learned by the optimizer."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_balq.functional import activation_observation
from lightning_balq.functional.lsq import (
    lsq_activation_range,
    lsq_activation_scale,
    lsq_attach_gradient,
    lsq_scale,
)
from lightning_balq.functional.pact import pact_attach_gradient
from lightning_balq.kernels.activations import activation_fake_quantize
from lightning_balq.nn.activation import ActivationQuantizer

LEARNED_RANGES = ("pact", "lsq")
"""Modes of a range that are learned."""


class LearnedActivationQuantizer(ActivationQuantizer):
    """Quantizes one input of a layer at a range (``"pact"``) or scale (``"lsq"``) that is learned.

    A parameter of the layer holds the range, or the logarithm of the scale. It begins at what the first training batch
    shows, the range that ``"observed"`` begins with (1 if all of that batch is zero): it is set by the first
    :func:`lightning_balq.nn.update_ranges_`, to be called between the first backward pass and the optimizer's step.
    Until then a batch is quantized by its own range, with the gradient that the parameter would get.

    Args:
        bits: width of a code in bits, 1 to 8.
        range_mode: ``"pact"`` (:func:`lightning_balq.functional.pact_fake_quantize`) or ``"lsq"``
            (:func:`lightning_balq.functional.lsq_activation_fake_quantize`).
        sign: ``"auto"``, ``"unsigned"`` or ``"signed"``.

    Example:
        >>> quantizer, range = LearnedActivationQuantizer(2, "pact", "unsigned"), nn.Parameter(torch.ones(1))
        >>> quantizer.learned(torch.tensor([-0.2, 0.3, 1.5]), range, observe=True)
        tensor([0.0000, 0.5000, 1.5000], grad_fn=<_ClippedBackward>)
    """

    range_modes: ClassVar[tuple[str, ...]] = LEARNED_RANGES
    _parameter: nn.Parameter | None = None

    def learned(self, x: Tensor, parameter: Tensor, *, observe: bool) -> Tensor:
        """Fake-quantize ``x`` at ``parameter``; with ``observe``, also note its range."""
        if self.range.device != x.device:
            self._move(x.device)
        signed = self.signed
        if isinstance(parameter, nn.Parameter):
            self._parameter = parameter
        if not self.ready and x.numel():
            first = activation_observation(x, self._spread)
            known = self.batches > 0
            if self.sign == "auto":
                signed = torch.where(known, signed, signed | (first[2] > 0))
            if observe:
                self.pending += first
                observe = False
            begin = torch.where(known, parameter.detach(), self._begin(first[0], signed))
            parameter = begin + (parameter - parameter.detach())
        # Later on a range is learned, and only the sign is looked for.
        spread = self._spread if observe and self.sign == "auto" and x.numel() else None
        range_ = self.range_at(parameter.detach(), signed)
        levels, seen = activation_fake_quantize(x.detach(), self.bits, range=range_, signed=signed, spread=spread)
        if seen is not None:
            self.pending += seen
        if self.range_mode == "pact":
            return pact_attach_gradient(x, levels, parameter, signed=signed)
        return lsq_attach_gradient(x, levels, lsq_scale(parameter), self.bits, signed=signed)

    def range_at(self, parameter: Tensor, signed: Tensor) -> Tensor:
        """Range that a value of the parameter stands for, a scalar tensor."""
        if self.range_mode == "pact":
            return parameter.to(torch.float32).abs().reshape(())
        return lsq_activation_range(lsq_scale(parameter), self.bits, signed=signed)

    def adopt(self, range_: Tensor, negative: Tensor, seen: Tensor) -> None:
        """Take over the sign; before anything was learned, the range too."""
        is_first = (self.batches.to(seen.device) == 0) & (seen > 0)
        super().adopt(range_, negative, seen)
        if self._parameter is not None:
            with torch.no_grad():
                begin = self._begin(range_, self.signed).to(self._parameter)
                self._parameter.copy_(torch.where(is_first.to(begin.device), begin, self._parameter))

    def settle(self) -> None:
        """Take the parameter for learned, as if it had come from a checkpoint."""
        self.batches, self.ready = self.batches.clamp(min=1), True

    def restart(self) -> None:
        """Let the next training batch decide anew where the parameter begins."""
        self.batches, self.pending = torch.zeros_like(self.batches), torch.zeros_like(self.pending)
        self.ready = False

    def _begin(self, range_: Tensor, signed: Tensor) -> Tensor:
        range_ = torch.where(range_ > 0, range_, 1.0)
        if self.range_mode == "pact":
            return range_
        return lsq_activation_scale(range_, self.bits, signed=signed).log()
