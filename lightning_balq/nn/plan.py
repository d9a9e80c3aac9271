"""Choose the layers to quantize, and say for every other one why it stays float."""

import difflib
import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from lightning_balq.nn.config import QuantizationConfig
from lightning_balq.nn.forward import input_names
from lightning_balq.nn.layers import clean_name
from lightning_balq.nn.quantizer import WeightQuantizer
from lightning_balq.nn.report import plan_text
from lightning_balq.nn.states import state_names
from lightning_balq.nn.weights import (
    QUANTIZABLE,
    RECURRENT,
    is_recurrent,
    peek_weight,
    weight_names,
    weight_part,
    weight_sources,
)

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of weights that can be quantized."""


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer.

    Attributes:
        name: name in ``named_modules()``.
        type: class name.
        quantizers: weight quantizers by the dotted names of its weights; empty if it stays float.
        activation_bits: width of its input codes; ``None`` if they stay float.
        shapes: shape of each of its weights, in the order of ``weight_names``; empty for a lazy module.
        weights: number of weights; 0 if they are another layer's (tied).
        float_bytes: bytes of its weights as they are.
        quantized_bytes: bytes of its weights as codes and float32 scales; equal to ``float_bytes`` if it stays float.
        reason: why it stays float; empty if it is quantized.
        state_bits: width of the codes of its hidden states; ``None`` if they stay float or it has none.
        is_recurrent: whether it is of a recurrent type.
    """

    name: str
    type: str
    quantizers: Mapping[str, WeightQuantizer]
    activation_bits: int | None
    shapes: tuple[tuple[int, ...], ...]
    weights: int
    float_bytes: int
    quantized_bytes: int
    reason: str
    state_bits: int | None = None
    is_recurrent: bool = False

    @property
    def weight_bits(self) -> int | None:
        """Width of its weight codes, of a recurrent layer of its kernel's; ``None`` if they stay float."""
        return next((q.bits for name, q in self.quantizers.items() if not is_recurrent(name)), None)

    @property
    def recurrent_bits(self) -> int | None:
        """Width of the codes of recurrent weights; ``None`` if they stay float or it has none."""
        return next((q.bits for name, q in self.quantizers.items() if is_recurrent(name)), None)

    @property
    def quantized(self) -> bool:
        """Whether the layer is quantized."""
        return not self.reason


@dataclass(frozen=True)
class Plan:
    """What happens to every layer of a model; ``print(plan)`` shows a table.

    Attributes:
        layers: one entry for each layer of a quantizable type, in the order of ``named_modules()``.
        other_bytes: bytes of all other parameters, which stay float.
    """

    layers: tuple[LayerPlan, ...]
    other_bytes: int

    @property
    def quantized(self) -> tuple[LayerPlan, ...]:
        """The layers that are quantized."""
        return tuple(layer for layer in self.layers if layer.quantized)

    @property
    def float_bytes(self) -> int:
        """Bytes of all parameters as they are."""
        return self.other_bytes + sum(layer.float_bytes for layer in self.layers)

    @property
    def quantized_bytes(self) -> int:
        """Bytes of all parameters, with the quantized layers as codes and scales."""
        return self.other_bytes + sum(layer.quantized_bytes for layer in self.layers)

    def __str__(self) -> str:
        return plan_text(self)


def plan(model: nn.Module, config: QuantizationConfig) -> Plan:
    """Decide what :func:`lightning_balq.quantize_` does to ``model``, without touching it.

    Raises:
        ValueError: if a pattern matches no layer, two patterns contradict each other, or no layer is selected; the
            message lists near candidates.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(layer.name, layer.weight_bits, layer.reason) for layer in plan(model, QuantizationConfig()).layers]
        [('0', None, 'first layer'), ('2', 4, ''), ('4', None, 'last layer')]
    """
    candidates = list(_candidates(model))
    _check_patterns(candidates, config)
    ends = _ends([layer for layer in candidates if _is_chosen(layer, config)])
    reasons = {layer.name: _reason(layer, config, ends) for layer in candidates}
    if all(reasons.values()):
        raise ValueError(_nothing_left(candidates, reasons))
    _check_contradictions(candidates, reasons, config)
    shared: set[int] = set()
    layers = tuple(_layer_plan(layer, reasons[layer.name], config, shared) for layer in candidates)
    rest = {id(p): p for p in model.parameters() if id(p) not in shared and not is_lazy(p)}
    return Plan(layers, sum(map(_bytes, rest.values())))


