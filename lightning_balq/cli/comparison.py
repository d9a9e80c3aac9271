"""How far the network of a packed file is from the quantized model of a checkpoint, which should be: not at all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_balq.export.description import Description, join
from lightning_balq.nn import quantized_layers


@dataclass(frozen=True)
class LayerError:
    """Largest differences in one layer.

    Attributes:
        name: of the layer.
        weights: largest difference of a weight.
        outputs: largest difference of an output; ``None`` if the inputs do not reach the layer.
    """

    name: str
    weights: float
    outputs: float | None


@dataclass(frozen=True)
class Comparison:
    """Differences of two models on the same inputs.

    Attributes:
        layers: of each quantized layer.
        outputs_equal: whether the outputs of the models are equal bit for bit.
        median: median difference of the outputs.
        largest: largest difference of the outputs.
        argmax_agreement: share of rows of the first output whose largest value is at the same place.
    """

    layers: list[LayerError]
    outputs_equal: bool
    median: float
    largest: float
    argmax_agreement: float

    @property
    def exact(self) -> bool:
        """Whether nothing differs."""
        return self.outputs_equal and all(layer.weights == 0 and not layer.outputs for layer in self.layers)


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
    runs = []
    for model in (expected, actual):
        with _noting(model) as noted:
            try:
                outputs = tensors_of(model(*args, **kwargs))
            except Exception as error:  # whatever a model of the user raises
                raise ValueError(f"the model does not run on the inputs: {error!r}") from error
        runs.append((outputs, noted))
    (right, right_layers), (found, found_layers) = runs
    if not right:
        raise ValueError("the model returns no floating-point tensor to compare")
    layers = [
        LayerError(
            name,
            max((_weight_error(layer, state, key, packed, name) for key in state.weights), default=0.0),
            _largest(right_layers[name], found_layers.get(name, [])) if name in right_layers else None,
        )
        for name, layer, state in quantized_layers(expected)
    ]
    flat = [_differences(one, other) for one, other in zip(right, found, strict=True)]
    differences = torch.cat(flat)
    agreement = (right[0].argmax(-1) == found[0].argmax(-1)).double().mean() if right[0].dim() else torch.ones(())
    equal = all(torch.equal(one, other) for one, other in zip(right, found, strict=True))
    return Comparison(layers, equal, float(differences.median()), float(differences.max()), float(agreement))


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
def _noting(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Within the context, outputs of quantized layers are noted by the name of the layer."""
    noted: dict[str, list[Tensor]] = {}
    handles = []
    for name, layer, _ in quantized_layers(model):

        def note(module: nn.Module, given: Any, output: Any, name: str = name) -> None:
            noted.setdefault(name, []).extend(tensor.detach().clone() for tensor in tensors_of(output))

        handles.append(layer.register_forward_hook(note))
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()


def _weight_error(layer: nn.Module, state: Any, key: str, packed: Description, name: str) -> float:
    stored = packed.weights().get(join(name, key))
    if stored is None:
        return float("inf")
    used: Tensor = state.quantize_weight(layer, key)
    return _largest([used], [stored.levels()])


def _largest(expected: list[Tensor], found: list[Tensor]) -> float:
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return float("inf")
    return max((float(_differences(*pair).max()) for pair in zip(expected, found, strict=True)), default=0.0)


def _differences(expected: Tensor, found: Tensor) -> Tensor:
    """Absolute differences; 0 where both are the same infinity or NaN, infinity where one of them is NaN."""
    one, other = expected.double().reshape(-1), found.double().reshape(-1)
    same = (one == other) | (one.isnan() & other.isnan())
    return torch.where(same, 0.0, (one - other).abs().nan_to_num(nan=torch.inf, posinf=torch.inf))
