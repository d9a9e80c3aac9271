"""Weights that the network of an image classifier begins with."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from recipes.models.weight_files import Differences, load_, read

PREFIX = "network."
"""What the names of a network's weights begin with in a checkpoint of an `ImageClassifier`."""


def load_pretrained_(network: nn.Module, path: Path, classes: int) -> None:
    """Load all weights of a network.

    Args:
        network: float or quantized, whose weights are replaced.
        path: either what ``torch.save(network.state_dict(), path)`` writes, as torchvision's files are, or a checkpoint
            of an `ImageClassifier`.
        classes: number of classes of ``network``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a file of weights, or one of another network or of another number of classes.
    """
    differences = load_(network, _network_weights(path))
    if differences:
        raise ValueError(
            f"`pretrained` must be a file of weights of this network, with {classes} classes; {path} is "
            f"{_explain(differences, classes)}"
        )


def _network_weights(path: Path) -> dict[str, Tensor]:
    content = read(path, "pretrained")
    if isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
        if any(name.startswith(PREFIX) for name in content):
            content = {name.removeprefix(PREFIX): content[name] for name in content if name.startswith(PREFIX)}
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"`pretrained` must be a file of weights by name, {path} holds other things: {list(content)}")
    return dict(content)


def _explain(differences: Differences, classes: int) -> str:
    """Say what the file is instead."""
    shapes = differences.shapes.values()
    of_head = [found for found, expected in shapes if expected[:1] == (classes,) and found[1:] == expected[1:]]
    if differences.missing or differences.unknown or len(of_head) < len(shapes):
        return f"of another network: {differences}"
    count = of_head[0][0]
    return f"for {count} classes ({differences}): set `--model.classes {count}`, or name another file"