def quantized_tensors(model: nn.Module, decided: Plan) -> dict[int, str]:
    """Names of the parameters of ``model`` whose values ``decided`` quantizes, by their identities.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
        >>> list(quantized_tensors(model, plan(model, QuantizationConfig())).values())
        ['1.weight']
    """
    modules = {clean_name(name): module for name, module in model.named_modules()}
    return {
        id(parameter): f"{layer.name}.{name}" if layer.name else name
        for layer in decided.quantized
        for name in layer.quantizers
        for parameter in weight_sources(modules[layer.name], name)
    }


@dataclass(frozen=True)
class _Candidate:
    name: str
    module: nn.Module
    path: tuple[tuple[str, nn.Module], ...]  # ancestors from the root down to the layer itself, by name

    @property
    def weight_parts(self) -> tuple[str, ...]:
        """Parts of its weights; one without a name if it is not recurrent."""
        return ("kernel", "recurrent") if isinstance(self.module, RECURRENT) else ("",)

    @property
    def activation_parts(self) -> tuple[str, ...]:
        """Parts of its activations, likewise."""
        return ("input", "state") if isinstance(self.module, RECURRENT) else ("",)

    def matches(self, pattern: str, part: str = "") -> bool:
        if pattern.startswith("type:"):
            glob = pattern.removeprefix("type:")
            return any(fnmatch.fnmatchcase(name, glob) for _, module in self.path for name in _type_names(module))
        if part and fnmatch.fnmatchcase(f"{self.name}.{part}" if self.name else part, pattern):
            return True
        return any(fnmatch.fnmatchcase(name, pattern) for name, _ in self.path)

    def matches_a_part(self, pattern: str) -> bool:
        return any(self.matches(pattern, part) for part in (*self.weight_parts, *self.activation_parts))

    def named_by(self, pattern: str) -> bool:
        """Whether the pattern can only mean this layer, or all layers of its very type."""
        return pattern == self.name or (
            pattern.startswith("type:") and pattern.removeprefix("type:") in _type_names(self.module)
        )


def _type_names(module: nn.Module) -> list[str]:
    return [cls.__name__ for cls in type(module).__mro__ if issubclass(cls, nn.Module) and cls is not nn.Module]


def _candidates(model: nn.Module) -> Iterator[_Candidate]:
    modules = {clean_name(name): module for name, module in model.named_modules()}
    for name, module in modules.items():
        parts = name.split(".") if name else []
        above = [".".join(parts[:index]) for index in range(len(parts) + 1)]
        path = tuple((prefix, modules[prefix]) for prefix in above if prefix in modules)
        inside = [ancestor for _, ancestor in path[:-1]]
        if any(isinstance(ancestor, Metric) for ancestor in inside):
            continue  # it measures and does not learn
        if inside and isinstance(inside[-1], nn.MultiheadAttention) and module is inside[-1].out_proj:
            continue  # never called: the attention runs on its weight
        if weight_names(module):
            yield _Candidate(name, module, path)


def _is_chosen(layer: _Candidate, config: QuantizationConfig) -> bool:
    return not all(_reason_by_pattern(layer, part, config) for part in layer.weight_parts)


def _reason_by_pattern(layer: _Candidate, part: str, config: QuantizationConfig) -> str:
    """Why a part of a layer is not chosen; empty if it is."""
    for pattern in config.exclude:
        if layer.matches(pattern, part):
            return f"excluded by {pattern!r}"
    return "" if any(layer.matches(pattern, part) for pattern in config.include) else "not included"


def _ends(chosen: list[_Candidate]) -> dict[str, str]:
    """First and last layer by name; an embedding counts, whether it is asked for or not; a recurrent layer does not.

    The ends of a network are left float because they are small and next to the data. A recurrent layer is neither.
    """
    names = [layer.name for layer in chosen if not isinstance(layer.module, RECURRENT)]
    return {names[-1]: "last layer", names[0]: "first layer"} if names else {}


