"""Images small enough for a test, in every form that a data set may have."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from recipes.data.imagenet import DEVIATION, MEAN

NAMES = ["ant", "bee", "cat"]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture without symmetry."""
    coarse = np.random.default_rng(seed).integers(256, size=(5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def numbered(number: int, width: int = 12, height: int = 10) -> Image.Image:
    """A picture whose one colour is its number, which no crop or flip changes."""
    return Image.new("RGB", (width, height), (number, 255 - number, 7))


def numbers(images: Tensor) -> list[int]:
    """The numbers of normalised pictures."""
    red = images[:, 0].mean((1, 2)) * DEVIATION[0] + MEAN[0]
    return [round(value) for value in (red * 255).tolist()]


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The content of an image file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def truncated(number: int = 0) -> bytes:
    """A JPEG whose end is missing."""
    content = encoded(noise(160, 120, number), "JPEG")
    return content[: -len(content) // 3]


def write_folders(root: Path, train: int = 7, validation: int = 5, first: int = 0) -> Path:
    """Write ``train/<class>/*.png`` and ``val/<class>/*.png``, classes in turn; return the root."""
    for part, count in (("train", train), ("val", validation)):
        for number in range(first, first + count):
            folder = root / part / NAMES[number % len(NAMES)]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:03}.png").write_bytes(encoded(numbered(number)))
    return root


def table(
    contents: Sequence[bytes], labels: Sequence[int], *, image: str = "image", names: Sequence[str] = NAMES
) -> Any:
    """A table of `datasets` with encoded images."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({image: datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    rows = {image: [{"bytes": content, "path": None} for content in contents], "label": list(labels)}
    return datasets.Dataset.from_dict(rows, features=features)


def write_parquet(
    root: Path, train: int = 7, validation: int = 5, files: int = 2, first: int = 0, **options: Any
) -> Path:
    """Write ``train-*.parquet`` and ``validation-*.parquet`` of numbered pictures; return their folder."""
    for part, count in (("train", train), ("validation", validation)):
        chosen = range(first, first + count)
        whole = table(
            [encoded(numbered(number)) for number in chosen], [number % len(NAMES) for number in chosen], **options
        )
        for file in range(files):
            shard = whole.shard(files, file, contiguous=True)
            shard.to_parquet(str(root / f"{part}-{file:05}-of-{files:05}.parquet"))
    return root


def collect(loader: Any) -> tuple[list[int], list[int]]:
    """Numbers and labels of all pictures of a loader."""
    batches = list(loader)
    images, labels = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    return numbers(images), labels.tolist()
