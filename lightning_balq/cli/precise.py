"""Sums of products in float64, so that what differs from them is the rounding of somebody else."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SUMMING: set[Callable[..., Any]] = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.batch_norm,
    torch.matmul, Tensor.matmul, Tensor.__matmul__,
}  # fmt: skip


class PreciseProducts(TorchFunctionMode):
    """Within this context, linear layers, convolutions and batch norms of float32 are computed in float64.

    So are products of matrices. Results are rounded to float32 again. Everything else is computed as it is, in
    particular the codes of activations.

    Example:
        >>> with PreciseProducts():
        ...     torch.tensor([[1e8, 1.0, -1e8]]) @ torch.ones(3, 1)
        tensor([[1.]])
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call one function of torch."""
        keywords = kwargs or {}
        if func not in SUMMING or not any(map(_is_single, (*args, *keywords.values()))):
            return func(*args, **keywords)
        result = func(*map(_widened, args), **{name: _widened(value) for name, value in keywords.items()})
        return result.to(torch.float32)


def _is_single(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _widened(value: Any) -> Any:
    return value.double() if _is_single(value) else value
