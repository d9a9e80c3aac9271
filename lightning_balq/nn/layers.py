"""Layers that can be quantized: what their weights are called and how a forward runs on quantized ones.

A quantized layer is the float layer with its class swapped (see ``swap.py``) for one of the mixins below over the
original class, and a :class:`LayerQuantizer` in its ``__dict__``. Parameters stay the float ones.
"""

import inspect
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_balq.nn.activation import ActivationQuantizer
from lightning_balq.nn.cache import LevelCache
from lightning_balq.nn.quantizer import WeightQuantizer
from lightning_balq.nn.schedule import Schedule
from lightning_balq.nn.swap import Swapped, original_class

STATE = "_balq"
"""Key of the :class:`LayerQuantizer` in the ``__dict__`` of a quantized layer."""

RUNNING = "_balq_running"
"""Key in the ``__dict__`` of a layer while its forward is under way, in which its weights read as quantized."""

QUANTIZABLE: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Conv1d: ("weight",),
    nn.Conv2d: ("weight",),
    nn.Conv3d: ("weight",),
    nn.ConvTranspose1d: ("weight",),
    nn.ConvTranspose2d: ("weight",),
    nn.ConvTranspose3d: ("weight",),
    nn.Embedding: ("weight",),
    nn.MultiheadAttention: (
        "in_proj_weight",
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "out_proj.weight",
    ),
}
"""Types that can be quantized, subclasses included, and the dotted names of their weights."""

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
LAUNCH_BOUND = {"cuda"}
"""Types of devices on which quantizing all weights of a model together costs little more than quantizing one."""

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass
class LayerQuantizer:
    """State of one quantized layer: how its weights and inputs are quantized.

    Attributes:
        weight: quantizer of every weight of the layer.
        weight_names: dotted names of those weights.
        inputs: activation quantizers by input, empty if activations stay float.
        schedule: shared with the layers quantized together.
        cache: likewise.
    """

    weight: WeightQuantizer
    weight_names: tuple[str, ...]
    inputs: dict[str, ActivationQuantizer]
    schedule: Schedule = field(repr=False, compare=False)
    cache: LevelCache = field(repr=False, compare=False)

    def settings(self) -> str:
        """What distinguishes it from the state of a layer quantized in another way."""
        inputs = {name: (q.bits, q.range_mode, q.sign) for name, q in self.inputs.items()}
        return f"{self.weight} with inputs {inputs}" if inputs else f"{self.weight} with float inputs"

    def quantize_weight(self, layer: nn.Module, name: str) -> Tensor:
        """Fake-quantize the weight called ``name`` as it is now, keeping zero what pruning or padding set to zero."""
        weight = get_weight(layer, name)
        if self.schedule.phase == "float":
            return weight
        if torch.compiler.is_compiling() or self.schedule.timer is None:
            return self._quantize_weight(layer, name, weight)
        with self.schedule.timer.measure(weight.device):
            return self._quantize_weight(layer, name, weight)

    def quantize_input(self, layer: nn.Module, name: str, value: Tensor) -> Tensor:
        """Fake-quantize the input called ``name``; integers and unlisted inputs pass."""
        quantizer = self.inputs.get(name)
        if quantizer is None or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        # Validation and prediction run without gradients, and must change nothing, in whatever mode a layer is.
        observe = layer.training and torch.is_grad_enabled()
        if torch.compiler.is_compiling() or self.schedule.timer is None:
            return self._quantize_input(quantizer, value, observe)
        with self.schedule.timer.measure(value.device):
            return self._quantize_input(quantizer, value, observe)

    def _quantize_weight(self, layer: nn.Module, name: str, weight: Tensor) -> Tensor:
        quantized = self.weight.attach_gradient(weight, self._levels(layer, weight))
        owner, attribute = _owner(layer, name)
        mask = owner._buffers.get(f"{attribute}_mask")  # set by torch.nn.utils.prune
        if mask is not None:
            quantized = quantized * mask  # the grid has no zero level
        return quantized if self.schedule.phase == "quantized" else self.schedule.mix(weight, quantized)

    def _levels(self, layer: nn.Module, weight: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._compute_levels(layer, weight)
        return self.cache.get(weight, self._kind(layer), lambda: self._compute_levels(layer, weight))

    def _kind(self, layer: nn.Module) -> Hashable:
        """What, beside a weight, decides about its levels."""
        return self.weight, _arrangement(layer)

    def _compute_levels(self, layer: nn.Module, weight: Tensor) -> Tensor:
        if weight.device.type in LAUNCH_BOUND and self.cache.can_hold(weight):
            return self._compute_levels_of_all(layer, weight)
        return _from_channels(layer, weight, self.weight.levels(_swap_channels(layer, weight)))

    def _compute_levels_of_all(self, layer: nn.Module, weight: Tensor) -> Tensor:
        """Levels of this weight; those of all others that will be asked for next are computed with it, and kept."""
        jobs = [(layer, weight), *self._stale(weight)]
        levels = self.weight.levels_of_all([_swap_channels(*job) for job in jobs])
        first, *others = [_from_channels(*job, result) for job, result in zip(jobs, levels, strict=True)]
        for (other, parameter), result in zip(jobs[1:], others, strict=True):
            self.cache.put(parameter, self._kind(other), result)
        return first

    def _stale(self, weight: Tensor) -> list[tuple[nn.Module, nn.Parameter]]:
        """Weights beside this one that the same quantizer has to quantize on the same device."""
        found: dict[tuple[int, Hashable], tuple[nn.Module, nn.Parameter]] = {}
        for layer in self.cache.layers():
            state: LayerQuantizer | None = layer.__dict__.get(STATE)
            if state is None or state.cache is not self.cache or state.weight != self.weight:
                continue
            for name in state.weight_names:
                owner, attribute = _owner(layer, name)
                parameter = owner._parameters.get(attribute)
                if parameter is None or parameter is weight or parameter.device != weight.device:
                    continue
                if self.cache.find(parameter, self._kind(layer)) is None:
                    found[id(parameter), self._kind(layer)] = layer, parameter
        return list(found.values())

    def _quantize_input(self, quantizer: ActivationQuantizer, value: Tensor, observe: bool) -> Tensor:
        quantized = quantizer(value, observe=observe)
        if self.schedule.phase == "float":
            return value
        return quantized if self.schedule.phase == "quantized" else self.schedule.mix(value, quantized)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, LayerQuantizer]]:
    """Name, module and state of each quantized layer, in the order of ``named_modules()``."""
    for name, module in model.named_modules():
        if STATE in module.__dict__:
            yield clean_name(name), module, module.__dict__[STATE]


