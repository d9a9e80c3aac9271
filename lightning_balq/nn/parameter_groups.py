"""Parameter groups of an optimizer: what quantizers learn gets groups of its own, with options of its own.

A group with learned parameters is split while the optimizer is built, before any learning-rate schedule looks at its
groups. The new groups come after all others, and are marked, so that the state of the optimizer of the float model fits
what comes before them.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn
from torch.optim import LBFGS, Optimizer

Group: TypeAlias = dict[str, Any]

FOLLOWS = "lightning_balq_lr_factor"
"""Key of groups that were added after the optimizer was built: factor of the learning rate of the group they follow."""

MARK = "lightning_balq"
"""Key of the groups of learned parameters; its value is the index of the group that they were given in."""


@contextmanager
def separate_groups(decays: Mapping[nn.Parameter, bool], lr_factor: float = 1.0) -> Iterator[None]:
    """Within the context, optimizers that are built give learned parameters groups of their own.

    Such a group has the options of the group that the parameter was given in, but no weight decay, unless its method
    asks for it, and ``lr_factor`` times its learning rate. Schedules that set learning rates of their own, such as
    ``OneCycleLR``, override that. A group that is added to the optimizer later, as by ``BackboneFinetuning``, is
    divided too: the groups of its learned parameters come before it, for it is the last that callers go on with, and
    follow its learning rate. L-BFGS, which has one group only, is left alone.

    Args:
        decays: the learned parameters, and whether weight decay applies to them.
        lr_factor: factor of the learning rate, > 0.

    Example:
        >>> import torch
        >>> weight, scale = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
        >>> with separate_groups({scale: False}):
        ...     optimizer = torch.optim.SGD([weight, scale], lr=0.1, weight_decay=0.01)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(1, 0.01), (1, 0.0)]
    """
    build = Optimizer.__init__

    def build_with_groups(optimizer: Optimizer, params: Any, defaults: dict[str, Any]) -> None:
        if decays and not isinstance(optimizer, LBFGS):
            kept, added = _split(list(params), decays, defaults, lr_factor)
            params = kept + added
        build(optimizer, params, defaults)
        if decays and not isinstance(optimizer, LBFGS):
            optimizer.register_load_state_dict_pre_hook(fit_state_to_groups)
            optimizer.register_step_pre_hook(_follow)
            add = functools.partial(_add_group, optimizer, optimizer.add_param_group, decays, lr_factor)
            optimizer.add_param_group = add  # type: ignore[method-assign]  # for this optimizer alone

    Optimizer.__init__ = build_with_groups  # type: ignore[assignment,method-assign]  # nothing else sees it being built
    try:
        yield
    finally:
        Optimizer.__init__ = build  # type: ignore[method-assign]  # as above


def _split(
    params: list[Any], decays: Mapping[nn.Parameter, bool], defaults: dict[str, Any], lr_factor: float
) -> tuple[list[Group], list[Group]]:
    """Groups without the learned parameters, and those with them."""
    groups: list[Group] = params if params and isinstance(params[0], dict) else [{"params": params}]
    kept: list[Group] = []
    added: list[Group] = []
    for group in groups:
        given = group["params"]
        members = [given] if isinstance(given, nn.Parameter) else list(given)
        others = [member for member in members if _parameter(member) not in decays]
        place = len(kept)
        if others or not members:
            kept.append(group | {"params": others})
        for decay in (False, True):
            own = [member for member in members if decays.get(_parameter(member)) is decay]
            if own:
                name = f"{group.get('name', f'pg{place + 1}')}-learned" + ("-decayed" if decay else "")
                options = _options(group, defaults, lr_factor, decay=decay)
                added.append(group | {"params": own, "name": name, MARK: place} | options)
    return kept, added


def _add_group(
    optimizer: Optimizer,
    add: Callable[[Group], None],
    decays: Mapping[nn.Parameter, bool],
    lr_factor: float,
    param_group: Group,
) -> None:
    """``add_param_group`` of an optimizer that was built in :func:`separate_groups`."""
    kept, added = _split([param_group], decays, optimizer.defaults, lr_factor)
    if not (kept and added):
        add(param_group)
        return
    place = len(optimizer.param_groups) + len(added)
    for group in added:
        suffix = "-learned" + group["name"].rpartition("-learned")[2]
        name = f"{param_group.get('name', f'pg{place + 1}')}{suffix}"
        add(group | {"name": name, MARK: place, FOLLOWS: lr_factor})
    add(kept[0])


def _follow(optimizer: Optimizer, *_: Any) -> None:
    """Give groups that were added later the learning rate of the group they belong to, before each step."""
    groups = optimizer.param_groups
    for group in groups:
        if FOLLOWS in group and group[MARK] < len(groups):
            group["lr"] = groups[group[MARK]]["lr"] * group[FOLLOWS]


def _parameter(member: Any) -> nn.Parameter:
    """Parameter in a list of parameters or of names and parameters."""
    parameter: nn.Parameter = member[1] if isinstance(member, tuple) else member
    return parameter


def _options(group: Group, defaults: dict[str, Any], lr_factor: float, *, decay: bool) -> Group:
    options: Group = {}
    if "weight_decay" in defaults and not decay:
        options["weight_decay"] = 0.0
    if "lr" in defaults and lr_factor != 1:
        options["lr"] = group.get("lr", defaults["lr"]) * lr_factor
    return options


def fit_state_to_groups(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
    """Add the groups of learned parameters to the state of an optimizer that had none: they begin without history.

    Groups of other learned parameters than those of ``optimizer`` give way to them.

    Returns:
        The state to load; ``None`` leaves it as it is.
    """
    own = [group for group in optimizer.param_groups if MARK in group]
    saved = [group for group in state["param_groups"] if MARK in group]
    if [len(group["params"]) for group in own] == [len(group["params"]) for group in saved]:
        return None
    if saved:
        indices = {index for group in saved for index in group["params"]}
        state = state | {
            "state": {index: value for index, value in state["state"].items() if index not in indices},
            "param_groups": [group for group in state["param_groups"] if MARK not in group],
        }
    first = sum(len(group["params"]) for group in state["param_groups"])
    added = []
    for group in own:
        members = list(range(first, first + len(group["params"])))
        first += len(members)
        begun = {key: value for key, value in group.items() if key != "params"} | {"params": members}
        for source in state["param_groups"][group[MARK] : group[MARK] + 1]:
            if source.get("initial_lr"):  # a schedule is under way
                begun["lr"] = group["lr"] * (source["lr"] / source["initial_lr"])
        added.append(begun)
    return state | {"param_groups": [*state["param_groups"], *added]}


def first_learned_group(optimizer: Optimizer) -> int | None:
    """Index of the first group of learned parameters that ``optimizer`` was built with, if there is one."""
    groups = optimizer.param_groups
    return next((index for index, group in enumerate(groups) if MARK in group and FOLLOWS not in group), None)


def fit_schedule_to_groups(schedule: Any) -> None:
    """Add the groups of learned parameters to a learning-rate schedule whose state had none."""
    groups = schedule.optimizer.param_groups
    for name, option in (("base_lrs", "initial_lr"), ("_last_lr", "lr")):
        rates = getattr(schedule, name, None)
        if isinstance(rates, list) and 0 < len(rates) < len(groups):
            rates += [group[option] for group in groups[len(rates) :] if MARK in group and FOLLOWS not in group]
    for name in ("min_lrs", "max_lrs"):
        rates = getattr(schedule, name, None)
        if isinstance(rates, list) and 0 < len(rates) < len(groups):
            added = [group for group in groups[len(rates) :] if MARK in group and FOLLOWS not in group]
            rates += [rates[group[MARK]] for group in added]
    for part in getattr(schedule, "_schedulers", ()):
        fit_schedule_to_groups(part)
