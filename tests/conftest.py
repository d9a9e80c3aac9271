"""What several test files use."""

import functools
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def draw():
    """Return ``draw(kind, shape, seed=0)``: a seeded float32 array of the kind named."""
    kinds = {
        "gaussian": lambda rng, shape: rng.standard_normal(shape),
        "laplace": lambda rng, shape: rng.laplace(size=shape),
        "student_t3": lambda rng, shape: rng.standard_t(3, size=shape),
        "uniform": lambda rng, shape: rng.uniform(-1, 1, size=shape),
        "positive": lambda rng, shape: 5 + rng.standard_normal(shape),
        "ties": lambda rng, shape: np.round(rng.standard_normal(shape)) / 2,
        "integers": lambda rng, shape: rng.integers(-40, 41, size=shape),
    }

    def draw(kind, shape, seed=0):
        return np.asarray(kinds[kind](np.random.default_rng(seed), shape), dtype=np.float32)

    return draw


@pytest.fixture
def own_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `datasets` cache beside the test, report no use, and not wait for seconds at the end of a shuffled stream."""
    try:
        from datasets import config
    except ModuleNotFoundError:  # folders do without it
        return
    monkeypatch.setenv("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # for processes that are started
    monkeypatch.setattr(config, "HF_UPDATE_DOWNLOAD_COUNTS", False, raising=False)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture(scope="session")
def torch_reads_its_operators_once():
    """Every export of torch to ONNX translates its whole library of operators, which takes longer than all else."""
    from torch.onnx._internal.exporter import _registration

    earlier = _registration.ONNXRegistry.__dict__["from_torchlib"]
    read = functools.cache(_registration.ONNXRegistry.from_torchlib)
    _registration.ONNXRegistry.from_torchlib = staticmethod(read)
    yield
    _registration.ONNXRegistry.from_torchlib = earlier