def _reason(layer: _Candidate, config: QuantizationConfig, ends: dict[str, str]) -> str:
    """Why the layer stays float; empty if it is quantized."""
    if not _is_chosen(layer, config):
        return _reason_by_pattern(layer, layer.weight_parts[0], config)
    if "forward" in layer.module.__dict__:
        return "its forward is replaced on the instance"
    odd = _odd_weight(layer.module)
    if odd:
        return odd
    if isinstance(layer.module, nn.Embedding):
        if not any(map(layer.named_by, config.include)):
            return "embeddings only on request: include 'type:Embedding'"
        if layer.module.max_norm is not None:
            return "max_norm rewrites the table in every forward"
    if config.quantize_first_last or layer.name in (*config.include, *config.weight_bits_by_layer):
        return ""
    return ends.get(layer.name, "")


def _odd_weight(module: nn.Module) -> str:
    """Why a weight can have no codes: it is sparse, complex, or codes of another method; empty if none is so."""
    for name in weight_names(module):
        weight = peek_weight(module, name)
        if weight.dtype not in FLOATING:
            return f"`{name}` is {str(weight.dtype).removeprefix('torch.')}"
        if weight.layout != torch.strided:
            return f"`{name}` is sparse"
    return ""


def _check_patterns(candidates: list[_Candidate], config: QuantizationConfig) -> None:
    groups = {
        "include": [pattern for pattern in config.include if pattern != "*"],
        "exclude": config.exclude,
        "weight_bits_by_layer": config.weight_bits_by_layer,
        "activation_bits_by_layer": config.activation_bits_by_layer,
    }
    for argument, patterns in groups.items():
        for pattern in patterns:
            if not any(layer.matches_a_part(pattern) for layer in candidates):
                raise ValueError(
                    f"`{argument}` holds the pattern {pattern!r}, which matches none of the {len(candidates)} layers "
                    f"that can be quantized{_near(pattern, candidates)}; a pattern is a glob on `named_modules()` "
                    "names, or 'type:' and a glob on class names"
                )


def _near(pattern: str, candidates: list[_Candidate]) -> str:
    if pattern.startswith("type:"):
        known = sorted({f"type:{name}" for layer in candidates for _, m in layer.path for name in _type_names(m)})
    else:
        known = list(dict.fromkeys(name for layer in candidates for name, _ in reversed(layer.path)))
    near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.4) or known[:3]
    return f" (near: {', '.join(map(repr, near))})" if near else ""


def _nothing_left(candidates: list[_Candidate], reasons: dict[str, str]) -> str:
    if not candidates:
        types = ", ".join(cls.__name__ for cls in (*QUANTIZABLE, nn.RNN, nn.LSTM, nn.GRU))
        return f"the model has no layer that can be quantized: expected at least one of {types}, or a subclass"
    shown = ", ".join(f"{layer.name!r} ({reasons[layer.name]})" for layer in candidates[:6])
    more = f" and {len(candidates) - 6} more" if len(candidates) > 6 else ""
    return (
        f"no layer of the model would be quantized; its {len(candidates)} candidates all stay float: {shown}{more}. "
        "Change `include` or `exclude`, or set `quantize_first_last=True`"
    )


