"""State of quantized layers, and the quantizing of their weights and inputs as they are now.

A quantized layer is the float layer with its class swapped (see ``swap.py``) for a mixin (see ``forward.py``) over the
original class, and a :class:`LayerQuantizer` in its ``__dict__``. Parameters stay the float ones.
"""

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_balq.functional.grid import connect
from lightning_balq.functional.lsq import lsq_scale
from lightning_balq.nn.activation import ActivationQuantizer
from lightning_balq.nn.cache import LevelCache
from lightning_balq.nn.learned_activation import LearnedActivationQuantizer
from lightning_balq.nn.quantizer import LearnedScaleQuantizer, WeightQuantizer
from lightning_balq.nn.schedule import Schedule
from lightning_balq.nn.weights import (
    arrangement,
    check_undivided,
    from_channels,
    get_weight,
    is_partly_zero,
    owner_of,
    peek_weight,
    pruning_mask,
    swap_channels,
    whole,
)

STATE = "_balq"
"""Key of the :class:`LayerQuantizer` in the ``__dict__`` of a quantized layer."""

RUNNING = "_balq_running"
"""Key in the ``__dict__`` of a layer while its forward is under way, in which its weights read as quantized."""

LOG_SCALE = "balq_log_scale_"
"""What the names of parameters begin with that hold the logarithm of a learned scale."""

REASON = "_balq_float"
"""Key in the ``__dict__`` of a layer that could be quantized and is not: why it stays float."""

