"""Hooks put in front of those of a LightningModule, on the instance, and taken away again."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from lightning_balq.nn.parameter_groups import separate_groups


def late_builder(pl_module: LightningModule) -> str | None:
    """Name of the last hook in which the user may build layers, if there is one."""
    return next((name for name in ("configure_model", "setup") if _is_users(pl_module, name)), None)


def _is_users(pl_module: LightningModule, name: str) -> bool:
    # Lightning's own test refuses a module of the twin package, `pytorch_lightning` or `lightning.pytorch`.
    owner = next(cls for cls in type(pl_module).__mro__ if name in cls.__dict__)
    return owner.__module__.partition(".")[0] not in ("lightning", "pytorch_lightning")


def call_after(pl_module: LightningModule, name: str, action: Callable[[LightningModule], None]) -> None:
    """Run ``action`` after the next call of the hook ``name``, once, and after the actions that wait already."""
    present = pl_module.__dict__.get(name)
    pl_module.__dict__[name] = functools.partial(_hook_then_action, pl_module, name, present, action)


def _hook_then_action(
    pl_module: LightningModule,
    name: str,
    present: Callable[..., None] | None,
    action: Callable[[LightningModule], None],
    *args: Any,
    **kwargs: Any,
) -> None:
    _restore_hook(pl_module, name, present)
    getattr(pl_module, name)(*args, **kwargs)
    action(pl_module)


def _restore_hook(pl_module: LightningModule, name: str, present: Callable[..., Any] | None) -> None:
    del pl_module.__dict__[name]
    if present is not None:
        pl_module.__dict__[name] = present


def configure_groups(
    pl_module: LightningModule, decays: Callable[[], Mapping[nn.Parameter, bool]], lr_factor: float
) -> None:
    """Let the next ``configure_optimizers`` give learned parameters groups of their own; see ``separate_groups``."""
    present = pl_module.__dict__.get("configure_optimizers")
    pl_module.__dict__["configure_optimizers"] = functools.partial(_configure, pl_module, present, decays, lr_factor)


def _configure(
    pl_module: LightningModule,
    present: Callable[[], Any] | None,
    decays: Callable[[], Mapping[nn.Parameter, bool]],
    lr_factor: float,
) -> Any:
    _restore_configure_optimizers(pl_module)
    with separate_groups(decays(), lr_factor):
        return pl_module.configure_optimizers()


def _restore_configure_optimizers(pl_module: LightningModule) -> None:
    hook = pl_module.__dict__.get("configure_optimizers")
    if isinstance(hook, functools.partial) and hook.func is _configure:
        _, present, _, _ = hook.args
        _restore_hook(pl_module, "configure_optimizers", present)


def release(pl_module: LightningModule) -> None:
    """Take away the hooks that still wait: one of each kind, so that every callback takes away its own."""
    for name in ("setup", "configure_model"):
        waiting = pl_module.__dict__.get(name)
        if isinstance(waiting, functools.partial) and waiting.func is _hook_then_action:
            _, _, present, _ = waiting.args
            _restore_hook(pl_module, name, present)
    _restore_configure_optimizers(pl_module)
