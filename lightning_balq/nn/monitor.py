"""What is recorded about quantized layers: how codes are used, and how many changed since the last record."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_balq.functional import bin_utilization, code_histogram, effective_bitwidth, imbalance
from lightning_balq.nn.finite import check_layers, zero_if_finite
from lightning_balq.nn.layers import LayerQuantizer, quantized_layers
from lightning_balq.nn.quantizer import WeightQuantizer
from lightning_balq.nn.weights import peek_weight, weight_part, whole


@dataclass(frozen=True)
class CodeStatistics:
    """Statistics of the weight codes of one layer, or of all layers together.

    Attributes:
        effective_bitwidth: entropy of the codes in bits; over layers, the mean weighted by their numbers of weights.
        bin_utilization: share of codes used; over layers, the mean weighted likewise.
        imbalance: largest bin count divided by the smallest; over layers, the largest.
        code_flip_rate: share of weights whose code changed since the last record; NaN in the first.
    """

    effective_bitwidth: float
    bin_utilization: float
    imbalance: float
    code_flip_rate: float


class CodeMonitor:
    """Computes :class:`CodeStatistics` of the quantized layers of a model, and remembers codes between two records.

    It needs one byte of memory for each quantized weight.

    Example:
        >>> from lightning_balq import QuantizationConfig, quantize_
        >>> model = nn.Linear(64, 64)
        >>> _ = quantize_(model, QuantizationConfig(quantize_first_last=True))
        >>> layers, overall = CodeMonitor().record(model)
        >>> overall.effective_bitwidth > 3.9, overall.bin_utilization
        (True, 1.0)
    """

    def __init__(self) -> None:
        self._codes: dict[str, Tensor] = {}

    @torch.no_grad()
    def record(self, model: nn.Module) -> tuple[dict[str, CodeStatistics], CodeStatistics]:
        """Compute the statistics of each layer and of all; waits for the device once.

        The kernel and the recurrent weights of a recurrent layer are two entries, ``<layer>.kernel`` and
        ``<layer>.recurrent``.

        Raises:
            ValueError: if a weight holds NaN or infinity, which the message names, or no layer is quantized.
        """
        names: list[str] = []
        rows: list[Tensor] = []
        for name, layer, quantizer in quantized_layers(model):
            for part, quantizers in _parts(layer, quantizer).items():
                weights = [whole(peek_weight(layer, weight)) for weight in quantizers]
                codes = [quantizer.codes(layer, weight).flatten() for weight in quantizers]
                names.append(f"{name}.{part}" if name and part else name or part)
                rows.append(self._row(names[-1], weights, codes, next(iter(quantizers.values())).bits))
        if not rows:
            raise ValueError("the model has no quantized layer: call `quantize_(model)` before recording")
        table = torch.stack([row.to(rows[0].device) for row in rows]).tolist()
        if any(zero != 0 for *_, zero in table):
            check_layers(quantized_layers(model))
        layers = {name: CodeStatistics(*values) for name, (_, *values, _) in zip(names, table, strict=True)}
        return layers, _overall([row[0] for row in table], list(layers.values()))

    def _row(self, name: str, weights: list[Tensor], codes: list[Tensor], bits: int) -> Tensor:
        """Number of weights, the four statistics, and 0 if all weights are finite."""
        joined = torch.cat(codes)
        before = self._codes.get(name)
        self._codes[name] = joined
        if before is None or before.shape != joined.shape:
            flips = torch.full((), torch.nan, device=joined.device)
        else:
            flips = (before.to(joined.device) != joined).float().mean()
        histogram = code_histogram(joined, bits)
        zero = torch.stack([zero_if_finite(weight) for weight in weights if weight.numel()] or [torch.zeros(())]).sum()
        values = (
            effective_bitwidth(histogram),
            bin_utilization(histogram),
            imbalance(histogram),
            flips,
            zero,
        )
        return torch.stack([torch.as_tensor(joined.numel(), device=joined.device), *values]).float()


def _parts(layer: nn.Module, quantizer: LayerQuantizer) -> dict[str, dict[str, WeightQuantizer]]:
    """Quantizers of the weights that are recorded together: all of a layer, or those of a part of a recurrent one."""
    parts: dict[str, dict[str, WeightQuantizer]] = {}
    for name, each in quantizer.weights.items():
        parts.setdefault(weight_part(layer, name), {})[name] = each
    return parts


def _overall(weights: list[float], layers: list[CodeStatistics]) -> CodeStatistics:
    total = sum(weights)

    def mean(field: str) -> float:
        values: list[float] = [getattr(layer, field) for layer in layers]
        return sum(weight * value for weight, value in zip(weights, values, strict=True)) / max(total, 1)

    worst = max(layer.imbalance for layer in layers)
    return CodeStatistics(mean("effective_bitwidth"), mean("bin_utilization"), worst, mean("code_flip_rate"))
