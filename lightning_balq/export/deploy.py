"""Make a model that computes in int8 of a quantized one, for ``torch.export`` and Inductor."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_balq.export.deploy_layers import CONVOLUTIONS, IntegerConv, IntegerLayer, IntegerLinear
from lightning_balq.export.deploy_norms import factor_and_offset, following_norms, read_directly, trace
from lightning_balq.export.deploy_report import DeployedLayer, DeployReport
from lightning_balq.export.describe import describe, type_name
from lightning_balq.export.description import Description, QuantizedLayer
from lightning_balq.export.integers import IntegerWeight, integer_input, integer_weight, overflow, weight_peak
from lightning_balq.export.load import apply_
from lightning_balq.nn.checkpoint import detach_checkpoint_hooks
from lightning_balq.nn.forward import QuantizedConv, QuantizedLinear, layer_mixin
from lightning_balq.nn.layers import STATE, clean_name
from lightning_balq.nn.quantize import unquantize_
from lightning_balq.nn.swap import original_class, restore_class
from lightning_balq.nn.weights import RECURRENT, transposed_groups

REPORT = "_balq_deployed"
"""Key of the report in the ``__dict__`` of a deploy model."""


@torch.no_grad()
def to_deploy(model: nn.Module) -> nn.Module:
    """Make a model for inference whose quantized layers hold int8 weights and take uint8 activations.

    Linear, 1- and 2-dimensional convolution layers whose weights and inputs are quantized become integers, if integer
    arithmetic is exact for their widths on every CPU: ``2 * a * w <= 32767`` for the largest integers of activation and
    weight, so that pairs of products fit into 16 bits. Batch norms that follow convolutions go into their scales and
    biases. Every other layer computes in float what it computed before. :func:`deploy_report` tells which is which.

    The result runs anywhere; integer kernels run after compilation with frozen weights: see
    :func:`lightning_balq.export.compile_deploy`.
    Sums of products are exact up to 2^24 (as floats; in int8, up to 2^31), so that outputs differ from those of
    ``model`` by the rounding of *its* sums, about 1e-6 of the largest; where that moves an activation over a threshold,
    by one of its levels. Activations must be finite: NaN has no code.

    Args:
        model: quantized by a callback, by :func:`lightning_balq.quantize_` or by :func:`load_packed`; it is left as it
            is.

    Returns:
        A copy in evaluation mode, with buffers in place of the parameters of integer layers.

    Raises:
        ImportError: if torch lacks the operators and torchao is not installed.
        TypeError: if ``model`` is not a module.
        ValueError: if the model cannot be described (see :func:`describe`).

    Example:
        >>> from lightning_balq import BalancedQuantizer, QuantizationConfig, quantize_
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> options = {"activation_bits": 4, "activation_range": "unit", "activation_sign": "signed"}
        >>> _ = quantize_(model, QuantizationConfig(BalancedQuantizer(4), quantize_first_last=True, **options))
        >>> to_deploy(model)
        Sequential(
          (0): IntegerLinear(8x4, int8, 4-bit signed input)
          (1): ReLU()
          (2): IntegerLinear(2x8, int8, 4-bit signed input)
        )
    """
    description = describe(model)
    deployed = _copy(getattr(model, "_orig_mod", model))
    unquantize_(deployed)
    apply_(description, deployed)
    detach_checkpoint_hooks(deployed)
    modules = {clean_name(name): module for name, module in deployed.named_modules()}
    layers = {name: modules[name] for name in description.layers}
    norms, direct, note = _calls(deployed, layers)
    reasons = {
        name: _reason(modules[name], described)
        or ("another module reads its weight" if modules[name] in direct else "")
        for name, described in description.layers.items()
    }
    replaced: dict[nn.Module, nn.Module] = {}
    folded: dict[str, str] = {}
    for name, layer in layers.items():
        if reasons[name]:
            _leave(layer, description.layers[name])
            continue
        norm = norms.get(layer)
        made = _integer_layer(layer, description.layers[name], norm)
        replaced[layer] = made.to(next(layer.parameters()).device)
        if norm is not None:
            replaced[norm] = nn.Identity()
            folded[name] = next(key for key, module in modules.items() if module is norm)
    deployed = _replace(deployed, replaced).eval()
    deployed.__dict__[REPORT] = _report(modules, description, reasons, folded, note)
    return deployed


def deploy_report(model: nn.Module) -> DeployReport:
    """Tell what :func:`to_deploy` made of each layer of a model, and why.

    Args:
        model: what :func:`to_deploy` returned.

    Raises:
        ValueError: if it is another model.

    Example:
        >>> from lightning_balq import BalancedQuantizer, QuantizationConfig, quantize_
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> options = {"activation_bits": 8, "activation_range": "unit", "activation_sign": "unsigned"}
        >>> _ = quantize_(model, QuantizationConfig(BalancedQuantizer(7), include=["0"], **options))
        >>> [layer.reason for layer in deploy_report(to_deploy(model)).layers]
        ['two products reach 2 * 255 * 127 = 64770, more than 32767, where CPUs without VNNI saturate', 'not included']
    """
    report = model.__dict__.get(REPORT)
    if not isinstance(report, DeployReport):
        raise ValueError(f"`model` must be what `to_deploy` returned, got another {type(model).__name__}")
    return report


def _copy(model: nn.Module) -> nn.Module:
    """Copy of a model, also where pruning and the like keep a weight that is computed, which torch does not copy."""
    computed = [v for m in model.modules() for v in m.__dict__.values() if isinstance(v, Tensor) and not v.is_leaf]
    copied: nn.Module = copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})
    return copied


def _calls(model: nn.Module, layers: Mapping[str, nn.Module]) -> tuple[dict[nn.Module, nn.Module], set[nn.Module], str]:
    """Batch norms by the layer that they follow, layers that others read, and why that is not known."""
    if "" in layers:
        return {}, set(), ""
    try:
        graph = trace(model, layers.values())
    except Exception as error:  # of any kind: the forward is the user's
        first = (str(error).splitlines() or [""])[0]
        note = "batch norms stay as they are: torch.fx cannot trace the forward of the model"
        return {}, set(), f"{note} ({type(error).__name__}: {first})"
    return following_norms(model, graph), read_directly(model, graph), ""


def _reason(layer: nn.Module, described: QuantizedLayer) -> str:
    """Why a layer cannot be made of integers; empty if it can."""
    if layer_mixin(original_class(layer)) not in (QuantizedLinear, QuantizedConv):
        return _reason_of_type(layer)
    given, weight = described.inputs.get("input"), described.weights["weight"]
    if given is None:
        return "its input is not quantized"
    if not given.known:
        return "no training batch has shown the range of its input"
    if weight.dtype != torch.float32:
        return f"its weights are {weight.dtype}, not torch.float32"
    if not isinstance(layer, nn.Linear) and weight.codes.dim() - 2 not in CONVOLUTIONS:
        return "no int8 kernel for 3-dimensional convolutions"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has forward hooks"
    products = weight.codes[0].numel() if len(weight.codes) else 0
    return overflow(weight_peak(weight), integer_input(given).peak, products)


def _reason_of_type(layer: nn.Module) -> str:
    if isinstance(layer, RECURRENT):
        return "no int8 kernel for recurrent layers"
    if isinstance(layer, nn.MultiheadAttention):
        return "no int8 kernel for attention"
    if isinstance(layer, nn.Embedding):
        return "it looks weights up and multiplies nothing"
    if transposed_groups(layer) is not None:
        return "no int8 kernel for transposed convolutions"
    return "its forward is not that of torch.nn"


def _integer_layer(layer: nn.Module, described: QuantizedLayer, norm: nn.Module | None) -> IntegerLayer:
    """Integer form of a layer and the batch norm that follows it."""
    weight, given = integer_weight(described.weights["weight"]), integer_input(described.inputs["input"])
    parameter = layer._parameters["bias"]
    bias: Tensor | None = None if parameter is None else parameter.detach().cpu()
    if norm is not None:
        factor, offset = (value.cpu() for value in factor_and_offset(norm))
        weight = IntegerWeight(weight.codes, weight.scale * factor)
        bias = offset if bias is None else offset + factor * bias.double()
    if isinstance(layer, nn.Linear):
        return IntegerLinear(weight, bias, given)
    return IntegerConv(weight, bias, given, layer)  # type: ignore[arg-type]  # _reason lets only these pass


def _leave(layer: nn.Module, described: QuantizedLayer) -> None:
    """Make a plain layer of one that need not quantize anything any more: its weights are at their levels."""
    if not described.inputs:
        del layer.__dict__[STATE]
        restore_class(layer)


def _replace(model: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put other modules in the place of some, wherever they are used."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replaced:
                parent._modules[name] = replaced[child]
    return replaced.get(model, model)


def _report(
    modules: Mapping[str, nn.Module],
    description: Description,
    reasons: Mapping[str, str],
    folded: Mapping[str, str],
    note: str,
) -> DeployReport:
    layers = []
    for name, module in modules.items():
        described = description.layers.get(name)
        if described is not None:
            weight = next(iter(described.weights.values()), None)
            given = next(iter(described.inputs.values()), None)
            bits = (None if weight is None else weight.bits, None if given is None else given.bits)
            reason = reasons[name]
            layers.append(
                DeployedLayer(name, described.type, *bits, int8=not reason, norm=folded.get(name, ""), reason=reason)
            )
        elif name in description.reasons:
            reason = description.reasons[name]
            layers.append(DeployedLayer(name, type_name(module), None, None, int8=False, reason=reason))
    return DeployReport(tuple(layers), note)
