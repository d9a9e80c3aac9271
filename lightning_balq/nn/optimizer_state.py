"""Keep what belongs to learned parameters apart from the optimizers and schedules in a checkpoint.

What stays is the state of the optimizers of the float model: it resumes without this package, or with quantizers that
learn nothing. Learned parameters have groups of their own (see ``parameter_groups.py``), so that these can be taken out
whole.
"""

from typing import Any

from lightning_balq.nn.parameter_groups import MARK
from lightning_balq.nn.saved_state import check_mapping, refuse

_PER_GROUP = ("base_lrs", "_last_lr", "min_lrs", "max_lrs", "lr_lambdas")
"""Attributes of learning-rate schedules that hold a value for each group."""


def split_optimizers(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Take the groups of learned parameters out of the optimizers of a checkpoint; one entry for each optimizer."""
    states = checkpoint.get("optimizer_states")
    if not isinstance(states, list):
        return []
    parts = [_split(state) for state in states]
    checkpoint["optimizer_states"] = [rest for rest, _ in parts]
    return [taken for _, taken in parts]


def _split(state: Any) -> tuple[Any, dict[str, Any]]:
    if not isinstance(state, dict) or "param_groups" not in state or "state" not in state:
        # It is that of another rank, or of an optimizer unlike torch's.
        return state, {"state": {}, "param_groups": [], "positions": []}
    groups = state["param_groups"]
    positions = [index for index, group in enumerate(groups) if MARK in group]
    own = _renumbered([groups[index] for index in positions], state["state"])
    others = _renumbered([group for group in groups if MARK not in group], state["state"])
    return state | others, own | {"positions": positions}


def _renumbered(groups: list[Any], state: dict[Any, Any]) -> dict[str, Any]:
    """Groups whose parameters have the indices from 0 on, and the state of these parameters."""
    indices = {old: new for new, old in enumerate(index for group in groups for index in group["params"])}
    return {
        "state": {indices[index]: value for index, value in state.items() if index in indices},
        "param_groups": [group | {"params": [indices[index] for index in group["params"]]} for group in groups],
    }


def check_optimizers(key: str, parts: Any) -> None:
    """Refuse what :func:`split_optimizers` cannot have taken out."""
    if not isinstance(parts, list):
        refuse(key, "a list", parts)
    for number, part in enumerate(parts):
        place = f"{key}[{number}]"
        check_mapping(place, part, ("state", "param_groups", "positions"))
        values, groups = part["state"], part["param_groups"]
        if not isinstance(values, dict) or not all(isinstance(value, dict) for value in values.values()):
            refuse(f"{place}['state']", "a dict of dicts", values)
        if not isinstance(groups, list):
            refuse(f"{place}['param_groups']", "a list of dicts", groups)
        positions = part["positions"]
        if not isinstance(positions, list) or len(positions) != len(groups) or not all(map(_is_index, positions)):
            refuse(f"{place}['positions']", "a list of one index for each group", positions)
        for index, group in enumerate(groups):
            where = f"{place}['param_groups'][{index}]"
            check_mapping(where, group, ("params", MARK))
            if not isinstance(group["params"], list) or not all(_is_index(item) for item in group["params"]):
                refuse(f"{where}['params']", "a list of indices", group["params"])
            if not _is_index(group[MARK]):
                refuse(f"{where}[{MARK!r}]", "the index of a group", group[MARK])


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def join_optimizers(checkpoint: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    """Undo :func:`split_optimizers`."""
    states = checkpoint.get("optimizer_states")
    if isinstance(states, list) and len(states) == len(parts):
        checkpoint["optimizer_states"] = [_join(state, part) for state, part in zip(states, parts, strict=True)]


def _join(state: Any, part: dict[str, Any]) -> Any:
    if not part["param_groups"] or not isinstance(state, dict) or "param_groups" not in state:
        return state
    # Marked, so that the indices of the two parts are different ones.
    groups = [_marked(group, "float") for group in state["param_groups"]]
    for position, group in sorted(zip(part["positions"], part["param_groups"], strict=True), key=lambda pair: pair[0]):
        groups.insert(position, _marked(group, "learned"))
    values = {("float", index): value for index, value in state["state"].items()}
    values |= {("learned", index): value for index, value in part["state"].items()}
    return state | _renumbered(groups, values)


def _marked(group: dict[str, Any], mark: str) -> dict[str, Any]:
    return group | {"params": [(mark, index) for index in group["params"]]}


def trim_schedule(state: dict[str, Any], groups: int) -> dict[str, Any]:
    """State of a schedule without what it holds for groups beyond the first ``groups``.

    :func:`lightning_balq.nn.parameter_groups.fit_schedule_to_groups` adds it again.
    """
    trimmed = {
        key: value[:groups] if key in _PER_GROUP and isinstance(value, list) else value for key, value in state.items()
    }
    if isinstance(state.get("_schedulers"), list):
        trimmed["_schedulers"] = [trim_schedule(part, groups) for part in state["_schedulers"]]
    return trimmed
