"""Levels of weights, kept from one forward to the next while the weights stay as they are.

Nothing in PyTorch says for certain that a parameter has not changed: fused optimizers, and writing through ``.data`` as
averaging callbacks do, leave its version alone. So levels are reused only within a batch, and across batches only where
the owner of the cache knows that nothing happened in between; and never unless the parameter is the same object, of the
same version, at the same address, with no optimizer step since.
"""

import functools
import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

_optimizer_steps = 0


@functools.cache
def _count_optimizer_steps() -> None:
    """Count the steps of all optimizers of this process, from the first call on."""

    def count(*_: Any) -> None:
        global _optimizer_steps
        _optimizer_steps += 1

    register_optimizer_step_post_hook(count)


class _Entry(NamedTuple):
    weight: "weakref.ref[Tensor]"
    version: int
    address: int
    optimizer_steps: int
    levels: Tensor


class LevelCache:
    """Levels of the weights of one model; closed until :meth:`open` is called, and then it computes nothing twice.

    Copies and pickles of a model get a cache that is empty and closed.

    Example:
        >>> cache, weight = LevelCache(), nn.Parameter(torch.tensor([0.3, -0.7]))
        >>> cache.open(forget=True)
        >>> first = cache.get(weight, "sign", lambda: weight.sign())
        >>> cache.get(weight, "sign", lambda: weight.sign()) is first
        True
        >>> with torch.no_grad():
        ...     _ = weight.neg_()
        >>> cache.get(weight, "sign", lambda: weight.sign())
        tensor([-1.,  1.])
    """

    def __init__(self) -> None:
        self._is_open = False
        self._in_doubt = False
        self._entries: dict[tuple[int, Hashable], _Entry] = {}
        self._layers: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        _count_optimizer_steps()

    def open(self, *, forget: bool) -> None:
        """Start to reuse levels: those from before too, unless ``forget``."""
        if forget:
            self.forget()
        self._is_open, self._in_doubt = True, False

    def close(self) -> None:
        """Stop to reuse levels; those at hand are kept for the next :meth:`open`."""
        self._is_open = False

    def doubt(self) -> None:
        """Forget everything at the next request, unless the cache is opened anew before."""
        self._in_doubt = True

    def forget(self) -> None:
        """Drop all levels."""
        self._entries.clear()

    def watch(self, layer: nn.Module) -> None:
        """Note a layer whose weights this cache may hold."""
        self._layers.add(layer)

    def layers(self) -> list[nn.Module]:
        """Layers noted, in no particular order."""
        return list(self._layers)

    def can_hold(self, weight: Tensor) -> bool:
        """Whether levels of this weight may be reused now.

        Only parameters are remembered: any other tensor was computed from something that is not known here.
        """
        return self._is_open and isinstance(weight, nn.Parameter)

    def get(self, weight: Tensor, kind: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return what ``compute()`` gave before for this weight and kind of levels; call it if anything changed."""
        if not self.can_hold(weight):
            return compute()
        if self._in_doubt:
            self.forget()
            self._in_doubt = False
        found = self.find(weight, kind)
        if found is None:
            # What inference mode makes cannot be used in training.
            with torch.inference_mode(False), torch.no_grad():
                found = compute()
            self.put(weight, kind, found)
        return found

    def find(self, weight: Tensor, kind: Hashable) -> Tensor | None:
        """Return the levels at hand, if they are right."""
        entry = self._entries.get((id(weight), kind))
        if entry is None or entry.weight() is not weight:
            return None
        present = (weight._version, weight.data_ptr(), _optimizer_steps)
        return entry.levels if present == (entry.version, entry.address, entry.optimizer_steps) else None

    def put(self, weight: Tensor, kind: Hashable, levels: Tensor) -> None:
        """Remember the levels of a weight."""
        self._entries[id(weight), kind] = _Entry(
            weakref.ref(weight), weight._version, weight.data_ptr(), _optimizer_steps, levels
        )

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[type["LevelCache"], tuple[()]]:
        return LevelCache, ()