def activation_quantizers(model: nn.Module) -> list[ActivationQuantizer]:
    """Activation quantizers of all quantized layers, in the order of ``named_modules()``."""
    return [quantizer for _, _, state in quantized_layers(model) for quantizer in state.inputs.values()]


def clean_name(name: str) -> str:
    """Name of a module without what compile, FSDP and checkpoint wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def codes_by_channel(layer: nn.Module, quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
    """Codes of a weight of ``layer``, output channels in dim 0."""
    return quantizer.codes(_swap_channels(layer, weight))


def _swap_channels(layer: nn.Module, weight: Tensor) -> Tensor:
    """Bring the output channels of a transposed convolution to dim 0, (in, out/g, ..) to (out, in/g, ..), or back."""
    if not isinstance(layer, _TRANSPOSED):
        return weight
    grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
    return grouped.transpose(1, 2).flatten(0, 1)


def _from_channels(layer: nn.Module, weight: Tensor, levels: Tensor) -> Tensor:
    """Bring levels with output channels in dim 0 back to the arrangement of ``weight``; padding stays as it is."""
    levels = _swap_channels(layer, levels)
    if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:  # the grid has no zero level
        rows = torch.arange(weight.shape[0], device=weight.device)[:, None]
        levels = torch.where(rows == layer.padding_idx, weight.detach(), levels.to(weight.dtype))
    return levels


def _arrangement(layer: nn.Module) -> Hashable:
    """What of a layer, beside its quantizer, decides about the levels of its weight."""
    if isinstance(layer, _TRANSPOSED):
        return ("transposed", layer.groups)
    if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
        return ("padding", layer.padding_idx)
    return None  # so that a tied weight is quantized once


def get_weight(layer: nn.Module, name: str) -> Tensor:
    """Weight of ``layer`` by dotted name, as its forward would read it."""
    owner, attribute = _owner(layer, name)
    weight: Tensor = getattr(owner, attribute)
    return weight


def peek_weight(layer: nn.Module, name: str) -> Tensor:
    """Weight of ``layer`` by dotted name, without the side effects that reading a parametrized one has in training."""
    owner, attribute = _owner(layer, name)
    if not is_parametrized(owner, attribute):
        return get_weight(layer, name)
    parametrizations = owner.get_submodule(f"parametrizations.{attribute}")
    modes = {module: module.training for module in parametrizations.modules()}
    try:
        parametrizations.eval()  # spectral_norm iterates in training mode
        return get_weight(layer, name)
    finally:
        for module, training in modes.items():
            module.training = training


def weight_names(layer: nn.Module) -> tuple[str, ...]:
    """Dotted names of the weights that ``layer`` has; empty if it is of no quantizable type."""
    for base, names in QUANTIZABLE.items():
        if isinstance(layer, base):
            return tuple(name for name in names if _exists(layer, name))
    return ()


def input_names(layer: nn.Module) -> tuple[str, ...]:
    """Names of the inputs of ``layer`` whose values are activations."""
    if isinstance(layer, nn.Embedding):
        return ()
    is_attention = layer_mixin(original_class(layer)) is QuantizedAttention
    return ("query", "key", "value") if is_attention else ("input",)


def _exists(layer: nn.Module, name: str) -> bool:
    owner, attribute = _owner(layer, name)
    if is_parametrized(owner, attribute):
        return True
    return (owner._parameters | owner.__dict__).get(attribute) is not None


def _owner(layer: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return layer.get_submodule(path) if path else layer, attribute


class QuantizedLayer(Swapped):
    """Mixin of every quantized layer: runs the forward of the original class while its weights read as quantized.

    Right for any forward, users' own included. Not safe for concurrent calls of one layer from several threads.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Quantize the first tensor given and every weight, and call the original forward."""
        layer = _module(self)
        quantizer: LayerQuantizer = layer.__dict__[STATE]
        original = super().forward  # type: ignore[misc]  # "forward" undefined in superclass
        args, kwargs = _map_first_tensor(lambda x: quantizer.quantize_input(layer, "input", x), original, args, kwargs)
        if RUNNING in layer.__dict__:  # a forward that calls itself
            return original(*args, **kwargs)
        with quantized_weights(layer, quantizer):
            return original(*args, **kwargs)


