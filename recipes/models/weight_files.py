"""Files of weights: read them, and say why they do not fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHOWN = 3
"""Differing weights of a kind that are named."""


def read(path: Path, option: str) -> Mapping[str, Any]:
    """Return what a file holds.

    Args:
        path: file that ``torch.save`` wrote.
        option: that names the file, for errors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a file, or holds no mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`{option}` must be a file of weights, the file {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zipfile or torch; none of them names the file
        raise ValueError(f"`{option}` must be a file of weights, {path} cannot be read as one: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"`{option}` must be a file of weights by name, {path} holds {type(content).__name__}")
    return content


@dataclass(frozen=True)
class Differences:
    """In what the weights of a file and those of a model differ; false if in nothing.

    Attributes:
        missing: names that only the model has.
        unknown: names that only the file has.
        shapes: shape in the file and in the model, by name, where they differ.
    """

    missing: list[str]
    unknown: list[str]
    shapes: dict[str, tuple[torch.Size, torch.Size]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unknown or self.shapes)

    def __str__(self) -> str:
        kinds = {
            "it lacks": [repr(name) for name in self.missing],
            "it has besides": [repr(name) for name in self.unknown],
            "it has other shapes:": [
                f"{name!r} {_shape(found)} instead of {_shape(expected)}"
                for name, (found, expected) in self.shapes.items()
            ],
        }
        return "; ".join(f"{verb} {_first(names)}" for verb, names in kinds.items() if names)


def load_(model: nn.Module, weights: Mapping[str, Tensor]) -> Differences:
    """Load the weights that fit, and return in what the others differ, as the model itself sees it.

    Args:
        model: whose weights are replaced.
        weights: by name.

    Example:
        >>> print(load_(nn.Linear(2, 5, bias=False), nn.Linear(2, 3).state_dict()))
        it has besides 'bias'; it has other shapes: 'weight' 3x2 instead of 5x2
    """
    shapes = {
        name: (weights[name].shape, expected.shape)
        for name, expected in model.state_dict().items()
        if name in weights and weights[name].shape != expected.shape
    }
    loaded = model.load_state_dict({name: weights[name] for name in weights if name not in shapes}, strict=False)
    return Differences([name for name in loaded.missing_keys if name not in shapes], loaded.unexpected_keys, shapes)


def _shape(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _first(names: Sequence[str]) -> str:
    others = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {others} more" if others > 0 else "")
