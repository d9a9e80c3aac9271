"""State of a callback in a checkpoint: checked before the model takes anything from the file."""

import math
from collections.abc import Mapping
from typing import Any

from lightning_balq.nn.saved_state import check_mapping, check_names, check_number, check_version, refuse, shown

STATE_VERSION = 1


def check_callback_state(state_key: str, checkpoint: Mapping[str, Any]) -> None:
    """Raise :class:`ValueError` if a checkpoint holds a state of the callback that it cannot have written."""
    callbacks = checkpoint.get("callbacks", {})
    if isinstance(callbacks, dict) and state_key in callbacks:
        check_state(state_key, callbacks[state_key])


def check_state(state_key: str, state: Any) -> None:
    """Raise :class:`ValueError` if ``state`` is not what the ``state_dict`` of a callback returns."""
    key = f"callbacks[{state_key!r}]"
    check_mapping(key, state, ("version",))
    check_version(f"{key}['version']", state["version"], STATE_VERSION, state_key)
    check_mapping(key, state, ("version", "arguments", "overheads"))
    for name, value in check_mapping(f"{key}['arguments']", state["arguments"]).items():
        if not _is_plain(value):
            refuse(f"{key}['arguments'][{name!r}]", "a number, text, or a list or dict of these", value)
    if not isinstance(state["overheads"], list):
        refuse(f"{key}['overheads']", "a list of numbers", state["overheads"])
    for index, value in enumerate(state["overheads"]):
        check_number(f"{key}['overheads'][{index}]", value, 0, math.inf)
    check_names(f"{key}['unmeasured']", state.get("unmeasured", []))


def changed_arguments(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Say of each argument whose value differs what it was and what it is."""
    return [
        f"{key}: {_brief(saved.get(key))} -> {_brief(value)}"
        for key, value in present.items()
        if saved.get(key) != value
    ]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else shown(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)
