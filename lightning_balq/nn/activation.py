"""Activation quantizer of one input of a layer, and the range it observes during training."""

import math
from collections.abc import Callable, Iterable
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lightning_balq.functional import activation_observation
from lightning_balq.functional._checks import check_bits, check_choice
from lightning_balq.kernels.activations import activation_fake_quantize

ActivationRange = Literal["unit", "observed", "pact", "lsq"]
ActivationSign = Literal["auto", "unsigned", "signed"]

ACTIVATION_RANGES: tuple[str, ...] = get_args(ActivationRange)
ACTIVATION_SIGNS: tuple[str, ...] = get_args(ActivationSign)

MOMENTUM = 0.1
"""Weight of the newest training batch in a running range."""


class ActivationQuantizer:
    r"""Quantizes one input of a layer to ``2**bits`` levels of ``[0, range]`` or ``[-range, range]``.

    ``range`` is 1 (``"unit"``), or the running mean over training batches (``"observed"``) of
    :math:`\min(\max|x|,\ 2 \sqrt{n}\, E|x|)` with :math:`n = 2^b - 1`; the second term is the initial range of LSQ
    (Esser et al. 2020, arXiv:1902.08153). A sign of ``"auto"`` becomes signed once a training batch holds a
    negative value.

    What a batch shows is kept aside until :func:`update_ranges_` takes it over, so that a range is constant within a
    training step and a recomputed forward (activation checkpointing) sees the same one. Before the first update, and
    only then, a batch is quantized by its own range.

    Not a module: it adds nothing to ``state_dict()``, ``modules()`` or what DDP and EMA copy.

    Args:
        bits: width of a code in bits, 1 to 8.
        range_mode: ``"unit"`` or ``"observed"``.
        sign: ``"auto"``, ``"unsigned"`` or ``"signed"``.

    Raises:
        TypeError: if ``bits`` is not an int.
        ValueError: if an argument is out of range.

    Example:
        >>> quantizer = ActivationQuantizer(bits=2, range_mode="unit", sign="unsigned")
        >>> quantizer(torch.tensor([-0.2, 0.3, 1.7]), observe=False)
        tensor([0.0000, 0.3333, 1.0000])
    """

    range_modes: ClassVar[tuple[str, ...]] = ("unit", "observed")

    def __init__(self, bits: int, range_mode: ActivationRange, sign: ActivationSign) -> None:
        self.bits = check_bits(bits, "activation_bits")
        check_choice(range_mode, "activation_range", self.range_modes)
        check_choice(sign, "activation_sign", ACTIVATION_SIGNS)
        self.range_mode = range_mode
        self.sign = sign
        with torch.inference_mode(False):  # tensors made in inference mode could not be updated in training
            self.range = torch.tensor(1.0 if range_mode == "unit" else 0.0, dtype=torch.float32)
            self.signed = torch.tensor(sign == "signed")
            # Sums over the batches since the last update: range, batches, batches with a negative value.
            self.pending = torch.zeros(3, dtype=torch.float32)
            self.batches = torch.zeros((), dtype=torch.float32)
        self._spread = math.inf if range_mode == "unit" else 2 * math.sqrt(2**bits - 1)
        self.ready = not self.observing
        """Whether range and sign are known, so that inference need not look at its input."""

    @property
    def observing(self) -> bool:
        """Whether anything about the input is learned from training batches."""
        return self.range_mode != "unit" or self.sign == "auto"

    def __call__(self, x: Tensor, *, observe: bool) -> Tensor:
        """Fake-quantize ``x``; with ``observe``, also note its range."""
        if self.range.device != x.device:
            self._move(x.device)
        range_, signed = self.range, self.signed
        if not self.ready and self.observing and x.numel():  # the range of this batch is needed to quantize it
            first = activation_observation(x, self._spread)
            if observe:
                self.pending += first
            range_, signed = self._known_or(first)
            observe = False
        spread = self._spread if observe and self.observing and x.numel() else None
        levels, seen = activation_fake_quantize(x, self.bits, range=range_, signed=signed, spread=spread)
        if seen is not None:
            self.pending += seen
        return levels

    def adopt(self, range_: Tensor, negative: Tensor, seen: Tensor) -> None:
        """Take over the range of ``seen`` batches more, and whether a value of theirs was negative."""
        if self.range_mode == "observed":
            self.range = range_
        if self.sign == "auto":
            self.signed = self.signed.to(negative.device) | negative
        self.batches = self.batches.to(seen.device) + seen
        self.pending = torch.zeros(3, dtype=torch.float32, device=seen.device)

    def interval(self, sample: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """Range and sign to quantize with on ``device``, for values that are not all there yet.

        While nothing was observed, the interval is that of ``sample()``.
        """
        if self.range.device != device:
            self._move(device)
        if not self.ready and not torch.compiler.is_compiling():
            settle_ranges_([self])
        if self.ready:
            return self.range, self.signed
        return self._known_or(activation_observation(sample(), self._spread))

    def observe(self, x: Tensor) -> None:
        """Note the range of values that were quantized elsewhere."""
        if self.observing and x.numel():
            self.pending += activation_observation(x, self._spread)

    def _known_or(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """Range and sign observed so far; those of a first batch if there are none."""
        known = self.batches > 0
        range_ = torch.where(known | (self.range > 0), self.range, first[0])
        if self.sign != "auto":
            return range_, self.signed
        return range_, torch.where(known, self.signed, self.signed | (first[2] > 0))

    def _move(self, device: torch.device) -> None:
        # The first forward may be a sanity check in inference mode, whose tensors could not be updated later.
        with torch.inference_mode(False):
            self.range, self.signed = self.range.to(device), self.signed.to(device)
            self.pending, self.batches = self.pending.to(device), self.batches.to(device)

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold, empty if nothing is observed."""
        if not self.observing:
            return {}
        return {"range": self.range.clone(), "signed": self.signed.clone(), "batches": self.batches.clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` returned; what this quantizer does not observe stays as configured."""
        if not self.observing:
            return
        if self.range_mode == "observed":
            self.range = state["range"].detach().to(torch.float32, copy=True)
        if self.sign == "auto":
            self.signed = state["signed"].detach().clone()
        self.batches = state["batches"].detach().to(torch.float32, copy=True)
        self._move(self.range.device)
        self.pending.zero_()
        self.ready = bool(self.batches > 0)


def update_ranges_(quantizers: Iterable[ActivationQuantizer], reduce: Callable[[Tensor], Tensor] | None = None) -> None:
    """Take over what the quantizers observed since the last call; call it once after each training batch.

    Args:
        quantizers: those of a model, the same on every rank and in the same order.
        reduce: sums a tensor over ranks, so that all ranks hold the same ranges; one call for all quantizers.
    """
    active = [quantizer for quantizer in quantizers if quantizer.observing]
    if not active:
        return
    # Layers may live on several devices, and one that never ran is still where it was built.
    device = max((quantizer.pending.device for quantizer in active), key=lambda device: device.type != "cpu")
    totals = torch.stack([quantizer.pending.to(device) for quantizer in active])
    totals = totals if reduce is None else reduce(totals)
    old = torch.stack([quantizer.range.to(device) for quantizer in active])
    known = torch.stack([quantizer.batches.to(device) for quantizer in active])
    seen = totals[:, 1]
    mean = totals[:, 0] / seen.clamp(min=1)
    ranges = torch.where(seen > 0, torch.where(known > 0, old + MOMENTUM * (mean - old), mean), old).unbind()
    for index, quantizer in enumerate(active):
        quantizer.adopt(ranges[index], totals[index, 2] > 0, seen[index])


def settle_ranges_(quantizers: Iterable[ActivationQuantizer]) -> None:
    """Mark quantizers that have observed a batch as ready; looks at the device, but only while any is not."""
    for quantizer in quantizers:
        quantizer.ready = quantizer.ready or bool(quantizer.batches > 0)
