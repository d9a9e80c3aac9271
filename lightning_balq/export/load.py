"""Turn a float model into the network of a packed file."""

import os

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm

from lightning_balq.export.describe import other_tensors, type_name
from lightning_balq.export.description import Description, QuantizedLayer, QuantizedWeight, join
from lightning_balq.export.packed import read_packed
from lightning_balq.export.stored import StoredWeight, input_quantizer
from lightning_balq.nn.cache import LevelCache
from lightning_balq.nn.forward import input_names
from lightning_balq.nn.layers import REASON, LayerQuantizer, clean_name, quantized_layers
from lightning_balq.nn.quantize import adopt_, install_
from lightning_balq.nn.schedule import Schedule
from lightning_balq.nn.states import state_names
from lightning_balq.nn.weights import owner_of, peek_weight, transposed_groups, weight_names


def load_packed(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Make a float model the network of a packed file, for inference.

    Its forward (under ``torch.no_grad()``, as in prediction) is then, bit for bit, that of the quantized model that was
    packed: weights are replaced by their levels and need no gradient, activations are quantized at the ranges stored.
    It is put into evaluation mode. A weight that was parametrized or pruned becomes a plain parameter.

    Args:
        path: file that :func:`pack` wrote.
        model: of the same architecture and types, on any device; not quantized.

    Returns:
        ``model``.

    Raises:
        ImportError: if safetensors is not installed: it comes with ``pip install lightning-balq[export]``.
        TypeError: if ``model`` is not a module.
        ValueError: if the file is not a packed one or not whole, or belongs to another architecture. The model is then
            as it was.
        OSError: if the file cannot be read.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
    description = read_packed(path)
    try:
        apply_(description, model)
    except ValueError as error:
        raise ValueError(f"{str(os.fspath(path))!r} does not fit the model: {error}") from error
    return model


@torch.no_grad()
def apply_(description: Description, model: nn.Module) -> None:
    """Make a float model what a description says; see :func:`load_packed`."""
    _check(description, model)
    modules = {clean_name(name): module for name, module in model.named_modules()}
    present = other_tensors(model, description.layers)
    schedule, cache = Schedule(), LevelCache()
    made: dict[tuple[int, torch.device], nn.Parameter] = {}
    with torch.inference_mode(False):
        for key, value in description.tensors.items():
            present[key].copy_(value)
        wanted = {}
        for name, layer in description.layers.items():
            for key, weight in layer.weights.items():
                _replace(modules[name], key, weight, made)
            quantizers = {key: StoredWeight(weight.bits, weight) for key, weight in layer.weights.items()}
            inputs = {key: input_quantizer(given) for key, given in layer.inputs.items()}
            wanted[modules[name]] = LayerQuantizer(dict(quantizers), inputs, schedule, cache)
        install_(wanted)
    for quantizer in wanted.values():
        quantizer.pruned = ()  # zeros are among the levels already
    for name, reason in description.reasons.items():
        if name in modules:
            modules[name].__dict__[REASON] = reason
    adopt_(model, schedule, cache)
    model.eval()


def _check(description: Description, model: nn.Module) -> None:
    """Raise :class:`ValueError` unless all of the description has a place in the model, and the other way round."""
    if any(True for _ in quantized_layers(model)):
        raise ValueError("it is quantized already; expected a float model, as its class makes it")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.device.type == "meta":
            raise ValueError(
                f"its parameter {name!r} has no values yet; run a batch through it, or build it on a device"
            )
    modules = {clean_name(name): module for name, module in model.named_modules()}
    for name, layer in description.layers.items():
        if name not in modules:
            raise ValueError(f"it has no layer {name!r}, a {layer.type} in the file")
        _check_layer(name, layer, modules[name])
    present = other_tensors(model, description.layers)
    missing, unknown = sorted(present.keys() - description.tensors), sorted(description.tensors.keys() - present)
    if missing or unknown:
        raise ValueError(
            f"it has {_some(missing)} beside the quantized layers that the file has not, and the file has "
            f"{_some(unknown)} that it has not"
        )
    for key, value in description.tensors.items():
        _check_same(repr(key), value, present[key])


def _check_layer(name: str, described: QuantizedLayer, layer: nn.Module) -> None:
    if type_name(layer) != described.type:
        raise ValueError(f"its layer {name!r} is a {type_name(layer)}, in the file a {described.type}")
    for key, weight in described.weights.items():
        where = repr(join(name, key))
        if key not in weight_names(layer):
            raise ValueError(f"it has no weight {where}")
        if transposed_groups(layer) != weight.groups:
            raise ValueError(f"the weight {where} has {transposed_groups(layer)} groups, in the file {weight.groups}")
        row = layer.padding_idx if isinstance(layer, nn.Embedding) else None
        if row != weight.padding_row:
            raise ValueError(f"the `padding_idx` of {name!r} is {row}, in the file {weight.padding_row}")
        _check_same(where, torch.empty(weight.shape, dtype=weight.dtype, device="meta"), peek_weight(layer, key))
    unknown = described.inputs.keys() - {*input_names(layer), *state_names(layer)}
    if unknown:
        raise ValueError(f"its layer {name!r} has no input {min(unknown)!r} that could be quantized")


def _check_same(name: str, stored: Tensor, present: Tensor) -> None:
    if stored.shape != present.shape or stored.dtype != present.dtype:
        raise ValueError(
            f"its {name} is {present.dtype} of shape {tuple(present.shape)}, in the file {stored.dtype} of shape "
            f"{tuple(stored.shape)}"
        )


def _some(keys: list[str]) -> str:
    if not keys:
        return "nothing"
    return ", ".join(map(repr, keys[:3])) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _replace(
    layer: nn.Module, key: str, weight: QuantizedWeight, made: dict[tuple[int, torch.device], nn.Parameter]
) -> None:
    """Put a parameter at the levels in place of a weight; weights that are one in the file are one parameter again."""
    owner, attribute = owner_of(layer, key)
    _make_plain(owner, attribute)
    present: Tensor = getattr(owner, attribute)
    same = (id(weight), present.device)
    if same not in made:
        # In the memory format of the weight, on which the order of the sums in a convolution can depend.
        made[same] = nn.Parameter(torch.empty_like(present).copy_(weight.levels()), requires_grad=False)
    setattr(owner, attribute, made[same])


def _make_plain(owner: nn.Module, attribute: str) -> None:
    """Leave a weight that is made of other parameters as a parameter of its own."""
    if parametrize.is_parametrized(owner, attribute):
        parametrize.remove_parametrizations(owner, attribute, leave_parametrized=True)
    if f"{attribute}_mask" in owner._buffers:
        prune.remove(owner, attribute)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    if f"{attribute}_g" in owner._parameters and attribute not in owner._parameters:
        remove_weight_norm(owner, attribute)
    if f"{attribute}_u" in owner._buffers and attribute not in owner._parameters:
        remove_spectral_norm(owner, attribute)
