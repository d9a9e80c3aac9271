"""Choose the layers to quantize, and say for every other one why it stays float."""

import difflib
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torchmetrics import Metric

from lightning_balq.nn.config import QuantizationConfig
from lightning_balq.nn.layers import QUANTIZABLE, clean_name, input_names, peek_weight, weight_names
from lightning_balq.nn.report import plan_text

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer.

    Attributes:
        name: name in ``named_modules()``.
        type: class name.
        weight_bits: width of its weight codes; ``None`` if it stays float.
        activation_bits: width of its input codes; ``None`` if they stay float.
        shapes: shape of each of its weights, in the order of ``weight_names``; empty for a lazy module.
        weights: number of weights; 0 if they are another layer's (tied).
        float_bytes: bytes of its weights as they are.
        quantized_bytes: bytes of its weights as codes and float32 scales; equal to ``float_bytes`` if it stays float.
        reason: why it stays float; empty if it is quantized.
    """

    name: str
    type: str
    weight_bits: int | None
    activation_bits: int | None
    shapes: tuple[tuple[int, ...], ...]
    weights: int
    float_bytes: int
    quantized_bytes: int
    reason: str

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
    return Plan(layers, sum(parameter.nbytes for parameter in rest.values()))


@dataclass(frozen=True)
class _Candidate:
    name: str
    module: nn.Module
    path: tuple[tuple[str, nn.Module], ...]  # ancestors from the root down to the layer itself, by name

    def matches(self, pattern: str) -> bool:
        if pattern.startswith("type:"):
            glob = pattern.removeprefix("type:")
            return any(fnmatch.fnmatchcase(name, glob) for _, module in self.path for name in _type_names(module))
        return any(fnmatch.fnmatchcase(name, pattern) for name, _ in self.path)

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
        if weight_names(module) or isinstance(module, _RECURRENT):
            yield _Candidate(name, module, path)


def _is_chosen(layer: _Candidate, config: QuantizationConfig) -> bool:
    return any(map(layer.matches, config.include)) and not any(map(layer.matches, config.exclude))


def _ends(chosen: list[_Candidate]) -> dict[str, str]:
    """First and last layer by name; an embedding counts, whether it is asked for or not."""
    names = [layer.name for layer in chosen if not isinstance(layer.module, _RECURRENT)]
    return {names[-1]: "last layer", names[0]: "first layer"} if names else {}


def _reason(layer: _Candidate, config: QuantizationConfig, ends: dict[str, str]) -> str:
    """Why the layer stays float; empty if it is quantized."""
    for pattern in config.exclude:
        if layer.matches(pattern):
            return f"excluded by {pattern!r}"
    if not any(map(layer.matches, config.include)):
        return "not included"
    if isinstance(layer.module, _RECURRENT):
        return "recurrent layers are not supported yet"
    if "forward" in layer.module.__dict__:
        return "its forward is replaced on the instance"
    if isinstance(layer.module, nn.Embedding):
        if not any(map(layer.named_by, config.include)):
            return "embeddings only on request: include 'type:Embedding'"
        if layer.module.max_norm is not None:
            return "max_norm rewrites the table in every forward"
    if config.quantize_first_last or layer.name in (*config.include, *config.weight_bits_by_layer):
        return ""
    return ends.get(layer.name, "")


def _check_patterns(candidates: list[_Candidate], config: QuantizationConfig) -> None:
    groups = {
        "include": [pattern for pattern in config.include if pattern != "*"],
        "exclude": config.exclude,
        "weight_bits_by_layer": config.weight_bits_by_layer,
        "activation_bits_by_layer": config.activation_bits_by_layer,
    }
    for argument, patterns in groups.items():
        for pattern in patterns:
            if not any(layer.matches(pattern) for layer in candidates):
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
        types = ", ".join(cls.__name__ for cls in QUANTIZABLE)
        return f"the model has no layer that can be quantized: expected at least one of {types}, or a subclass"
    shown = ", ".join(f"{layer.name!r} ({reasons[layer.name]})" for layer in candidates[:6])
    more = f" and {len(candidates) - 6} more" if len(candidates) > 6 else ""
    return (
        f"no layer of the model would be quantized; its {len(candidates)} candidates all stay float: {shown}{more}. "
        "Change `include` or `exclude`, or set `quantize_first_last=True`"
    )


def _check_contradictions(candidates: list[_Candidate], reasons: dict[str, str], config: QuantizationConfig) -> None:
    for pattern in config.include:
        matched = [layer for layer in candidates if layer.matches(pattern)]
        if pattern != "*" and not any(_is_chosen(layer, config) for layer in matched):
            raise ValueError(
                f"`include` asks for {pattern!r}, but `exclude` takes all it matches: {matched[0].name!r} is "
                f"{reasons[matched[0].name]}; remove one of the two patterns"
            )
    for argument in ("weight_bits_by_layer", "activation_bits_by_layer"):
        table: dict[str, int] = getattr(config, argument)
        for layer in candidates:
            widths = {pattern: bits for pattern, bits in table.items() if layer.matches(pattern)}
            if len(set(widths.values())) > 1:
                raise ValueError(
                    f"`{argument}` gives layer {layer.name!r} several widths: {widths}; leave one pattern that "
                    "matches it"
                )
        for pattern in table:
            matched = [layer for layer in candidates if layer.matches(pattern)]
            if all(reasons[layer.name] for layer in matched):
                raise ValueError(
                    f"`{argument}` sets the bits of {pattern!r}, but all it matches stays float: {matched[0].name!r} "
                    f"({reasons[matched[0].name]})"
                )


def _layer_plan(layer: _Candidate, reason: str, config: QuantizationConfig, shared: set[int]) -> LayerPlan:
    module, names = layer.module, weight_names(layer.module)
    weight_bits, activation_bits = (None, None) if reason else _widths(layer, config)
    known = not any(is_lazy(parameter) for parameter in module.parameters())
    tensors = [peek_weight(module, name) for name in names] if known else []
    sources = [_sources(module, name) for name in names] if known else []
    own = [tensor for tensor, ids in zip(tensors, sources, strict=True) if not ids & shared]
    shared.update(*sources)
    float_bytes = quantized_bytes = sum(tensor.nbytes for tensor in own)
    if weight_bits is not None:
        channels = getattr(module, "out_channels", None)
        scales = sum(config.weight.scales(channels or tensor.shape[0]) for tensor in own)
        quantized_bytes = sum((tensor.numel() * weight_bits + 7) // 8 for tensor in own) + 4 * scales
    return LayerPlan(
        name=layer.name,
        type=type(module).__name__,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        shapes=tuple(tuple(tensor.shape) for tensor in tensors),
        weights=sum(tensor.numel() for tensor in own),
        float_bytes=float_bytes,
        quantized_bytes=quantized_bytes,
        reason=reason,
    )


def _sources(module: nn.Module, name: str) -> set[int]:
    """Identities of the parameters that a weight is made of: itself, or what its parametrization holds."""
    path, _, attribute = name.rpartition(".")
    owner = module.get_submodule(path)
    if is_parametrized(owner, attribute):
        return {id(p) for p in owner.get_submodule(f"parametrizations.{attribute}").parameters()}
    # Pruning keeps the parameter as `weight_orig`, legacy weight norm as `weight_g` and `weight_v`.
    keys = {attribute, f"{attribute}_orig", f"{attribute}_g", f"{attribute}_v"}
    return {id(p) for key, p in owner.named_parameters(recurse=False) if key in keys}


def _widths(layer: _Candidate, config: QuantizationConfig) -> tuple[int, int | None]:
    """Weight and activation bits of a layer that is quantized."""
    weight_bits, activation_bits = config.weight.bits, config.activation_bits
    for pattern, bits in config.weight_bits_by_layer.items():
        if layer.matches(pattern):
            weight_bits = bits
    for pattern, bits in config.activation_bits_by_layer.items():
        if layer.matches(pattern):
            activation_bits = bits
    return weight_bits, activation_bits if input_names(layer.module) else None
