"""Describe a quantized model: read off what its forward computes, and check that it is exactly that."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from lightning_balq.export.description import (
    Description,
    Grid,
    QuantizedInput,
    QuantizedLayer,
    QuantizedWeight,
    join,
)
from lightning_balq.export.fit import fit_odd_grid
from lightning_balq.export.stored import StoredWeight
from lightning_balq.nn.activation import ActivationQuantizer
from lightning_balq.nn.finite import check_layers
from lightning_balq.nn.layers import STATE, LayerQuantizer, clean_name, quantized_layers
from lightning_balq.nn.learned_activation import LearnedActivationQuantizer
from lightning_balq.nn.quantizer import (
    DoReFaQuantizer,
    LearnedBalancedQuantizer,
    LearnedScaleQuantizer,
    LSQQuantizer,
    WeightQuantizer,
)
from lightning_balq.nn.saved_layers import float_reasons
from lightning_balq.nn.swap import original_class
from lightning_balq.nn.weights import arrangement, owner_of, peek_weight, pruning_mask, swap_channels, transposed_groups


@torch.no_grad()
def describe(model: nn.Module) -> Description:
    """Describe what a quantized model computes in inference.

    The weights of the description are checked against those that the forward uses: they are equal bit for bit.

    Args:
        model: quantized by a callback or by :func:`lightning_balq.quantize_`, in whatever mode; it is left as it is.

    Returns:
        Codes, scales, ranges and everything else, on the CPU.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if no layer is quantized, the network is still float or blended, no batch has shown the ranges of
            activations, or a weight cannot be described; the message names it.

    Example:
        >>> from lightning_balq import BalancedQuantizer, QuantizationConfig, quantize_
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[-0.5, 0.2]]))
        >>> _ = quantize_(model, QuantizationConfig(BalancedQuantizer(bits=1), quantize_first_last=True))
        >>> weight = describe(model).layers[""].weights["weight"]
        >>> weight.codes, weight.scale
        (tensor([[0, 1]], dtype=torch.uint8), tensor([0.5000]))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
    quantized = list(quantized_layers(model))
    _check_ready(model, quantized)
    seen: dict[object, QuantizedWeight] = {}
    with _evaluating(model):
        layers = {
            name: QuantizedLayer(
                type_name(layer),
                {key: _describe_weight(name, layer, state, key, seen) for key in state.weights},
                {key: _describe_input(name, layer, state, key) for key in state.inputs},
                _aliases(model, name, layer),
            )
            for name, layer, state in quantized
        }
    inputs = [given for layer in layers.values() for given in layer.inputs.values()]
    if inputs and not any(given.known for given in inputs):
        raise ValueError(
            "no training batch has shown the ranges of the activations yet: train the model, or run batches through it "
            "in training mode and call `update_ranges_(activation_quantizers(model))` of lightning_balq.nn"
        )
    return Description(layers, _copies(other_tensors(model, layers)), float_reasons(model))


def type_name(layer: nn.Module) -> str:
    """Name of the class of ``layer`` as it was written, without what quantization and parametrization put there."""
    cls = original_class(layer)
    while is_parametrized(layer) and cls.__name__.startswith("Parametrized"):
        cls = cls.__bases__[0]
    return cls.__name__


