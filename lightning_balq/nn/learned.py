"""Parameters that quantized layers learn beside their own: scales of weights, scales and ranges of inputs.

They are parameters of the layer, called ``balq_..``, so that optimizers, DDP and averaging find them where they look
for parameters. The ``state_dict()`` of a float model loads all the same: what it does not hold begins anew.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_balq.nn.activation import ActivationQuantizer
from lightning_balq.nn.layers import STATE, LayerQuantizer, quantized_layers
from lightning_balq.nn.learned_activation import LearnedActivationQuantizer
from lightning_balq.nn.quantizer import LearnedScaleQuantizer
from lightning_balq.nn.swap import Swapped, module_of
from lightning_balq.nn.weights import peek_weight, swap_channels, weight_sources


class Learning(Swapped):
    """Mixin of every quantized layer, for what the layer learns.

    It loads a ``state_dict`` with or without it, and keeps it in float32 where the layer is converted to a type of
    lower precision: the steps of an optimizer are too small for the places of bfloat16.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *options: Any, **more: Any) -> Any:
        parameters = module_of(self)._parameters
        held = [parameters[name] for name in module_of(self).__dict__[STATE].learned() if name in parameters]
        kept = {id(tensor) for parameter in held for tensor in (parameter, parameter.grad) if tensor is not None}

        def convert(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            if id(tensor) in kept and converted.is_floating_point() and converted.itemsize < tensor.itemsize:
                return tensor.to(converted.device, torch.float32)
            return converted

        return super()._apply(convert, *options, **more)  # type: ignore[misc]  # undefined in superclass

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *others: Any,
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *others)  # type: ignore[misc]  # undefined in superclass
        state: LayerQuantizer = module_of(self).__dict__[STATE]
        names = state.learned()
        missing_keys[:] = [key for key in missing_keys if key.removeprefix(prefix) not in names]
        for name in names:
            still = name in state.begins and state.is_beginning(name)
            state.renew(name, begin=prefix + name not in state_dict or still)
        note_zeros(module_of(self), state)


def note_zeros(layer: nn.Module, state: LayerQuantizer) -> None:
    """Find out which weights of ``layer`` were pruned, if it has weights by now."""
    if not any(is_lazy(parameter) for parameter in layer.parameters()):
        state.note_zeros(layer)


def note_masks(model: nn.Module) -> None:
    """Remember which weights of ``model`` are pruned by a mask, before that is made permanent."""
    for _, layer, state in quantized_layers(model):
        state.note_masks(layer)


def check_learnable(name: str, layer: nn.Module, state: LayerQuantizer) -> None:
    """Raise :class:`ValueError` if ``layer`` cannot be given what its quantizers learn."""
    if state.learned() and any(is_lazy(parameter) for parameter in layer.parameters()):
        raise ValueError(
            f"layer {name!r} has no weights yet, and the scales that it would learn have their shape: run a batch "
            "through the model first, or use a quantizer that learns nothing"
        )


def add_learned_parameters(layer: nn.Module, state: LayerQuantizer) -> None:
    """Give ``layer`` the parameters that its quantizers learn; those of weights at their initial values.

    What belongs to a frozen weight, or to the input of a layer of frozen weights, is frozen too.
    """
    with torch.inference_mode(False), torch.no_grad():
        for name, source in state.learned().items():
            quantizer = state.weights.get(source)
            if isinstance(quantizer, LearnedScaleQuantizer):
                begin = quantizer.begin(swap_channels(layer, peek_weight(layer, source)))
            else:
                begin = torch.ones(1, dtype=torch.float32, device=next(layer.parameters()).device)
            trains = any(parameter.requires_grad for parameter in _sources(layer, state, source))
            layer.register_parameter(name, nn.Parameter(begin, requires_grad=trains))
            state.renew(name, begin=True)


def remove_learned_parameters(layer: nn.Module, state: LayerQuantizer) -> None:
    """Undo :func:`add_learned_parameters`."""
    for name in state.learned():
        layer._parameters.pop(name, None)


def learned_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Name and value of each learned parameter of ``model``, and whether weight decay belongs to its method."""
    for path, layer, state in quantized_layers(model):
        for name, source in state.learned().items():
            parameter = layer._parameters[name]
            assert parameter is not None
            activation = state.inputs.get(source)
            yield f"{path}.{name}" if path else name, parameter, getattr(activation, "range_mode", "") == "pact"


def beginning_parameters(model: nn.Module) -> list[str]:
    """Names of the learned parameters of ``model`` whose value the next training batch decides."""
    return [
        f"{path}.{name}".removeprefix(".")
        for path, _, state in quantized_layers(model)
        for name in state.learned()
        if state.is_beginning(name)
    ]


def begin_parameters(model: nn.Module, names: Collection[str]) -> None:
    """Let the learned parameters of these names begin anew, also if a value is loaded for them now."""
    for path, _, state in quantized_layers(model):
        state.begins = {name for name in state.learned() if f"{path}.{name}".removeprefix(".") in names}
        for name in state.begins:
            state.renew(name, begin=True)


def untrained_parameters(model: nn.Module, optimizers: Iterable[Optimizer]) -> list[str]:
    """Names of the learned parameters of ``model`` that no optimizer trains, although it trains what they belong to."""
    trained = {
        id(parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    }
    found = []
    for path, layer, state in quantized_layers(model):
        for name, source in state.learned().items():
            if id(layer._parameters[name]) not in trained and any(
                id(parameter) in trained for parameter in _sources(layer, state, source)
            ):
                found.append(f"{path}.{name}".removeprefix("."))
    return found


def _sources(layer: nn.Module, state: LayerQuantizer, source: str) -> list[nn.Parameter]:
    """Parameters of a weight; of an input, those of the weights of its layer."""
    names = [source] if source in state.weights else list(state.weights)
    return [parameter for name in names for parameter in weight_sources(layer, name)]


def restart_learning(model: nn.Module) -> None:
    """Let everything that the quantizers of ``model`` learn begin anew, at what the next batch shows."""
    for _, _, state in quantized_layers(model):
        for name in state.learned():
            state.renew(name, begin=True)


def is_starting(quantizer: ActivationQuantizer) -> bool:
    """Whether ``quantizer`` learns something for which no batch has shown yet where it begins."""
    return isinstance(quantizer, LearnedActivationQuantizer) and not quantizer.ready
