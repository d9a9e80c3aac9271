"""A corpus small enough for a test, and a short Markov text."""

import random
from pathlib import Path

import pytest

from recipes.data import markov
from tests.recipes.tiny import write_corpus


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with the three text files; `datasets` caches beside it."""
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    words = [f"w{number}" for number in range(20)] + ["<unk>", "N"]
    draw = random.Random(0)
    sentences = [draw.choices(words[:-1], k=draw.randint(1, 9)) for _ in range(120)]
    sentences[79] = words  # the end of the training text has a word that its beginning has not
    folder = tmp_path / "corpus"
    write_corpus(folder, {"train": sentences[:80], "valid": sentences[80:100], "test": sentences[100:]})
    return folder


@pytest.fixture
def short_markov(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a Markov text have few symbols."""
    for split, size in {"train": 1210, "validation": 303, "test": 407}.items():
        monkeypatch.setitem(markov.SIZES, split, size)


@pytest.fixture
def no_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the seed of `seed_everything`, and restore it afterwards."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
