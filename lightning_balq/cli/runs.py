"""Run a model, and look at its layers meanwhile, also as they were run elsewhere."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_balq.cli.precise import PreciseProducts
from lightning_balq.export.onnx.marks import LayerCall, map_tensors
from lightning_balq.nn import quantized_layers
from lightning_balq.nn.layers import clean_name


@dataclass(frozen=True)
class Exported:
    """What an exported file computed.

    Attributes:
        outputs: floating-point tensors in the order of the outputs.
        calls: of the layers that the file tells apart, in their order, with tensors.
        outputs_of: names of modules whose outputs are those of a layer in the file: of batch norms that it holds.
        note: why it does not tell others.
    """

    outputs: list[Tensor]
    calls: list[LayerCall]
    outputs_of: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def run_model(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Floating-point outputs of a model.

    Raises:
        ValueError: if it does not run on these inputs, or has none.
    """
    try:
        outputs = tensors_of(model(*args, **kwargs))
    except Exception as error:  # whatever a model of the user raises
        raise ValueError(f"the model does not run on the inputs: {error!r}") from error
    if not outputs:
        raise ValueError("the model returns no floating-point tensor to compare")
    return outputs


def tensors_of(value: Any) -> list[Tensor]:
    """All floating-point tensors of an output, in a fixed order, whatever form it has."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() and value.numel() else []
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


@contextmanager
def noting(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Within the context, outputs of quantized layers are noted by the name of the layer."""
    noted: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            noted.setdefault(name, []).extend(tensor.detach().clone() for tensor in tensors_of(output))

        return hook

    handles = [layer.register_forward_hook(note(name)) for name, layer, _ in quantized_layers(model)]
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()


def forced(
    model: nn.Module, exported: Exported, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Outputs of layers in the model and in the engine, where each layer of the model gets the inputs of the engine.

    In the model, these layers sum products in float64: a difference is the rounding of the engine, and not that of
    torch too. Recurrent layers do not: within them, roundings decide about the codes of states.
    Layers that the engine does not call as often as the model does are left out.
    """
    calls: dict[str, list[LayerCall]] = defaultdict(list)
    for call in exported.calls:
        calls[call.layer].append(call)
    begun = dict.fromkeys(calls, 0)
    pairs: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in calls}
    modules = {clean_name(name): module for name, module in model.named_modules()}
    unknown = {*calls, *exported.outputs_of.values()} - modules.keys()
    if unknown:
        raise ValueError(f"the file tells of a layer {min(unknown)!r}, and the model has none of that name")
    handles = []
    precise = ExitStack()

    def before(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, given: Any, keywords: Any) -> Any:
            begun[name] += 1
            if begun[name] > len(calls[name]):
                return None
            if not isinstance(module, nn.RNNBase):
                precise.enter_context(PreciseProducts())
            places, inputs = count(), calls[name][begun[name] - 1].inputs
            return map_tensors((given, keywords), lambda tensor: inputs.get(next(places), tensor))

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if begun[name] > len(calls[name]):
                return
            precise.close()
            places, outputs = count(), calls[name][begun[name] - 1].outputs
            right, found = pairs[name]

            def take(tensor: Tensor) -> None:
                other = outputs.get(next(places))
                if other is not None and tensor.is_floating_point() and tensor.numel():
                    right.append(tensor.clone())
                    found.append(other)

            map_tensors(output, take)

        return hook

    try:
        for name in calls:
            handles.append(modules[name].register_forward_pre_hook(before(name), with_kwargs=True))
            seen = modules[exported.outputs_of.get(name, name)]
            handles.append(seen.register_forward_hook(after(name)))
        run_model(model, args, kwargs)
    finally:
        precise.close()
        for handle in handles:
            handle.remove()
    return {name: pair for name, pair in pairs.items() if begun[name] == len(calls[name]) and pair[0]}
