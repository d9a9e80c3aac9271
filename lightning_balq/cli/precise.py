"""Sums of products in float64, so that what differs from them is the rounding of somebody else."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_aten = torch.ops.aten

SUMMING = {
    _aten.convolution, _aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.mv, _aten.addmv, _aten.native_batch_norm,
    _aten._native_batch_norm_legit_no_training,
}  # fmt: skip


class PreciseProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Within this context, linear layers, convolutions and batch norms of float32 are computed in float64.

    Their results are rounded to float32 again. Everything else is computed as it is, in particular the codes of
    activations.

    Example:
        >>> with PreciseProducts():
        ...     torch.tensor([[1e8, 1.0, -1e8]]) @ torch.ones(3, 1)
        tensor([[1.]])
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute one operation."""
        call: Callable[..., Any] = func
        if func.overloadpacket not in SUMMING:
            return call(*args, **(kwargs or {}))
        outputs = call(*_cast(args, torch.float32, torch.float64), **_cast(kwargs or {}, torch.float32, torch.float64))
        return _cast(outputs, torch.float64, torch.float32)


def _cast(values: Any, of: torch.dtype, to: torch.dtype) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to(to) if tensor.dtype == of else tensor, values)