def _check_contradictions(candidates: list[_Candidate], reasons: dict[str, str], config: QuantizationConfig) -> None:
    for pattern in config.include:
        matched = [layer for layer in candidates if layer.matches_a_part(pattern)]
        if pattern != "*" and not any(_is_chosen(layer, config) for layer in matched):
            raise ValueError(
                f"`include` asks for {pattern!r}, but `exclude` takes all it matches: {matched[0].name!r} is "
                f"{reasons[matched[0].name]}; remove one of the two patterns"
            )
    for argument in ("weight_bits_by_layer", "activation_bits_by_layer"):
        table: dict[str, int] = getattr(config, argument)
        for layer in candidates:
            for part in layer.weight_parts if argument == "weight_bits_by_layer" else layer.activation_parts:
                widths = {pattern: bits for pattern, bits in table.items() if layer.matches(pattern, part)}
                if len(set(widths.values())) > 1:
                    raise ValueError(
                        f"`{argument}` gives layer {'.'.join(filter(None, (layer.name, part)))!r} several widths: "
                        f"{widths}; leave one pattern that matches it"
                    )
        for pattern in table:
            matched = [layer for layer in candidates if layer.matches_a_part(pattern)]
            if all(reasons[layer.name] for layer in matched):
                raise ValueError(
                    f"`{argument}` sets the bits of {pattern!r}, but all it matches stays float: {matched[0].name!r} "
                    f"({reasons[matched[0].name]})"
                )
    for pattern in config.activation_bits_by_layer:
        matched = [layer for layer in candidates if layer.matches_a_part(pattern)]
        if not any(input_names(layer.module) for layer in matched):
            raise ValueError(
                f"`activation_bits_by_layer` sets the bits of {pattern!r}, but the input of all it matches is integer: "
                f"{matched[0].name!r} is an embedding; remove the pattern"
            )


def _layer_plan(layer: _Candidate, reason: str, config: QuantizationConfig, shared: set[int]) -> LayerPlan:
    module, names = layer.module, weight_names(layer.module)
    quantizers = {} if reason else _quantizers(layer, config)
    known = not any(is_lazy(parameter) for parameter in module.parameters())
    tensors = {name: peek_weight(module, name) for name in names} if known else {}
    own = {}
    for name, tensor in tensors.items():
        sources = {id(parameter) for parameter in weight_sources(module, name)}
        if not sources & shared:
            own[name] = tensor
        shared.update(sources)
    return LayerPlan(
        name=layer.name,
        type=type(module).__name__,
        quantizers=quantizers,
        activation_bits=None if reason or not input_names(module) else _activation_width(layer, "input", config),
        shapes=tuple(tuple(tensor.shape) for tensor in tensors.values()),
        weights=sum(tensor.numel() for tensor in own.values()),
        float_bytes=sum(map(_bytes, own.values())),
        quantized_bytes=sum(_quantized_bytes(module, tensor, quantizers.get(name)) for name, tensor in own.items()),
        reason=reason,
        state_bits=None if reason or not state_names(module) else _activation_width(layer, "state", config),
        is_recurrent=isinstance(module, RECURRENT),
    )


def _bytes(tensor: Tensor) -> int:
    """Bytes of all values of a tensor; of a sparse one, as if it were dense."""
    return tensor.numel() * tensor.element_size()


def _quantized_bytes(module: nn.Module, weight: Tensor, quantizer: WeightQuantizer | None) -> int:
    """Bytes of a weight as packed codes and scales; as it is without a quantizer."""
    if quantizer is None:
        return _bytes(weight)
    channels: int = getattr(module, "out_channels", weight.shape[0] if weight.dim() else 1)
    return (weight.numel() * quantizer.bits + 7) // 8 + 4 * quantizer.scales(channels)


def _quantizers(layer: _Candidate, config: QuantizationConfig) -> dict[str, WeightQuantizer]:
    """Quantizer of each weight of a layer that is quantized, by dotted name."""
    quantizers = {}
    for name in weight_names(layer.module):
        part = weight_part(layer.module, name)
        chosen = config.recurrent if part == "recurrent" and config.recurrent is not None else config.weight
        if not _reason_by_pattern(layer, part, config):
            bits = _width(layer, part, config.weight_bits_by_layer)
            quantizers[name] = chosen if bits is None else replace(chosen, bits=bits)
    return quantizers


def _activation_width(layer: _Candidate, part: str, config: QuantizationConfig) -> int | None:
    """Width of the codes of the input or the hidden state of a layer that is quantized."""
    if part not in layer.activation_parts:
        part = ""
    if _reason_by_pattern(layer, part, config):
        return None
    bits = _width(layer, part, config.activation_bits_by_layer)
    return config.activation_bits if bits is None else bits


def _width(layer: _Candidate, part: str, table: Mapping[str, int]) -> int | None:
    """What a pattern sets for a part of a layer, if one does."""
    return next((bits for pattern, bits in table.items() if layer.matches(pattern, part)), None)
