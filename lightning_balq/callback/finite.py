"""What happens when a quantized layer is no longer finite: training stops or goes on, and nothing sound is lost."""

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeGuard, get_args

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_balq.callback.strategies import hides_weights
from lightning_balq.nn.finite import NonFiniteError, describe, non_finite, parts_of
from lightning_balq.nn.layers import quantized_layers
from lightning_balq.nn.plan import Plan

NonFinite = Literal["error", "warn"]
NON_FINITE: tuple[str, ...] = get_args(NonFinite)

_SAVING_HOOKS = ("on_train_batch_end", "on_train_epoch_end", "on_validation_end", "on_train_end", "on_exception")
"""Hooks in which checkpoint callbacks save."""


class FiniteGuard(Callback):
    """Looks for NaN and infinity where that costs little, and keeps checkpoint callbacks from saving them.

    What is about to be saved is checked by the model itself (see ``lightning_balq.nn.finite``), which raises before
    anything is written.
    """

    non_finite: NonFinite
    _plan: Plan | None
    _warned: set[str]

    def _is_finite(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether all layers of this callback are finite; if not, raise or warn. Waits for the device once."""
        if self._plan is None or hides_weights(trainer):  # a rank would raise alone
            return True
        own = {layer.name for layer in self._plan.quantized}
        layers = [layer for layer in quantized_layers(pl_module) if layer[0] in own]
        found = non_finite({part: value for layer in layers for part, value in parts_of(*layer).items()})
        if found and self.non_finite == "error":
            raise NonFiniteError(found, f", after step {trainer.global_step}")
        by_layer: dict[str, list[str]] = {}
        for layer, part in found:
            by_layer.setdefault(layer, []).append(part)
        for layer in by_layer.keys() - self._warned if trainer.is_global_zero else ():
            warnings.warn(
                f"{describe(layer, by_layer[layer])}, after step {trainer.global_step}. Training goes on as asked; no "
                "checkpoint and no record is written until all layers are finite again",
                stacklevel=2,
            )
        self._warned |= by_layer.keys()
        return not found

    def _guard_checkpoints(self, trainer: Trainer) -> None:
        """Let a checkpoint callback that may not save be as if it had not tried; see ``_try_hook``."""
        for callback in trainer.checkpoint_callbacks:
            for name in _SAVING_HOOKS:
                present = callback.__dict__.get(name)
                if not _is_ours(present):
                    callback.__dict__[name] = functools.partial(_try_hook, self, callback, name, present)

    def _free_checkpoints(self, trainer: Trainer) -> None:
        for callback in trainer.checkpoint_callbacks:
            _free(callback)


def _try_hook(
    guard: FiniteGuard,
    callback: Callback,
    name: str,
    present: Callable[..., None] | None,
    trainer: Trainer,
    pl_module: LightningModule,
    *args: Any,
) -> None:
    hook: Callable[..., None] = getattr(type(callback), name).__get__(callback) if present is None else present
    # It may have noted a file as its best before it is refused.
    before = {key: copy.copy(value) if _is_container(value) else value for key, value in vars(callback).items()}
    try:
        hook(trainer, pl_module, *args)
    except NonFiniteError as error:
        vars(callback).clear()
        vars(callback).update(before)
        if name == "on_exception":  # which stays the one that is raised
            if trainer.is_global_zero and not isinstance(args[0], NonFiniteError):
                warnings.warn(str(error), stacklevel=2)
        elif guard.non_finite == "error":
            raise
        else:
            guard._is_finite(trainer, pl_module)
    finally:
        if name == "on_exception":  # no teardown follows
            _free(callback)


def _is_ours(hook: Any) -> TypeGuard["functools.partial[None]"]:
    return isinstance(hook, functools.partial) and hook.func is _try_hook


def _is_container(value: Any) -> bool:
    return isinstance(value, (dict, list, set))


def _free(callback: Callback) -> None:
    for name in _SAVING_HOOKS:
        hook = callback.__dict__.get(name)
        if _is_ours(hook):
            *_, present = hook.args
            del callback.__dict__[name]
            if present is not None:
                callback.__dict__[name] = present
