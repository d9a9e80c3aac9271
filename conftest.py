"""Names that every doctest may use without importing them."""

import importlib.util
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import nn

# The same examples in every run; `--hypothesis-profile=random`, with `--hypothesis-seed=N` or without, draws others.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("random", derandomize=False)
settings.load_profile("repeatable")

# Doctests import what they are in, and these files import triton.
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["lightning_balq/kernels/cuda/*.py"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(torch=torch, nn=nn)