LAUNCH_BOUND = {"cuda"}
"""Types of devices on which quantizing all weights of a model together costs little more than quantizing one."""

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass
class LayerQuantizer:
    """State of one quantized layer: how its weights and inputs are quantized.

    Attributes:
        weights: quantizers by the dotted names of the weights.
        inputs: activation quantizers by input, empty if activations stay float; a hidden state is an input too.
        schedule: shared with the layers quantized together.
        cache: likewise.
    """

    weights: dict[str, WeightQuantizer]
    inputs: dict[str, ActivationQuantizer]
    schedule: Schedule = field(repr=False, compare=False)
    cache: LevelCache = field(repr=False, compare=False)
    unset: set[str] = field(default_factory=set, repr=False, compare=False)
    """Learned scales of weights that begin anew at the next forward."""
    begins: set[str] = field(default_factory=set, repr=False, compare=False)
    """Learned parameters that had not begun when the checkpoint was written that is being loaded."""
    pruned: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """Weights of which some were exactly zero; what is zero of them stays zero, for the grid has no zero level."""
    told: tuple[str, ...] | None = field(default=None, repr=False, compare=False)
    """What the checkpoint that is being loaded says that :attr:`pruned` is; ``None`` if it says nothing of it."""

    def settings(self) -> str:
        """What distinguishes it from the state of a layer quantized in another way."""
        weights = list(dict.fromkeys(self.weights.values()))
        quantizers = str(weights[0]) if len(weights) == 1 else str(self.weights)
        inputs = {name: (q.bits, q.range_mode, q.sign) for name, q in self.inputs.items()}
        return f"{quantizers} with inputs {inputs}" if inputs else f"{quantizers} with float inputs"

    def quantize_weight(self, layer: nn.Module, name: str) -> Tensor:
        """Fake-quantize the weight called ``name`` as it is now, keeping zero what pruning or padding set to zero."""
        weight = get_weight(layer, name)
        check_undivided(layer, name, weight)
        if self.schedule.phase == "float":
            parameter = layer._parameters.get(_scale_name(name))
            weight = self._note_read(layer, name, weight)
            return weight if parameter is None else connect(weight, parameter)
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
            return self._quantize_input(layer, name, quantizer, value, observe)
        with self.schedule.timer.measure(value.device):
            return self._quantize_input(layer, name, quantizer, value, observe)

    def codes(self, layer: nn.Module, name: str) -> Tensor:
        """Codes of the weight called ``name``, output channels in dim 0; reading it has no side effects.

        Of a weight that is sharded by FSDP2, every rank has to ask for the codes, and gets all of them.
        """
        quantizer, weight = self.weights[name], swap_channels(layer, whole(peek_weight(layer, name)))
        if isinstance(quantizer, LearnedScaleQuantizer):
            return quantizer.codes_at(weight, self.learned_scale(layer, name, weight))
        return quantizer.codes(weight)

    def learned_scale(self, layer: nn.Module, name: str, rows: Tensor) -> Tensor:
        """Learned scale of the weight called ``name``, at which the next forward quantizes it; float32."""
        parameter, quantizer = _scale_name(name), self.weights[name]
        log_scale: Tensor = getattr(layer, parameter)
        if parameter in self.unset and isinstance(quantizer, LearnedScaleQuantizer):
            log_scale = quantizer.begin(rows).to(log_scale.dtype)
        return lsq_scale(log_scale.detach())

    def learned_range(self, layer: nn.Module, name: str) -> Tensor:
        """Parameter that holds the learned range of the input called ``name``, or the logarithm of its scale."""
        parameter: Tensor = getattr(layer, self._input_name(name))
        return parameter.detach()

    def learned(self) -> dict[str, str]:
        """Names of the parameters that quantizers learn, and of the weight or input that each belongs to."""
        weights = [name for name, quantizer in self.weights.items() if isinstance(quantizer, LearnedScaleQuantizer)]
        inputs = [name for name, quantizer in self.inputs.items() if isinstance(quantizer, LearnedActivationQuantizer)]
        return {_scale_name(name): name for name in weights} | {self._input_name(name): name for name in inputs}

    def renew(self, name: str, *, begin: bool) -> None:
        """Let a learned parameter begin anew, at what is seen next, or take its value as it is."""
        quantizer = self.inputs.get(self.learned()[name])
        if isinstance(quantizer, LearnedActivationQuantizer):
            if begin:
                quantizer.restart()
            else:
                quantizer.settle()
        elif begin:
            self.unset.add(name)
        else:
            self.unset.discard(name)

    def note_zeros(self, layer: nn.Module) -> None:
        """Find out which weights were pruned: by what a checkpoint tells, else by values that are exactly zero."""
        told, self.told = self.told, None
        if told is None:
            told = tuple(name for name in self.weights if is_partly_zero(layer, name))
        self.pruned = told
        self.note_masks(layer)

    def note_masks(self, layer: nn.Module) -> None:
        """Take weights that have a mask for pruned: it may be taken away, and its zeros stay."""
        masked = [name for name in self.weights if pruning_mask(layer, name) is not None]
        self.pruned = tuple(dict.fromkeys((*self.pruned, *masked)))

    def _note_read(self, layer: nn.Module, name: str, weight: Tensor) -> Tensor:
        """Tell the search for reads of float weights, if one is under way, that this one is a layer's own."""
        if torch.compiler.is_compiling() or self.schedule.reads is None:
            return weight
        return self.schedule.reads.own(layer, name, weight)

    def is_beginning(self, name: str) -> bool:
        """Whether the next training batch decides where a learned parameter begins."""
        quantizer = self.inputs.get(self.learned()[name])
        return not quantizer.ready if isinstance(quantizer, LearnedActivationQuantizer) else name in self.unset

    def _quantize_weight(self, layer: nn.Module, name: str, weight: Tensor) -> Tensor:
        quantizer = self.weights[name]
        mask = pruning_mask(layer, name)
        zero = weight == 0 if mask is None and name in self.pruned else None
        prepared = self._prepared(layer, quantizer, weight)
        if zero is not None:
            prepared = prepared.masked_fill(zero, 0.0)
        weight = self._note_read(layer, name, weight)
        if isinstance(quantizer, LearnedScaleQuantizer):
            quantized = self._scaled(layer, name, quantizer, weight, prepared)
            quantized = quantized if zero is None else torch.where(zero, weight, quantized)
        else:
            attached = quantizer.attach_gradient(swap_channels(layer, weight), swap_channels(layer, prepared))
            quantized = swap_channels(layer, attached)
        if mask is not None:
            quantized = quantized * mask
            if not torch.compiler.is_compiling() and name not in self.pruned:
                self.pruned = (*self.pruned, name)  # the mask may be taken away, and its zeros stay
        return quantized if self.schedule.phase == "quantized" else self.schedule.mix(weight, quantized)

    def _scaled(
        self, layer: nn.Module, name: str, quantizer: LearnedScaleQuantizer, weight: Tensor, prepared: Tensor
    ) -> Tensor:
        """Quantize a weight at a scale that is learned."""
        parameter = _scale_name(name)
        log_scale: Tensor = getattr(layer, parameter)
        rows = swap_channels(layer, weight)
        if parameter in self.unset:
            with torch.no_grad():
                log_scale.copy_(quantizer.begin(rows))
            if layer.training and torch.is_grad_enabled():  # until then weights may be loaded or changed
                self.unset.discard(parameter)
        levels = quantizer.scaled(rows, swap_channels(layer, prepared), lsq_scale(log_scale))
        return from_channels(layer, weight, levels)

    def _prepared(self, layer: nn.Module, quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
        """Levels of a weight, or what they are made of where a scale is learned."""
        if torch.compiler.is_compiling():
            return self._prepare(layer, quantizer, weight)
        kind = _kind(layer, quantizer)
        return self.cache.get(weight, kind, lambda: self._prepare(layer, quantizer, weight))

    def _prepare(self, layer: nn.Module, quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
        if weight.device.type in LAUNCH_BOUND and self.cache.can_hold(weight):
            return self._prepare_all(layer, quantizer, weight)
        return from_channels(layer, weight, quantizer.prepare(swap_channels(layer, weight)))

    def _prepare_all(self, layer: nn.Module, quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
        """Prepare this weight; all others that will be asked for next are prepared with it, and kept."""
        jobs = [(layer, weight), *self._stale(quantizer, weight)]
        levels = quantizer.prepare_all([swap_channels(*job) for job in jobs])
        first, *others = [from_channels(*job, result) for job, result in zip(jobs, levels, strict=True)]
        for (other, parameter), result in zip(jobs[1:], others, strict=True):
            self.cache.put(parameter, _kind(other, quantizer), result)
        return first

    def _stale(self, quantizer: WeightQuantizer, weight: Tensor) -> list[tuple[nn.Module, nn.Parameter]]:
        """Weights beside this one that the same quantizer has to quantize on the same device."""
        found: dict[tuple[int, Hashable], tuple[nn.Module, nn.Parameter]] = {}
        for layer in self.cache.layers():
            state: LayerQuantizer | None = layer.__dict__.get(STATE)
            if state is None or state.cache is not self.cache:
                continue
            kind = _kind(layer, quantizer)
            for name in [name for name, other in state.weights.items() if other == quantizer]:
                owner, attribute = owner_of(layer, name)
                parameter = owner._parameters.get(attribute)
                if parameter is None or parameter is weight or parameter.device != weight.device:
                    continue
                if self.cache.find(parameter, kind) is None:
                    found[id(parameter), kind] = layer, parameter
        return list(found.values())

    def _input_name(self, name: str) -> str:
        """Name of the parameter that holds the learned range of an input, or the logarithm of its learned scale."""
        return f"balq_range_{name}" if self.inputs[name].range_mode == "pact" else f"{LOG_SCALE}{name}"

    def _quantize_input(
        self, layer: nn.Module, name: str, quantizer: ActivationQuantizer, value: Tensor, observe: bool
    ) -> Tensor:
        if isinstance(quantizer, LearnedActivationQuantizer):
            parameter: Tensor = getattr(layer, self._input_name(name))
            if self.schedule.phase == "float":  # nothing is learned yet
                return connect(value, parameter)
            quantized = quantizer.learned(value, parameter, observe=observe)
        else:
            quantized = quantizer(value, observe=observe)
        if self.schedule.phase == "float":
            return value
        return quantized if self.schedule.phase == "quantized" else self.schedule.mix(value, quantized)


def _scale_name(weight: str) -> str:
    """Name of the parameter that holds the logarithm of the learned scale of a weight."""
    return f"{LOG_SCALE}{weight.replace('.', '_')}"


def _kind(layer: nn.Module, quantizer: WeightQuantizer) -> Hashable:
    """What, beside a weight, decides about its levels."""
    return quantizer, arrangement(layer)


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


@contextmanager
def quantized_weights(layer: nn.Module, quantizer: LayerQuantizer) -> Iterator[None]:
    """Within the context, reading a weight of ``layer`` gives the quantized one."""
    with ExitStack() as stack:
        for name in quantizer.weights:
            value = quantizer.quantize_weight(layer, name)
            owner, attribute = owner_of(layer, name)
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
    entries = owner.__dict__
    earlier = [entries[name]] if name in entries else []
    entries[name] = value
    try:
        yield
    finally:
        if earlier:
            entries[name] = earlier[0]
        else:
            del entries[name]
