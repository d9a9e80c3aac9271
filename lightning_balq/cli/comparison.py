"""How far the network of an exported file is from the quantized model of a checkpoint.

That of a packed file is the same network, and nothing may differ. Engines add in another order, and where that moves an
activation over the border between two levels, all that follows differs by a level: so the largest difference is no
criterion for them, and layers are compared on the inputs that they got within the engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_balq.cli.runs import Exported, forced, noting, run_model
from lightning_balq.export.description import Description, join
from lightning_balq.nn import quantized_layers

LAYER_MEDIAN, MEDIAN, ARGMAX, TIE = 1e-5, 1e-3, 0.99, 1e-5
RULE = (
    f"the median difference of each layer is at most {LAYER_MEDIAN:g}, and that of the network at most {MEDIAN:g}, "
    f"of the largest output, and argmax agrees in at least {ARGMAX:.0%}"
)


@dataclass(frozen=True)
class LayerError:
    """Differences in one layer.

    Attributes:
        name: of the layer.
        weights: largest difference of a weight; ``None`` if the file does not hold the weights as such.
        outputs: largest difference of an output; ``None`` if the inputs do not reach the layer, or the file does not
            tell its outputs.
        median: median difference of the outputs, likewise.
        magnitude: largest magnitude of the outputs that are right, likewise.
    """

    name: str
    weights: float | None
    outputs: float | None = None
    median: float | None = None
    magnitude: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Differences of two models on the same inputs.

    Attributes:
        layers: of each quantized layer.
        outputs_equal: whether the outputs of the models are equal bit for bit.
        median: median difference of the outputs.
        largest: largest difference of the outputs.
        magnitude: largest magnitude of the outputs that are right.
        argmax_agreement: share of rows of the first output whose largest value is at the same place, or at one where
            the right value is as large but for :data:`TIE` of the magnitude.
        note: why layers could not be compared; empty if all were.
    """

    layers: list[LayerError]
    outputs_equal: bool
    median: float
    largest: float
    magnitude: float
    argmax_agreement: float
    note: str = ""

    @property
    def exact(self) -> bool:
        """Whether nothing differs."""
        return self.outputs_equal and not any(layer.weights or layer.outputs for layer in self.layers)

    @property
    def agrees(self) -> bool:
        """Whether nothing differs but by rounding, by the rule of :data:`RULE`."""
        layers = all(
            layer.median <= LAYER_MEDIAN * layer.magnitude
            for layer in self.layers
            if layer.median is not None and layer.magnitude is not None
        )
        return layers and self.median <= MEDIAN * self.magnitude and self.argmax_agreement >= ARGMAX


@torch.no_grad()
def compare(
    expected: nn.Module, actual: nn.Module, packed: Description, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Comparison:
    """Run two models, and compare them layer by layer.

    Args:
        expected: the quantized model.
        actual: the model that a packed file was loaded into.
        packed: what the file holds.
        args: positional arguments of the forward.
        kwargs: keyword arguments of the forward.

    Raises:
        ValueError: if they do not run on these inputs.
    """
    with noting(expected) as right_layers:
        right = run_model(expected, args, kwargs)
    with noting(actual) as found_layers:
        found = run_model(actual, args, kwargs)
    layers = []
    for name, layer, state in quantized_layers(expected):
        weights = max((_weight_error(layer, state, key, packed, name) for key in state.weights), default=0.0)
        layers.append(_layer_error(name, weights, right_layers.get(name), found_layers.get(name, [])))
    return _comparison(layers, right, found)


@torch.no_grad()
def compare_exported(
    expected: nn.Module, exported: Exported, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Comparison:
    """Compare what an engine computed with a model: end to end, and each layer on the inputs that the engine gave it.

    Args:
        expected: the quantized model.
        exported: what the engine computed.
        args: positional arguments of the forward, those that the engine got.
        kwargs: keyword arguments of the forward, likewise.

    Raises:
        ValueError: if the model does not run on these inputs, or has other outputs.
    """
    right = run_model(expected, args, kwargs)
    if [tensor.shape for tensor in right] != [tensor.shape for tensor in exported.outputs]:
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (right, exported.outputs)]
        raise ValueError(f"the outputs of the model have the shapes {shapes[0]}, and those of the file {shapes[1]}")
    pairs = forced(expected, exported, args, kwargs)
    layers = [_layer_error(name, None, *pairs.get(name, (None, []))) for name, _, _ in quantized_layers(expected)]
    missing = [layer.name or "(the model)" for layer in layers if layer.outputs is None]
    note = f"not compared: {', '.join(missing)}; {exported.note}" if missing else ""
    return _comparison(layers, right, exported.outputs, note)


def _comparison(layers: list[LayerError], right: list[Tensor], found: list[Tensor], note: str = "") -> Comparison:
    differences, magnitude = _all_differences(right, found), _magnitude(right)
    equal = all(torch.equal(one, other) for one, other in zip(right, found, strict=True))
    return Comparison(
        layers,
        equal,
        float(differences.median()),
        float(differences.max()),
        magnitude,
        _argmax_agreement(right[0], found[0], TIE * magnitude),
        note,
    )


def _argmax_agreement(right: Tensor, found: Tensor, tie: float) -> float:
    if not right.dim():
        return 1.0
    places, others = right.argmax(-1, keepdim=True), found.argmax(-1, keepdim=True)
    chosen, largest = right.gather(-1, others).double(), right.gather(-1, places).double()
    return float(((places == others) | (chosen >= largest - tie)).double().mean())


def _layer_error(name: str, weights: float | None, right: list[Tensor] | None, found: list[Tensor]) -> LayerError:
    if not right:
        return LayerError(name, weights)
    differences = _all_differences(right, found)
    return LayerError(name, weights, float(differences.max()), float(differences.median()), _magnitude(right))


def _weight_error(layer: nn.Module, state: Any, key: str, packed: Description, name: str) -> float:
    stored = packed.weights().get(join(name, key))
    if stored is None:
        return float("inf")
    used: Tensor = state.quantize_weight(layer, key)
    return float(_all_differences([used], [stored.levels()]).max()) if used.numel() else 0.0


def _all_differences(expected: list[Tensor], found: list[Tensor]) -> Tensor:
    """Absolute differences, flat; infinity if there are other tensors."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return torch.full((1,), torch.inf)
    return torch.cat([_differences(one, other) for one, other in zip(expected, found, strict=True)])


def _differences(expected: Tensor, found: Tensor) -> Tensor:
    """Absolute differences; 0 where both are the same infinity or NaN, infinity where one of them is NaN."""
    one, other = expected.double().reshape(-1), found.double().reshape(-1)
    same = (one == other) | (one.isnan() & other.isnan())
    return torch.where(same, 0.0, (one - other).abs().nan_to_num(nan=torch.inf, posinf=torch.inf))


def _magnitude(tensors: list[Tensor]) -> float:
    """Largest magnitude of what is finite."""
    return max(float(tensor.double().nan_to_num(0.0, 0.0, 0.0).abs().max()) for tensor in tensors)
