"""Decide for every quantized weight of a model what multiplies: levels, or integers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lightning_balq.export.description import Description, QuantizedInput, QuantizedLayer, join
from lightning_balq.export.onnx.convolution import why_not_gathered
from lightning_balq.export.onnx.forms import WeightForm, choose_form
from lightning_balq.export.onnx.report import WeightReport
from lightning_balq.nn.forward import QuantizedConv, QuantizedLinear, layer_mixin
from lightning_balq.nn.states import state_names
from lightning_balq.nn.swap import original_class
from lightning_balq.nn.weights import is_recurrent

Mode = Literal["portable", "integer"]
MODES = ("portable", "integer")

_OTHER_INPUTS = {
    "weight_hh": "state",
    "in_proj_weight": "query",
    "q_proj_weight": "query",
    "k_proj_weight": "key",
    "v_proj_weight": "value",
    "out_proj.weight": "",
}
"""What weights of cells and of attention multiply."""


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer.

    Attributes:
        name: its name in the model.
        layer: the module.
        described: its quantized weights and inputs.
        forms: integers of the weights whose products are computed in them.
        reasons: why other weights are multiplied as floats; empty in portable mode.
    """

    name: str
    layer: nn.Module
    described: QuantizedLayer
    forms: Mapping[str, WeightForm]
    reasons: Mapping[str, str]

    @property
    def is_whole(self) -> bool:
        """Whether the layer is written as a whole, and not by torch with placeholders for weights and inputs."""
        return bool(self.forms) or is_recurrent_layer(self.layer)

    def input_of(self, weight: str) -> QuantizedInput | None:
        """What a weight multiplies."""
        return _input_of(self.described, weight)

    def reports(self) -> list[WeightReport]:
        """How each of its weights is used."""
        found = []
        for key, weight in self.described.weights.items():
            given, form = self.input_of(key), self.forms.get(key)
            bits = given.bits if given is not None and given.known else None
            kind = "float" if form is None else form.kind
            found.append(WeightReport(join(self.name, key), weight.bits, bits, kind, self.reasons.get(key, "")))
        return found


def plan_layers(
    description: Description, modules: Mapping[str, nn.Module], mode: Mode, *, integer_convolutions: bool
) -> dict[str, LayerPlan]:
    """Plans by the names of layers."""
    plans = {}
    for name, described in description.layers.items():
        forms: dict[str, WeightForm] = {}
        reasons: dict[str, str] = {}
        if mode == "integer":
            for key in described.weights:
                choice = _choose(modules[name], described, key, forms, integer_convolutions)
                if isinstance(choice, str):
                    reasons[key] = choice
                else:
                    forms[key] = choice
        plans[name] = LayerPlan(name, modules[name], described, forms, reasons)
    return plans


def is_recurrent_layer(layer: nn.Module) -> bool:
    """Whether ``layer`` is a recurrent one with torch's own forward."""
    return isinstance(layer, nn.RNNBase) and bool(state_names(layer))


def _choose(
    layer: nn.Module, described: QuantizedLayer, key: str, chosen: Mapping[str, WeightForm], convolutions: bool
) -> WeightForm | str:
    """Integers for a weight, whose layer has so many chosen already, or why it has none."""
    mixin = layer_mixin(original_class(layer))
    if mixin is QuantizedConv and isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if not convolutions:
            return "convolutions in integers were not asked for"
        reason = why_not_gathered(layer)
        if reason is not None:
            return reason
    elif is_recurrent_layer(layer):
        if key.startswith("weight_hr"):
            return "it multiplies a float state"
        before = f"weight_hh_l{_index(key) - 1}"
        if not is_recurrent(key) and _index(key) > 0 and before not in chosen:
            return "the layer before it is not computed in integers"
    elif mixin is not QuantizedLinear:
        return f"a {original_class(layer).__name__} has no form in integers"
    return choose_form(described.weights[key], _input_of(described, key))


def _input_of(described: QuantizedLayer, weight: str) -> QuantizedInput | None:
    return described.inputs.get(_input_name(weight))


def _input_name(weight: str) -> str:
    """Name of the input or hidden state that a weight multiplies; empty if that is never quantized."""
    if weight.startswith(("weight_ih_l", "weight_hh_l")):
        below = _index(weight) - (0 if is_recurrent(weight) else 1)
        return "input" if below < 0 else f"state_l{below}"
    return _OTHER_INPUTS.get(weight, "" if weight.startswith("weight_hr") else "input")


def _index(weight: str) -> int:
    """Which of the layers of a recurrent module a weight belongs to."""
    return int(weight.split("_")[2].removeprefix("l"))
