"""JSON as any program reads it."""

import json
import math
from typing import Any


def to_json(value: Any) -> str:
    """Text of plain values; numbers that JSON does not have are the texts ``"Infinity"``, ``"-Infinity"``, ``"NaN"``.

    Example:
        >>> to_json({"largest": float("inf"), "layers": [1.5, None]})
        '{"largest": "Infinity", "layers": [1.5, null]}'
    """
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
