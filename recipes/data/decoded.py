"""Images of one size that are decoded once, and then read from a file."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

Decoded = tuple[Tensor, Tensor]
"""Images, uint8, shape ``(N, C, H, W)``, and labels, int64, shape ``(N,)``."""


def decoded_once(folder: Path, part: str, identity: str, decode: Callable[[], Decoded]) -> Decoded:
    """Decode images, unless a file has what was decoded before; of several processes, one does and the others wait.

    Args:
        folder: where the file ``<part>.pt`` is kept.
        part: name of the part of the data set.
        identity: what tells the images from others; a file of others is replaced.
        decode: does it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part}.pt"
    with FileLock(folder / f"{part}.lock"):
        kept = torch.load(path, weights_only=True) if path.exists() else {}
        if kept.get("identity") == identity:
            return kept["images"], kept["labels"]
        images, labels = decode()
        partial = path.with_name(f"{path.name}.partial")
        torch.save({"identity": identity, "images": images, "labels": labels}, partial)
        os.replace(partial, path)
    return images, labels