def other_tensors(model: nn.Module, layers: Mapping[str, QuantizedLayer]) -> dict[str, Tensor]:
    """Parameters and buffers beside the weights of ``layers``, by clean key; aliases of those of the model.

    Raises:
        ValueError: if the ``state_dict()`` holds something else than tensors.
    """
    own = _own_keys(model, layers)
    found: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if clean_name(key) in own:
            continue
        if not isinstance(value, Tensor):
            raise ValueError(f"the `state_dict()` holds {key!r} of type {type(value).__name__}; expected tensors alone")
        found[clean_name(key)] = value.detach()
    return found


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU; what is one tensor under several keys is so again."""
    made: dict[object, Tensor] = {}
    copies = {}
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"{key!r} is a tensor of layout {value.layout}; expected a dense one, which can be stored")
        place = (value.device, value.data_ptr(), value.shape, value.stride()) if value.numel() else id(value)
        if place not in made:
            made[place] = value.detach().clone(memory_format=torch.contiguous_format).cpu()
        copies[key] = made[place]
    return copies


def _own_keys(model: nn.Module, layers: Mapping[str, QuantizedLayer]) -> set[str]:
    """Keys of what quantized weights are made of, and of what their quantizers learn."""
    places = [(clean_name(name), module) for name, module in model.named_modules(remove_duplicate=False)]
    modules = dict(places)
    described_as = {modules[name]: described for name, described in layers.items()}
    keys: set[str] = set()
    for name, layer in places:  # a module that is used twice has two names, and two keys for each of its weights
        if layer not in described_as:
            continue
        described = described_as[layer]
        for weight in described.weights:
            owner, attribute = owner_of(layer, weight)
            at = join(name, weight.rpartition(".")[0])
            if is_parametrized(owner, attribute):
                inside = owner.get_submodule(f"parametrizations.{attribute}").state_dict()
                keys |= {join(at, "parametrizations", attribute, key) for key in inside}
            elif attribute in owner._parameters:
                keys.add(join(at, attribute))
            else:  # pruning, and legacy weight and spectral norm, keep it in parts
                parts = [f"{attribute}_{part}" for part in ("orig", "mask", "g", "v", "u")]
                keys |= {join(at, part) for part in parts}
        state: LayerQuantizer | None = layer.__dict__.get(STATE)
        keys |= set() if state is None else {join(name, learned) for learned in state.learned()}
    return keys


def _aliases(model: nn.Module, name: str, layer: nn.Module) -> tuple[str, ...]:
    """Other names of a layer that is used in several places."""
    names = [clean_name(other) for other, module in model.named_modules(remove_duplicate=False) if module is layer]
    return tuple(other for other in names if other != name)


def _check_ready(model: nn.Module, quantized: list[tuple[str, nn.Module, LayerQuantizer]]) -> None:
    if not quantized:
        raise ValueError(
            "the model has no quantized layer: train it with a callback of lightning_balq, or call `quantize_(model)`"
        )
    for name, layer, state in quantized:
        if any(is_lazy(parameter) or parameter.device.type == "meta" for parameter in layer.parameters()):
            raise ValueError(f"layer {name!r} has no weights yet: run a batch through the model first")
        if state.schedule.phase != "quantized":
            share = f"{state.schedule.blend:.0%} of it is quantized"
            raise ValueError(
                f"the network is not quantized yet, {share}: expected one that has trained past `start_step` and "
                "`blend_steps`; train on, or lower them"
            )
    check_layers(quantized)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context all modules are in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def _describe_weight(
    name: str, layer: nn.Module, state: LayerQuantizer, key: str, seen: dict[object, QuantizedWeight]
) -> QuantizedWeight:
    quantizer = state.weights[key]
    owner, attribute = owner_of(layer, key)
    parameter = owner._parameters.get(attribute)
    shared = (id(parameter), quantizer, arrangement(layer), key in state.pruned)
    if parameter is not None and shared in seen:
        return seen[shared]
    used = state.quantize_weight(layer, key).detach().cpu()
    try:
        described = _from_quantizer(layer, state, key, quantizer)
    except ValueError as error:
        raise ValueError(
            f"weight {join(name, key)!r}, quantized by {quantizer}, cannot be described: {error}"
        ) from None
    if not torch.equal(described.levels(), used):
        raise ValueError(
            f"weight {join(name, key)!r}, quantized by {quantizer}, is not what its codes stand for: expected levels "
            "that are multiples of a scale"
        )
    if parameter is not None and not isinstance(quantizer, LearnedScaleQuantizer):
        seen[shared] = described
    return described


def _from_quantizer(layer: nn.Module, state: LayerQuantizer, key: str, quantizer: WeightQuantizer) -> QuantizedWeight:
    if isinstance(quantizer, StoredWeight):
        return quantizer.stored
    weight = peek_weight(layer, key)
    rows = swap_channels(layer, weight)
    codes, scale, grid = _codes(layer, state, key, quantizer, rows)
    codes, kept = codes.reshape(rows.shape), _kept(layer, state, key, weight)
    if kept is not None and pruning_mask(layer, key) is None:
        codes = _with_signs_of_zeros(codes, quantizer.bits, rows.detach().cpu(), quantizer)
    padding_row = layer.padding_idx if isinstance(layer, nn.Embedding) else None
    return QuantizedWeight(
        codes,
        scale,
        quantizer.bits,
        grid,
        weight.dtype,
        str(quantizer),
        groups=transposed_groups(layer),
        padding_row=padding_row,
        padding=None if padding_row is None else weight[padding_row].detach().cpu().clone(),
        kept=kept,
    )


def _codes(
    layer: nn.Module, state: LayerQuantizer, key: str, quantizer: WeightQuantizer, rows: Tensor
) -> tuple[Tensor, Tensor, Grid]:
    """Codes with output channels in dim 0, scales and the grid."""
    values = rows.to(torch.float32)
    largest = 2**quantizer.bits - 1
    if isinstance(quantizer, LearnedScaleQuantizer):
        step = state.learned_scale(layer, key, rows)
        if isinstance(quantizer, LSQQuantizer):
            grid: Grid = "integer" if quantizer.grid == "integer" else "half"
            return quantizer.codes_at(rows, step).cpu(), step.cpu(), grid
        if isinstance(quantizer, LearnedBalancedQuantizer):
            odd = quantizer.prepare(values).cpu()
            return ((odd + largest) / 2).to(torch.uint8), (step / 2).cpu(), "odd"
    levels = quantizer.levels(values).detach().cpu().to(torch.float32)
    if isinstance(quantizer, DoReFaQuantizer) and quantizer.bits > 1:
        return ((levels * largest + largest) / 2).round().to(torch.uint8), torch.ones(1, dtype=torch.float32), "unit"
    count = quantizer.scales(len(rows) if rows.dim() else 1)
    flat = levels.reshape(count, -1) if levels.numel() else levels.reshape(count, 0)
    codes, scale = fit_odd_grid(flat, quantizer.codes(rows).cpu().reshape(flat.shape), quantizer.bits)
    return codes, scale, "odd"


def _kept(layer: nn.Module, state: LayerQuantizer, key: str, weight: Tensor) -> Tensor | None:
    """False where the weight is pruned, and so zero; ``None`` if it is not."""
    mask = pruning_mask(layer, key)
    if mask is None:
        return (weight != 0).detach().cpu() if key in state.pruned else None
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("its pruning mask holds values other than 0 and 1")
    return mask.bool().cpu()


def _with_signs_of_zeros(codes: Tensor, bits: int, rows: Tensor, quantizer: WeightQuantizer) -> Tensor:
    """Let codes of zeros stand for levels of the sign that the zeros have in the forward: that of -0 is kept."""
    negative = rows.signbit() & isinstance(quantizer, LearnedScaleQuantizer)  # other quantizers make them positive
    return torch.where(rows != 0, codes, torch.where(negative, 0, 2**bits - 1).to(torch.uint8))


def _describe_input(name: str, layer: nn.Module, state: LayerQuantizer, key: str) -> QuantizedInput:
    quantizer = state.inputs[key]
    mode, sign = quantizer.range_mode, quantizer.sign
    if quantizer.observing and not bool(quantizer.batches > 0):
        return QuantizedInput(quantizer.bits, None, None, mode, sign)
    range_ = float(_range(layer, state, key, quantizer))
    if not 0 <= range_ < float("inf"):
        raise ValueError(f"the range of {join(name, key)!r} is {range_}; expected a number that is not negative")
    return QuantizedInput(quantizer.bits, range_, bool(quantizer.signed), mode, sign)


def _range(layer: nn.Module, state: LayerQuantizer, key: str, quantizer: ActivationQuantizer) -> Tensor:
    if not isinstance(quantizer, LearnedActivationQuantizer):
        return quantizer.range
    parameter = state.learned_range(layer, key)
    return quantizer.range_at(parameter, quantizer.signed.to(parameter.device))