class QuantizedLinear(QuantizedLayer):
    """Direct forward of :class:`torch.nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the quantized weight to the quantized input."""
        layer = _module(self)
        quantizer: LayerQuantizer = layer.__dict__[STATE]
        weight = quantizer.quantize_weight(layer, "weight")
        return F.linear(quantizer.quantize_input(layer, "input", input), weight, layer.bias)


class QuantizedConv(QuantizedLayer):
    """Direct forward of the convolutions of :mod:`torch.nn`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the quantized weight to the quantized input."""
        layer = _module(self)
        quantizer: LayerQuantizer = layer.__dict__[STATE]
        weight = quantizer.quantize_weight(layer, "weight")
        output: Tensor = layer._conv_forward(quantizer.quantize_input(layer, "input", input), weight, layer.bias)
        return output


class QuantizedAttention(QuantizedLayer):
    """Forward of :class:`torch.nn.MultiheadAttention`, whose fast path compares its inputs by identity."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Quantize each distinct input once, and every projection weight; the input of ``out_proj`` stays float."""
        layer = _module(self)
        quantizer: LayerQuantizer = layer.__dict__[STATE]
        done: dict[int, Tensor] = {}
        for name, given in (("query", query), ("key", key), ("value", value)):
            if id(given) not in done:
                done[id(given)] = quantizer.quantize_input(layer, name, given)
        inputs = [done[id(given)] for given in (query, key, value)]
        with quantized_weights(layer, quantizer):
            return super(QuantizedLayer, self).forward(*inputs, *args, **kwargs)  # type: ignore[misc]  # as above


