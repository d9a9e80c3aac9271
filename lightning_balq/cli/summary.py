"""What a checkpoint or a packed file holds, layer by layer."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_balq.export.bits import packed_size
from lightning_balq.export.description import Description, QuantizedWeight, join
from lightning_balq.functional import code_histogram, effective_bitwidth
from lightning_balq.functional.lsq import lsq_scale
from lightning_balq.nn import WeightQuantizer
from lightning_balq.nn.checkpoint import KEY, VERSION
from lightning_balq.nn.layers import LOG_SCALE, clean_name
from lightning_balq.nn.quantizer import LearnedScaleQuantizer
from lightning_balq.nn.saved_layers import build_quantizer
from lightning_balq.nn.saved_state import check_mapping, check_number, check_version
from lightning_balq.nn.weights import swap_grouped


@dataclass(frozen=True)
class WeightSummary:
    """One quantized weight.

    Attributes:
        name: key in the ``state_dict()``.
        type: class of its layer.
        bits: width of its codes.
        activation_bits: widths of the inputs of the layer, by their names.
        method: what chooses the codes.
        shape: of the weight; ``None`` where a file does not say.
        weights: how many values it has; 0 if they are another weight's.
        bytes: of its codes and scales.
        counts: how often each code occurs, without pruned weights and padding; ``None`` if not known.
    """

    name: str
    type: str
    bits: int
    activation_bits: dict[str, int]
    method: str
    shape: list[int] | None
    weights: int
    bytes: int
    counts: list[int] | None

    @property
    def effective_bitwidth(self) -> float | None:
        """Entropy of its codes in bits; ``None`` if not known, or there are none."""
        return float(effective_bitwidth(torch.tensor(self.counts))) if self.counts and any(self.counts) else None


@dataclass(frozen=True)
class Summary:
    """A quantized model.

    Attributes:
        kind: ``"packed"`` or ``"checkpoint"``.
        weights: those that are quantized.
        float_layers: why other layers stay float, by their names.
        other_bytes: bytes of all other parameters and buffers.
        blend: share of the network that is quantized, 1 unless training stopped on the way there.
    """

    kind: str
    weights: list[WeightSummary]
    float_layers: dict[str, str]
    other_bytes: int
    blend: float = 1.0

    @property
    def total_bytes(self) -> int:
        """Bytes of the packed model."""
        return self.other_bytes + sum(weight.bytes for weight in self.weights)

    @property
    def effective_bitwidth(self) -> float | None:
        """Mean over all weights whose own is known."""
        known = [weight for weight in self.weights if weight.effective_bitwidth is not None and weight.weights]
        count = sum(weight.weights for weight in known)
        total = sum(weight.weights * (weight.effective_bitwidth or 0.0) for weight in known)
        return total / count if count else None

    def as_dict(self) -> dict[str, Any]:
        """All of it, in plain values."""
        weights = [asdict(weight) | {"effective_bitwidth": weight.effective_bitwidth} for weight in self.weights]
        totals = {"total_bytes": self.total_bytes, "effective_bitwidth": self.effective_bitwidth}
        return {**asdict(self), "weights": weights, **totals}


def of_description(description: Description, kind: str) -> Summary:
    """Summarize what a packed file holds, or a model."""
    seen: set[int] = set()
    weights = []
    for name, layer in description.layers.items():
        inputs = {key: given.bits for key, given in layer.inputs.items()}
        for key, weight in layer.weights.items():
            weights.append(_of_weight(join(name, key), layer.type, inputs, weight, again=id(weight) in seen))
            seen.add(id(weight))
    others = {id(tensor): tensor.nbytes for tensor in description.tensors.values()}
    return Summary(kind, weights, dict(description.reasons), sum(others.values()))


def _of_weight(name: str, type_: str, inputs: dict[str, int], weight: QuantizedWeight, *, again: bool) -> WeightSummary:
    extra = packed_size(weight.codes.numel(), 1) if weight.kept is not None else 0
    extra += weight.padding.nbytes if weight.padding is not None else 0
    return WeightSummary(
        name,
        type_,
        weight.bits,
        inputs,
        weight.method,
        list(weight.shape),
        0 if again else weight.codes.numel(),
        0 if again else weight.code_bytes + weight.scale.nbytes + extra,
        _counts(weight.codes[_on_grid(weight)], weight.bits),
    )


def _on_grid(weight: QuantizedWeight) -> Tensor:
    """True where a value, output channels in dim 0, has the level of its code: it is neither pruned nor padding."""
    if weight.padding_row is not None:
        kept = torch.ones(weight.codes.shape, dtype=torch.bool) if weight.kept is None else weight.kept.clone()
        kept[weight.padding_row] = False
        return kept
    if weight.kept is None:
        return torch.ones(weight.codes.shape, dtype=torch.bool)
    return weight.kept if weight.groups is None else swap_grouped(weight.kept, weight.groups)


def of_checkpoint(checkpoint: Mapping[str, Any]) -> Summary:
    """Summarize what a checkpoint says of itself, without its model.

    Raises:
        ValueError: if it is that of a float model, or does not say how its layers are quantized.
    """
    saved = checkpoint.get(KEY)
    if saved is None:
        raise ValueError("the checkpoint is that of a float model: it holds no state of lightning_balq")
    check_version(f"{KEY}['version']", check_mapping(KEY, saved, ("version",))["version"], VERSION, KEY)
    check_number(f"{KEY}['blend']", saved.get("blend"), 0, 1)
    layers = check_mapping(f"{KEY}['layers']", saved.get("layers", {}))
    if not layers:
        raise ValueError("the checkpoint does not say how its layers are quantized, as one of an older lightning_balq")
    tensors = {clean_name(key): value for key, value in checkpoint["state_dict"].items() if isinstance(value, Tensor)}
    learned = check_mapping(f"{KEY}['learned']", saved.get("learned", {})).get("state_dict", {})
    weights = []
    for name, layer in layers.items():
        weights += _of_saved_layer(name, layer, tensors, learned)
    own = {weight.name for weight in weights}
    others = sum(tensor.nbytes for key, tensor in tensors.items() if key not in own)
    reasons = {name: str(reason) for name, reason in check_mapping(f"{KEY}['float']", saved.get("float", {})).items()}
    return Summary("checkpoint", weights, reasons, others, float(saved["blend"]))


def _of_saved_layer(
    name: str, layer: Mapping[str, Any], tensors: Mapping[str, Tensor], learned: Mapping[str, Tensor]
) -> list[WeightSummary]:
    try:
        return _of_sound_layer(name, layer, tensors, learned)
    except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"what the checkpoint says of layer {name!r} cannot be understood: {error}") from error


def _of_sound_layer(
    name: str, layer: Mapping[str, Any], tensors: Mapping[str, Tensor], learned: Mapping[str, Tensor]
) -> list[WeightSummary]:
    inputs = {key: int(given["bits"]) for key, given in layer["inputs"].items()}
    found = []
    for key, state in layer["weights"].items():
        quantizer, place = build_quantizer(state), join(name, key)
        weight = tensors.get(place)  # absent if it is parametrized or pruned: only the model can put it together
        size = 0
        if weight is not None:
            channels = weight.shape[0] if weight.dim() else 1
            size = packed_size(weight.numel(), quantizer.bits) + 4 * quantizer.scales(channels)
        scale = learned.get(join(name, f"{LOG_SCALE}{key.replace('.', '_')}"))
        counts = None if weight is None else _counts_of(weight, quantizer, layer.get("groups"), scale)
        found.append(
            WeightSummary(
                place,
                str(layer["type"]),
                quantizer.bits,
                inputs,
                str(quantizer),
                None if weight is None else list(weight.shape),
                0 if weight is None else weight.numel(),
                size,
                counts,
            )
        )
    return found


def _counts_of(
    weight: Tensor, quantizer: WeightQuantizer, groups: int | None, scale: Tensor | None
) -> list[int] | None:
    rows = weight if groups is None else swap_grouped(weight, groups)
    if isinstance(quantizer, LearnedScaleQuantizer):
        if scale is None:
            return None
        codes = quantizer.codes_at(rows, lsq_scale(scale))
    else:
        codes = quantizer.codes(rows)
    zero = rows == 0  # pruned, or padding, unless all is
    return _counts(codes if bool(zero.all()) else codes[~zero], quantizer.bits)


def _counts(codes: Tensor, bits: int) -> list[int]:
    return [int(count) for count in code_histogram(codes, bits)]
