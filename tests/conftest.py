"""Weights that several test files draw."""

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