class SlowPathEncoderLayer(Swapped):
    """Mixin of a ``TransformerEncoderLayer`` with quantized parts: keeps evaluation off torch's fused path.

    That path reads the weights of the parts without calling them, so it would silently run the float network.
    """

    @property
    def activation_relu_or_gelu(self) -> int:
        """One of torch's own conditions for the fused path, and used for nothing else."""
        return 0

    @activation_relu_or_gelu.setter
    def activation_relu_or_gelu(self, value: int) -> None:
        self.__dict__["activation_relu_or_gelu"] = value


class SlowPathEncoder(Swapped):
    """Mixin of a ``TransformerEncoder`` with quantized parts: no nested tensors, which need the fused path."""

    @property
    def use_nested_tensor(self) -> bool:
        """One of torch's own conditions for nested tensors."""
        return False

    @use_nested_tensor.setter
    def use_nested_tensor(self, value: bool) -> None:
        self.__dict__["use_nested_tensor"] = value


@contextmanager
def quantized_weights(layer: nn.Module, quantizer: LayerQuantizer) -> Iterator[None]:
    """Within the context, reading a weight of ``layer`` gives the quantized one."""
    with ExitStack() as stack:
        for name in quantizer.weight_names:
            value = quantizer.quantize_weight(layer, name)
            owner, attribute = _owner(layer, name)
            stack.enter_context(_override(owner, attribute, value))
        layer.__dict__[RUNNING] = True
        try:
            yield
        finally:
            del layer.__dict__[RUNNING]


@contextmanager
def _override(owner: nn.Module, name: str, value: Tensor) -> Iterator[None]:
    described = getattr(type(owner), name, None)
    if isinstance(described, property):  # a parametrization: a property on a class of this module alone
        holder = next(cls for cls in type(owner).__mro__ if name in cls.__dict__)
        setattr(holder, name, property(lambda _: value))
        try:
            yield
        finally:
            setattr(holder, name, described)
        return
    # An entry that is there already belongs to pruning, legacy weight norm or FSDP.
    entries, missing = owner.__dict__, object()
    earlier = entries.get(name, missing)
    entries[name] = value
    try:
        yield
    finally:
        if earlier is missing:
            del entries[name]
        else:
            entries[name] = earlier


def _map_first_tensor(
    function: Callable[[Tensor], Tensor], forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Apply ``function`` to the first argument of ``forward`` that is a tensor, in the order of its signature."""
    for index, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:index], function(value), *args[index + 1 :]), kwargs
    order = list(inspect.signature(forward).parameters) if len(kwargs) > 1 else []
    for key in sorted(kwargs, key=lambda key: order.index(key) if key in order else len(order)):
        if isinstance(kwargs[key], Tensor):
            return args, {**kwargs, key: function(kwargs[key])}
    return args, kwargs


def _module(mixin: Any) -> Any:
    """The mixin seen as the module it is mixed into, for the type checker."""
    return mixin


def layer_mixin(cls: type[nn.Module]) -> type[Swapped]:
    """Choose the mixin for a class of a quantizable type: direct where the forward is torch's own, else general."""
    if cls.forward is nn.MultiheadAttention.forward:
        return QuantizedAttention
    if cls.forward is nn.Linear.forward:
        return QuantizedLinear
    for conv in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if issubclass(cls, conv) and cls.forward is conv.forward and cls._conv_forward is conv._conv_forward:
            return QuantizedConv
    return QuantizedLayer
