"""Find the input of a layer among the arguments of its forward."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def map_first_tensor(
    function: Callable[[Tensor], Tensor], forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Apply ``function`` to the first argument of ``forward`` that is a tensor, in the order of its signature.

    Of a packed sequence it is applied to the data.
    """
    for index, value in enumerate(args):
        if isinstance(value, (Tensor, PackedSequence)):
            return (*args[:index], _map(function, value), *args[index + 1 :]), kwargs
    order = list(inspect.signature(forward).parameters) if len(kwargs) > 1 else []
    for key in sorted(kwargs, key=lambda key: order.index(key) if key in order else len(order)):
        if isinstance(kwargs[key], (Tensor, PackedSequence)):
            return args, {**kwargs, key: _map(function, kwargs[key])}
    return args, kwargs


def _map(function: Callable[[Tensor], Tensor], value: Tensor | PackedSequence) -> Tensor | PackedSequence:
    if not isinstance(value, PackedSequence):
        return function(value)
    data = function(value.data)
    return PackedSequence(data, value.batch_sizes, value.sorted_indices, value.unsorted_indices)
