"""Data sets in the form that the studies read, small enough for a test."""

from pathlib import Path

from tests.recipes.pictures import encoded, noise, table
from tests.recipes.tiny import write_corpus

CLASSES = [f"class {number}" for number in range(10)]
FOLDERS = {"penn_treebank": "ptb", "cifar10": "cifar10", "imagenette": "imagenette128", "ablations": "cifar10"}


def write_all(root: Path) -> Path:
    """Write all data sets; return their folder."""
    for name, side, parts in (("cifar10", 32, ("train", "test")), ("imagenette128", 128, ("train", "validation"))):
        for part in parts:
            contents = [encoded(noise(side, side, number), "WEBP") for number in range(40)]
            rows = table(contents, [number % 10 for number in range(40)], names=CLASSES)
            rows.to_parquet(str(root / name / f"{part}-00000-of-00001.parquet"))
    words = [f"w{number}" for number in range(9_999)]
    sentences = [words[start : start + 100] for start in range(0, len(words), 100)]
    write_corpus(root / "ptb", {"train": sentences, "valid": sentences[:30], "test": sentences[30:60]})
    return root
