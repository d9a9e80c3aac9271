"""Remember which values of a file go into quantized layers and come out of them, so that layers can be compared.

While a graph is traced, placeholders mark these values. They leave nothing in the file but the names of the values,
among its metadata.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from torch import Tensor, nn

ENTRY = "layers"
"""Key in the metadata of a file."""


@dataclass(frozen=True)
class LayerCall:
    """Values of one call of a layer.

    Attributes:
        layer: its name.
        inputs: tensors among the arguments, by their place in the order of :func:`map_tensors`; without unused ones.
        outputs: tensors among what is returned, likewise.
    """

    layer: str
    inputs: dict[int, Any] = field(default_factory=dict)
    outputs: dict[int, Any] = field(default_factory=dict)


@contextmanager
def marked(layers: Mapping[str, nn.Module], mark: Callable[[Tensor, str], Tensor]) -> Iterator[None]:
    """Within the context, tensors that go into layers and come out of them pass through ``mark``, with a key each."""
    calls, running = count(), dict[str, int]()
    handles = []

    def hooks(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        def mark_all(value: Any, kind: str) -> Any:
            places = count()
            return map_tensors(value, lambda tensor: mark(tensor, f"{name}:{running[name]}:{kind}:{next(places)}"))

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            running[name] = next(calls)
            return mark_all((args, kwargs), "inputs")

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            return mark_all(output, "outputs")

        return before, after

    try:
        for name, layer in layers.items():
            before, after = hooks(name)
            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(layer.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Change the tensors in tuples, lists and dicts, in their order; everything else stays.

    One that occurs more than once is changed once: attention computes otherwise if keys are the queries.

    Example:
        >>> import torch
        >>> map_tensors((torch.ones(1), {"x": torch.ones(1), "n": 3}), lambda tensor: tensor + 1)
        (tensor([2.]), {'x': tensor([2.]), 'n': 3})
    """
    changed: dict[int, Any] = {}

    def walk(item: Any) -> Any:
        if isinstance(item, Tensor):
            if id(item) not in changed:
                changed[id(item)] = change(item)
            return changed[id(item)]
        if type(item) in (tuple, list):
            return type(item)(walk(part) for part in item)
        return {key: walk(part) for key, part in item.items()} if type(item) is dict else item

    return walk(value)


def to_entry(names: Mapping[str, str]) -> str:
    """Text for the metadata, given the names of values by the keys of their marks."""
    calls: dict[int, LayerCall] = {}
    for key, name in names.items():
        layer, call, kind, place = key.rsplit(":", 3)
        found = calls.setdefault(int(call), LayerCall(layer))
        (found.inputs if kind == "inputs" else found.outputs)[int(place)] = name
    return json.dumps([[each.layer, each.inputs, each.outputs] for _, each in sorted(calls.items())])


def from_entry(text: str) -> list[LayerCall]:
    """Calls of layers in their order, with names of values, from the metadata of a file.

    Raises:
        ValueError: if it is not what :func:`to_entry` wrote.

    Example:
        >>> from_entry(to_entry({"net.0:4:inputs:0": "x", "net.0:4:outputs:0": "linear"}))
        [LayerCall(layer='net.0', inputs={0: 'x'}, outputs={0: 'linear'})]
    """
    try:
        return [
            LayerCall(str(layer), *({int(place): str(name) for place, name in each.items()} for each in values))
            for layer, *values in json.loads(text)
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"the metadata do not tell layers apart: {error}") from error
