"""torchmetrics classes over :mod:`lightning_balq.functional.statistics`: alone, in a ``MetricCollection``, over DDP."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_balq.functional import bin_utilization, code_histogram, effective_bitwidth, imbalance
from lightning_balq.functional._checks import check_bits
from lightning_balq.functional.statistics import relative_error, squared_error


class _HistogramMetric(Metric):
    """Accumulates the histogram of codes; a subclass says what is computed from it."""

    is_differentiable = False
    full_state_update = False

    histogram: Tensor

    def __init__(self, bits: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bits = check_bits(bits)
        self.add_state("histogram", torch.zeros(2**bits, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        """Count ``codes``: integers from 0 to ``2**bits - 1``, any shape."""
        self.histogram += code_histogram(codes, self.bits)


class EffectiveBitwidth(_HistogramMetric):
    r"""Shannon entropy in bits of all codes seen; see :func:`lightning_balq.functional.effective_bitwidth`.

    Args:
        bits: width of a code in bits, 1 to 8.
        kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        TypeError: if ``bits`` is not an int, or codes are not integers.
        ValueError: if ``bits`` or a code is out of range.

    Example:
        >>> metric = EffectiveBitwidth(bits=2)
        >>> metric.update(torch.tensor([0, 1, 2, 3]))
        >>> metric.compute()
        tensor(2., dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0

    def compute(self) -> Tensor:
        """Return the entropy, float64 scalar."""
        return effective_bitwidth(self.histogram)


class BinUtilization(_HistogramMetric):
    """Share of codes that were used at all; see :func:`lightning_balq.functional.bin_utilization`.

    Args:
        bits: width of a code in bits, 1 to 8.
        kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        TypeError: if ``bits`` is not an int, or codes are not integers.
        ValueError: if ``bits`` or a code is out of range.

    Example:
        >>> metric = BinUtilization(bits=2)
        >>> metric.update(torch.tensor([0, 1, 1, 3]))
        >>> metric.compute()
        tensor(0.7500)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def compute(self) -> Tensor:
        """Return the share, float32 scalar."""
        return bin_utilization(self.histogram)


class Imbalance(_HistogramMetric):
    """Largest bin count divided by the smallest; see :func:`lightning_balq.functional.imbalance`.

    Args:
        bits: width of a code in bits, 1 to 8.
        kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        TypeError: if ``bits`` is not an int, or codes are not integers.
        ValueError: if ``bits`` or a code is out of range.

    Example:
        >>> metric = Imbalance(bits=1)
        >>> metric.update(torch.tensor([0, 1, 1, 1]))
        >>> metric.compute()
        tensor(3.)
    """

    higher_is_better = False
    plot_lower_bound = 1.0

    def compute(self) -> Tensor:
        """Return the ratio, float32 scalar."""
        return imbalance(self.histogram)


class QuantizationError(Metric):
    r"""Relative error :math:`\sum\|W - W_q\|^2 / \sum\|W\|^2` over all weights seen.

    See :func:`lightning_balq.functional.quantization_error`. In a ``MetricCollection`` with the other classes, call
    ``update(codes=..., weight=..., quantized=...)``: each takes the arguments it names.

    Args:
        kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if the shapes of a weight and its quantized form differ.

    Example:
        >>> metric = QuantizationError()
        >>> metric.update(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]))
        >>> metric.compute()
        tensor(0.0400)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    error: Tensor
    power: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("error", torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("power", torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, weight: Tensor, quantized: Tensor) -> None:
        """Add the error of ``quantized`` against ``weight``: floating point, one shape."""
        error, power = squared_error(weight, quantized)
        self.error += error
        self.power += power

    def compute(self) -> Tensor:
        """Return the relative error, float32 scalar."""
        return relative_error(self.error, self.power)
